"""What travels over HTTP. `route.py` is what all dialects share; each other file is one of them."""
