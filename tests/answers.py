"""What an origin may answer, right or wrong: handlers for `Origin.raw`."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading

from tests.origin import Handler

CAT = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 40
DOG = b"\x89PNG\r\n\x1a\n" + bytes(reversed(range(256))) * 40
HTML = b"<!doctype html><title>not an image</title>" * 100
OK = b"HTTP/1.1 200 OK\r\n"


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say nothing more, until the client goes."""
    await reader.read()


async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close properly."""


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close so that the client sees a reset."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def says(*parts: bytes, every_s: float = 0, then: Handler = drop) -> Handler:
    """Write `parts`, one after the other, each sent on its own."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(every_s)
        await then(reader, writer)

    return handler


def with_length(body: bytes, *headers: bytes, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return b"".join([OK, *headers, b"Content-Length: %d\r\n\r\n" % length, body])


def chunked(*chunks: bytes) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + body


class Held:
    """Write `before` at once, and `answer` when the test releases it, from another thread."""

    def __init__(self, answer: bytes, *, before: bytes = b"") -> None:
        self.arrived = threading.Semaphore(0)
        """Released by each request that has come so far."""
        self._answer = answer
        self._before = before
        self._released = threading.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._before)
        self.arrived.release()
        while not self._released.is_set():  # noqa: ASYNC110 - it is set in another thread
            await asyncio.sleep(0.02)
        writer.write(self._answer)

    def release(self) -> None:
        self._released.set()


class Flood:
    """Write `head`, then `piece` until the client goes."""

    def __init__(self, head: bytes, piece: bytes) -> None:
        self.head = head
        self.piece = piece
        self.sent_bytes = 0
        self.over = False

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(self.head)
            while True:
                writer.write(self.piece)
                await writer.drain()
                # What is written to a connection that is lost waits for nothing, and nobody is told of the loss.
                await asyncio.sleep(0)
                self.sent_bytes += len(self.piece)
        finally:
            self.over = True


NOT_HTTP = {
    "nothing at all": says(),
    "reset at once": reset,
    "garbage": says(bytes(range(256)) * 10),
    "http 0.9": says(CAT),
    "http 2 preface": says(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "http 2 settings": says(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"),
    "ssh": says(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "a request": says(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "letters for a status": says(b"HTTP/1.1 2OO OK\r\nContent-Length: 0\r\n\r\n"),
    "status of two digits": says(b"HTTP/1.1 99 No\r\nContent-Length: 0\r\n\r\n"),
    "status of four digits": says(b"HTTP/1.1 1000 No\r\nContent-Length: 0\r\n\r\n"),
    "dropped in the status line": says(b"HTTP/1.1 20"),
    "dropped in the headers": says(OK + b"Content-Le"),
    "reset in the headers": says(OK + b"Content-Le", then=reset),
    "dropped after a 100": says(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "dropped in the body": says(with_length(CAT[:5000], length=len(CAT))),
    "reset in the body": says(with_length(CAT[:5000], length=len(CAT)), then=reset),
    "dropped at the body": says(with_length(b"", length=len(CAT))),
    "dropped one byte early": says(with_length(CAT[:-1], length=len(CAT))),
    "dropped between chunks": says(chunked(CAT)),
    "dropped in a chunk": says(chunked(CAT)[:-100]),
    "header with a zero byte": says(OK + b"A: \x00\r\nContent-Length: 5\r\n\r\nhello"),
    "two lengths": says(with_length(CAT, b"Content-Length: 20\r\n")),
    "length is beyond 64 bits": says(OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + CAT),
    "chunk size is a word": says(chunked(CAT) + b"zz\r\n"),
    "chunk size is negative": says(chunked(CAT) + b"-1\r\n"),
    "chunk size has a prefix": says(chunked(CAT) + b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk size is beyond 64 bits": says(chunked(CAT) + b"F" * 17 + b"\r\n"),
    "chunk longer than its size": says(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\n%b\r\n0\r\n\r\n" % CAT),
}

BAD_CHUNKS = [b"zz\r\n", b"-1\r\n", b"0x5\r\nhello\r\n", b"F" * 17 + b"\r\n", b"5\r\nhelloworld\r\n"]

HEADER_FLOODS = {
    "huge reason": b"HTTP/1.1 200 " + b"a" * 1_000_000 + b"\r\n\r\n",
    "huge header": OK + b"A: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "huge header name": OK + b"a" * 1_000_000 + b": a\r\n\r\n",
    "10 000 headers": OK + b"".join(b"A%d: a\r\n" % i for i in range(10_000)) + b"\r\n",
    "10 000 equal headers": OK + b"A: a\r\n" * 10_000 + b"\r\n",
}

# A head, and what is repeated after it without end.

ENDLESS_BODIES = {
    "close": (OK + b"\r\n" + CAT, bytes(65536)),
    "chunked": (chunked(CAT), b"10000\r\n" + bytes(65536) + b"\r\n"),
}

ENDLESS_HEADS = {
    "status line": (b"HTTP/1.1 200 ", b"a" * 65536),
    "header": (OK + b"A: ", b"a" * 65536),
    "header name": (OK, b"a" * 65536),
    "headers": (OK, b"A: a\r\n" * 10_000),
    "blank lines": (b"", b"\r\n" * 30_000),
    "trailers": (chunked(CAT) + b"0\r\n", b"A: a\r\n" * 10_000),
    "trailer": (chunked(CAT) + b"0\r\nA: ", b"a" * 65536),
}

# These cost work per byte, each with the tiniest piece that does.
BUSYWORK = {
    "100": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500),
    "103": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 300),
    "one-byte chunks": (chunked(CAT[:3]), b"1\r\na\r\n" * 2000),
    "chunk extension": (chunked(CAT) + b"1;", b"a" * 16384),
}

HANGS = {
    "before the head": hang,
    "in the head": says(OK + b"Content-Len", then=hang),
    "after a 100": says(b"HTTP/1.1 100 Continue\r\n\r\n", then=hang),
    "after the head": says(with_length(b"", length=len(CAT)), then=hang),
    "in the body": says(with_length(CAT[:5000], length=len(CAT)), then=hang),
    "in the chunks": says(chunked(CAT), then=hang),
    "without a length": says(OK + b"\r\n" + CAT, then=hang),
    "dripping a head": says(OK, *[b"A: a\r\n"] * 1000, every_s=0.05),
    "dripping a body": says(with_length(CAT[:20], length=1020), *[b"a"] * 1000, every_s=0.05),
    "dripping chunks": says(chunked(CAT[:20]), *[b"1\r\na\r\n"] * 1000, every_s=0.05),
    "dripping 103": says(*[b"HTTP/1.1 103 Early Hints\r\n\r\n"] * 1000, every_s=0.05),
}
