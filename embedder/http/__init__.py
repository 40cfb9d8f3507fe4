"""What travels over HTTP, from outside in.

`connection.py`, `door.py`, `turnstile.py` and `load_shedding.py` stand before BentoML's routes. `route.py` is
what the dialects share, `single.py` and `batch.py`. `pages.py` and `openapi.py`: what is asked for with GET.
"""
