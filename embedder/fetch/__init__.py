"""URL → bytes of an image, within limits.

    urls.py         may this URL be fetched?            pure: no name is looked up, no packet is sent
    addresses.py    may this address be dialled?        pure
    names.py        name → addresses, by the system's name servers
    dialling.py     the guard where addresses are dialled: sockets, this machine's own addresses
    proxy.py        the operator's forward proxy
    head.py         the head of a response, as browsers read it; pure
    response.py     a response as its bytes arrive, bounded; pure
    connection.py   a socket that carries one response for each request
    pool.py         how many connections there are, and which are kept
    client.py       a GET: a connection, direct or through the proxy, with TLS; the request
    fetcher.py      the download: redirects, deadline, size
    compression.py  what a server compressed, though it was told not to
    failures.py     why a download failed: what its client is told, and what operators are told
    data_url.py     `data:` URLs, which carry their image
    renditions.py   the URL of a smaller picture, where a CDN makes those; pure

A URL is checked three times: as text (`urls`), by the addresses that its name has (`dialling`), and by the
one address that a socket is opened for. Only the last check is what protects: the others fail earlier, with a
better sentence.
"""
