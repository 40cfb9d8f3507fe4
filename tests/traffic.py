"""Many requests to a server on 127.0.0.1: when they are sent is given, and what became of each is kept.

On one event loop, with as little work for each request as there can be: a client on the server's machine must
leave the cores to the server.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

ANSWER_TIMEOUT_S = 90.0
# For another request a connection is kept shorter than servers keep theirs (5 s here), so that none is sent
# on one that is being closed.
IDLE_S = 2.0
FORM = "multipart/form-data; boundary=x"
FORM_START = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
"""Of a body with that media type, up to the first byte of its file."""


@dataclass(frozen=True)
class Answer:
    """What became of a request. The times are time.monotonic()'s."""

    sent_s: float
    """When it was begun: waiting for a connection counts as waiting for the answer."""
    ended_s: float
    port: int
    """The client's."""
    status: int
    """0 where no answer came."""
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes
    failure: str = ""
    """Why no answer came."""

    @property
    def ms(self) -> float:
        return 1000 * (self.ended_s - self.sent_s)


@dataclass(eq=False)
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used_s: float = 0.0

    @property
    def port(self) -> int:
        port: int = self.writer.get_extra_info("sockname")[1]
        return port


class Traffic:
    """Requests to one server, over connections that are used again. For one event loop."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []
        self.answers: list[Answer] = []
        """All that ended, in that order."""
        self.under_way: set[int] = set()
        """The clients' ports of requests that have no answer yet."""

    async def connect(self, source: str | None = None) -> Connection:
        """`source` is the address to come from."""
        address = (source, 0) if source else None
        return Connection(*await asyncio.open_connection("127.0.0.1", self._port, local_addr=address))

    async def ask(self, request: bytes, *, over: Connection | None = None) -> Answer:
        """Never raises. Without `over`, on a connection that is idle, or else a new one."""
        sent_s = time.monotonic()
        port, failure = 0, ""
        status, headers, body = 0, dict[str, str](), b""
        connection = over or self._take()
        try:
            connection = connection or await self.connect()
            port = connection.port
            self.under_way.add(port)
            connection.writer.write(request)
            status, headers, body = await asyncio.wait_for(_answer(connection.reader), ANSWER_TIMEOUT_S)
        except TimeoutError:
            failure = f"no answer in {ANSWER_TIMEOUT_S:g} s"
        except asyncio.IncompleteReadError as exc:
            failure = "closed in the middle" if exc.partial else "closed without an answer"
        except OSError as exc:
            failure = repr(exc)
        self.under_way.discard(port)
        answer = Answer(sent_s, time.monotonic(), port, status, headers, body, failure)
        self.answers.append(answer)
        if connection is not None:
            self._keep(connection, answer)
        return answer

    async def at(self, moments: Iterable[float], requests: Iterator[bytes]) -> list[Answer]:
        """Sends a request at each of `moments`, seconds from now, whether or not others are answered."""
        begin_s = time.monotonic()
        tasks = []
        for moment in moments:
            await asyncio.sleep(max(0.0, begin_s + moment - time.monotonic()))
            tasks.append(asyncio.ensure_future(self.ask(next(requests))))
        return await asyncio.gather(*tasks)

    async def in_turn(self, clients: int, requests: Iterator[bytes], more: Callable[[], bool]) -> None:
        """So many clients each send one request after the other for as long as `more` says so."""

        async def client() -> None:
            while more():
                await self.ask(next(requests))

        await asyncio.gather(*(client() for _ in range(clients)))

    def close(self) -> None:
        for connection in self._idle:
            connection.writer.close()
        self._idle.clear()

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if time.monotonic() - connection.used_s < IDLE_S and not connection.reader.at_eof():
                return connection
            connection.writer.close()
        return None

    def _keep(self, connection: Connection, answer: Answer) -> None:
        if answer.failure or answer.headers.get("connection") == "close":
            connection.writer.close()
        else:
            connection.used_s = answer.ended_s
            self._idle.append(connection)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    top = await reader.readuntil(b"\r\n\r\n")
    status, *lines = top.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return int(status.split(" ")[1]), headers, body


def get(path: str, *, closes: bool = False) -> bytes:
    closing = "Connection: close\r\n" if closes else ""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{closing}\r\n".encode()


def post(path: str, body: object) -> bytes:
    content = json.dumps(body).encode()
    return head(path, len(content)) + content


def upload(path: str, data: bytes) -> bytes:
    """A form whose one field is the file `data`."""
    content = FORM_START + data + b"\r\n--x--\r\n"
    return head(path, len(content), media_type=FORM) + content


def go_away(port: int, url: str, *, after_s: float = 0.0) -> None:
    """Ask for the embedding of `url`, and leave before the answer."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(post("/embed", {"url": url}))
        time.sleep(after_s)


def head(path: str, length: int | None, *, media_type: str = "application/json") -> bytes:
    """The head of a POST with a body of that length; None: in chunks."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {media_type}", framing]
    return "\r\n".join([*lines, "", ""]).encode()


def at_random(per_s: float, seconds: float, *, seed: int = 0) -> list[float]:
    """Moments in the next `seconds`, `per_s` in a second on average: the same ones for the same seed."""
    chance = random.Random(seed)
    moments, moment = [], chance.expovariate(per_s)
    while moment < seconds:
        moments.append(moment)
        moment += chance.expovariate(per_s)
    return moments


def rate(answers: Sequence[Answer], begin_s: float, end_s: float) -> float:
    """How many 200s a second came between two times."""
    return sum(1 for a in answers if a.status == 200 and begin_s <= a.ended_s < end_s) / (end_s - begin_s)
