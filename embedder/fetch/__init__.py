"""URL → bytes of an image, within limits.

    urls.py             may this URL be fetched?            pure: no name is looked up, no packet is sent
    addresses.py        may this address be dialled?        pure
    dialling.py         the guard where addresses are dialled: names, sockets, this machine's own addresses
    proxy.py            the operator's forward proxy
    fetcher.py          the download: redirects, deadline, size; aiohttp's public API
    aiohttp_private.py  connections that trust their origin less; aiohttp's private API
    failures.py         why a download failed: what its client is told, and what operators are told
    data_url.py         `data:` URLs, which carry their image
    renditions.py       the URL of a smaller picture, where a CDN makes those; pure

A URL is checked three times: as text (`urls`), by the addresses that its name has (`dialling`), and by the
one address that a socket is opened for. Only the last check is what protects: the others fail earlier, with a
better sentence.
"""
