"""A tiny forward proxy on 127.0.0.1: absolute-form requests, and tunnels by CONNECT.

with Proxy({"images.test": "127.0.0.1"}) as proxy:
    requests.get("http://images.test:8080/", proxies={"http": proxy.url("")})
    assert proxy.requests[0].path == "http://images.test:8080/"
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from urllib.parse import urlsplit

from tests.origin import Origin, Request


class Proxy(Origin):
    """Knows the names that it is told, and answers 502 for others; `refusal` is its answer to everybody."""

    def __init__(self, names: Mapping[str, str], *, refusal: bytes = b"") -> None:
        super().__init__()
        self.names = names
        self.refusal = refusal

    async def otherwise(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        tunnel = request.method == "CONNECT"
        target = urlsplit(f"//{request.path}" if tunnel else request.path)
        address = self.names.get(target.hostname or "")
        if self.refusal or address is None:
            writer.write(self.refusal or b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            return True
        upstream, upstream_writer = await asyncio.open_connection(address, target.port or 80)
        try:
            if tunnel:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                ways = [_copy(reader, upstream_writer), _copy(upstream, writer)]
                tasks = [asyncio.ensure_future(way) for way in ways]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            else:
                path = request.path.removeprefix(f"http://{target.netloc}")
                lines = [f"{name}: {value}" for name, value in request.header_lines if "Proxy" not in name]
                upstream_writer.write("\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode())
                head = await upstream.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                writer.write(head + await upstream.readexactly(length))
        finally:
            upstream_writer.close()
            with contextlib.suppress(OSError):
                await upstream_writer.wait_closed()
        return not tunnel


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
