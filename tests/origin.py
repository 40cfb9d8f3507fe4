"""A real HTTP server on 127.0.0.1 that does what a test tells it to, well-behaved or not.

with Origin() as origin:
    origin.serve("/cat.jpg", cat)                             # answers 200 with these bytes
    origin.redirect("/old.jpg", "/cat.jpg")                   # answers 302
    origin.raw("/drip", drip)                                 # drip(reader, writer) writes whatever it likes
    requests.get(origin.url("/cat.jpg"))
    assert origin.requests[0].headers["host"] == f"127.0.0.1:{origin.port}"
    assert origin.connections.open == 0
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Called once the head of a request was read; the connection is closed when it returns."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    version: str
    header_lines: tuple[tuple[str, str], ...]
    """Names and values as sent, in order, repetitions too."""
    headers: Mapping[str, str]
    """By lower-case name; the last one of a repeated header."""
    connection: int
    """Which accepted connection it came on, counted from 1."""


@dataclass
class Connections:
    accepted: int = 0
    open: int = 0


@dataclass
class Origin:
    """A server in a thread of its own, from `with` to the end of the block, on a free port."""

    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    connections: Connections = field(default_factory=Connections)

    def __post_init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._keeps_alive: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run_thread, name="origin", daemon=True)

    def serve(
        self, path: str, body: bytes = b"", *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer `path` with these bytes and their Content-Length, and keep the connection open."""
        lines = [f"HTTP/1.1 {status} Status"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        # RFC 9110 section 8.6: these have no body and must not announce one.
        if status >= 200 and status not in (204, 304):
            lines.append(f"Content-Length: {len(body)}")
        answer = "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(answer)
            await writer.drain()

        self._handlers[path] = handler
        self._keeps_alive.add(path)

    def redirect(self, path: str, location: str, *, status: int = 302) -> None:
        self.serve(path, status=status, headers={"Location": location})

    def raw(self, path: str, handler: Handler, *, keep_alive: bool = False) -> None:
        """Let `handler` write the answer. With `keep_alive` the next request is read when it returns."""
        self._handlers[path] = handler
        if keep_alive:
            self._keeps_alive.add(path)
        else:
            self._keeps_alive.discard(path)

    async def otherwise(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer a request for a path without a handler. Whether another may follow on the connection."""
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        return True

    def url(self, path: str, *, host: str | None = None) -> str:
        return f"{'https' if self.tls else 'http'}://{host or self.host}:{self.port}{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run_thread(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as exc:  # told to the test's thread
            self._failure = exc
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        faults: list[BaseException] = []

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(self._connection(reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(note_fault)

        def note_fault(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (fault := task.exception()):
                faults.append(fault)

        # A peer that hangs up during the handshake is business as usual here, not an unhandled error.
        self._loop.set_exception_handler(lambda loop, context: None)
        # A backlog for every test's burst, so that no connection waits for a retransmitted SYN.
        server = await asyncio.start_server(accept, self.host, self.port, ssl=self.tls, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()
        await asyncio.sleep(0)  # a closed transport lets go of its socket one turn later
        if faults:
            raise faults[0]

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.accepted += 1
        self.connections.open += 1
        number = self.connections.accepted
        try:
            # A peer that goes away is what most tests are about.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._answer(number, reader, writer):
                    pass
        finally:
            self.connections.open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read and answer one request. Whether another may follow on the connection."""
        first = await reader.readexactly(1)
        if not first.isalpha():  # the beginning of a TLS handshake, say
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            return False
        request = _parsed(first + await reader.readuntil(b"\r\n\r\n"), number)
        self.requests.append(request)
        path = request.path.partition("?")[0]
        handler = self._handlers.get(path)
        if handler is None:
            return await self.otherwise(request, reader, writer)
        await handler(reader, writer)
        return path in self._keeps_alive


def _parsed(head: bytes, connection: int) -> Request:
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, path, version = first.split(" ")
    pairs = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
    return Request(method, path, version, pairs, {name.lower(): value for name, value in pairs}, connection)
