"""What travels over HTTP, from outside in.

    uvicorn_private ─► gate ─► admission ─► (BentoML's middleware) ─► bentoml_io ─► dialects/

An `exchange` is one request on that way, and a `client` its other end. `pages` and `openapi` answer GET.
`bentoml_private` has what is private to BentoML.
"""
