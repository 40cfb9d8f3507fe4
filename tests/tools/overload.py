"""`make overload`: the service under load and faults, and what it must stand.

python -m tests.tools.overload                       every row
python -m tests.tools.overload --only killed,gone    some of them

Prints a line for each row: what was measured, what it is held to, and whether it is. Ends with 1 when any
row fails. The service is a real one, with its usual settings where a row does not say otherwise, and without
kept embeddings. Half of the requests have a URL of their own, of a photo of 640 x 480 that nginx serves; a quarter
bring such a photo in a form, and a quarter are OpenAI's, with 4 URLs each.

The clients share the machine with the service: where cores are few, their times contain waiting for a core.
Where anything else runs, no time and no rate means anything: the load average is printed first.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import math
import os
import random
import resource
import select
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import uvloop

from benchmarks.origin import Origin as Nginx
from benchmarks.photos import make_photos
from embedder.http.body import BODY_TIMEOUT_S
from embedder.http.client import LINGER_BYTES, LINGER_S
from embedder.http.uvicorn_private import HEAD_TIMEOUT_S
from embedder.runtime.cpu import available_cores
from embedder.settings import WORKER_BYTES, Settings
from tests import pictures
from tests.answers import hang, says, with_length
from tests.origin import Origin
from tests.server import Server, until
from tests.traffic import (
    FORM,
    FORM_START,
    Answer,
    Traffic,
    at_random,
    get,
    go_away,
    head,
    post,
    rate,
    upload,
)
from tests.weights import save_pth, saved_model

SIZE = "640"
CLIENTS = 16
USUAL = Settings()
FETCH_TIMEOUT_S = USUAL.fetch_timeout_s
GIVEN_UP_S = 3.0
CLIENT_TIMEOUT_S = 30.0
BODY_LIMIT_BYTES = USUAL.max_body_bytes
REQUEST_TIMEOUT_S = BODY_TIMEOUT_S + FETCH_TIMEOUT_S + 35
"""service.py's: nothing is in work for longer, so that draining takes no longer either."""
SOCKET_BUFFERS_BYTES = 16_000_000
"""What the kernel may take on both sides of a connection that nobody reads."""
HEALTH = ("/health", "/livez", "/readyz")


@dataclass(frozen=True)
class Check:
    figure: str
    bar: str
    passed: bool


@dataclass(frozen=True)
class Overload:
    """A minute of twice as many requests as can be answered."""

    peaks: tuple[float, float]
    """What can be answered a second, before it and after it."""
    answers: Sequence[Answer]
    probes: Sequence[tuple[str, Answer]]
    """The path that was asked for, and what came."""
    begin_s: float
    seconds: float
    client_cpu: float
    """Of one core."""

    @property
    def peak(self) -> float:
        """A shared machine may be a tenth faster before that minute than after it."""
        return statistics.mean(self.peaks)


@dataclass(eq=False)
class Scene:
    """What the rows have in common: a model, photos, and where they come from."""

    folder: Path
    store: Path
    photos: int
    nginx: Nginx
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def server(self, *ports: int, warm: bool = True, **settings: str) -> Iterator[Server]:
        """A service that may fetch from nginx and `ports`. A `warm` one has answered some requests."""
        folder = self.folder / f"server-{next(self._numbers)}"
        temporary = folder / "tmp"
        temporary.mkdir(parents=True)
        environ = {
            "BENTOML_HOME": str(self.store),
            "TMPDIR": str(temporary),
            "EMBEDDER_ALLOWED_NETWORKS": "127.0.0.0/8",
            "EMBEDDER_ALLOWED_PORTS": ",".join(map(str, (self.nginx.port, self.nginx.slow_port, *ports))),
            "EMBEDDER_CACHE_ENTRIES": "0",
            **settings,
        }
        with Server(folder / "log", environ) as server:
            if warm:
                server.post("/embed", {"url": next(self.photo_urls())}).raise_for_status()
                uvloop.run(self._rate(server, CLIENTS, seconds=2))
            yield server

    def photo_urls(self, *, slow: bool = False) -> Iterator[str]:
        for number in self._numbers:
            yield f"{self.nginx.prefix(SIZE, slow=slow)}{number % self.photos}.jpg?n={number}"

    def requests(self) -> Iterator[bytes]:
        """What clients ask for, in a mixture that is the same in every four."""
        urls = self.photo_urls()
        form = upload("/embed", self.photo())
        while True:
            yield post("/embed", {"url": next(urls)})
            yield form
            yield post("/embed", {"url": next(urls)})
            yield post("/v1/embeddings", {"input": list(itertools.islice(urls, 4))})

    def slow_requests(self) -> Iterator[bytes]:
        return (post("/embed", {"url": url}) for url in self.photo_urls(slow=True))

    def photo(self) -> bytes:
        return (self.folder / "photos" / SIZE / "0.jpg").read_bytes()

    def peak(self, server: Server) -> float:
        """As many requests a second as 64 clients get answered that each wait for their answer."""
        return uvloop.run(self._rate(server, 64, seconds=8))

    async def _rate(self, server: Server, clients: int, *, seconds: float) -> float:
        traffic = Traffic(server.port)
        begin_s = time.monotonic()
        await traffic.in_turn(clients, self.requests(), lambda: time.monotonic() < begin_s + seconds)
        return rate(traffic.answers, begin_s, begin_s + seconds)

    @cached_property
    def usual_rate(self) -> float:
        """Half of what can be done."""
        with self.server() as server:
            return self.peak(server) / 2

    @cached_property
    def overload(self) -> Overload:
        with self.server() as server:
            return _overload(self, server, seconds=60)


# Rows


def killed(scene: Scene) -> Iterable[Check]:
    """kill -9 of one worker"""
    with scene.server(EMBEDDER_WORKERS="2") as server:
        return uvloop.run(_killed(scene, server))


async def _killed(scene: Scene, server: Server) -> Iterable[Check]:
    before_s, after_s, settled_s = 6.0, 15.0, 7.0
    traffic = Traffic(server.port)
    begin_s = time.monotonic()
    end_s = begin_s + before_s + after_s + settled_s
    clients = asyncio.ensure_future(
        traffic.in_turn(CLIENTS, scene.requests(), lambda: time.monotonic() < end_s)
    )
    await asyncio.sleep(before_s)
    # The worker that has more in work, so that there is something to lose.
    workers = server.workers()
    victim = max(workers, key=lambda worker: len(server.client_ports(worker)))
    in_flight = len(server.client_ports(victim) & traffic.under_way)
    server_kill_s = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    await clients
    failed = _wrong(traffic.answers, 200)
    before = rate(traffic.answers, begin_s + 1, server_kill_s)
    after = rate(traffic.answers, server_kill_s + after_s, end_s)
    lowest = min(
        rate(traffic.answers, server_kill_s + second, server_kill_s + second + 3) for second in range(13)
    )
    return [
        Check(
            f"{failed.total()} of the {in_flight} requests in flight on it failed {dict(failed) or ''}",
            "no more than those",
            failed.total() <= in_flight,
        ),
        Check(
            f"rate {before:.0f}/s before, at the lowest {lowest:.0f}/s for 3 s, "
            f"{after:.0f}/s from the 15th second on ({after / before:.0%})",
            "at least 90 %",
            after >= 0.9 * before,
        ),
        Check(
            f"{len(server.workers())} workers again",
            "2",
            len(server.workers()) == 2 and victim not in server.workers(),
        ),
    ]


def sigterm(scene: Scene) -> Iterable[Check]:
    """SIGTERM under load"""
    with Origin() as origin:
        photo = scene.photo()
        origin.raw("/slow", says(b"", every_s=3, then=says(with_length(photo))))
        with scene.server(origin.port) as server:
            children = server.children()
            checks = uvloop.run(_sigterm(scene, server, origin.url("/slow")))
            orphans = [child for child in children if Path(f"/proc/{child}").exists()]
        left = [path.name for path in (server.log.parent / "tmp").iterdir()]
        home = [path for path in server.log.with_suffix(".home").rglob("*") if path.is_file()]
        metrics = [path for path in home if "prometheus" in str(path)]
    yield from checks
    yield Check(f"{len(orphans)} processes left", "0", not orphans)
    yield Check(
        f"files left: {len(left)} temporary {left or ''}, {len(home) - len(metrics)} in BentoML's home, "
        f"{len(metrics)} in its folder for metrics, which its next start empties",
        "0 but for the metrics'",
        not left and len(home) == len(metrics),
    )


async def _sigterm(scene: Scene, server: Server, slow_url: str) -> list[Check]:
    traffic, balancer = Traffic(server.port), Traffic(server.port)
    ready = True
    clients = asyncio.ensure_future(traffic.in_turn(CLIENTS, scene.requests(), lambda: ready))
    await asyncio.sleep(3)
    slow = [
        asyncio.ensure_future(traffic.ask(post("/embed", {"url": f"{slow_url}?{number}"})))
        for number in range(8)
    ]
    await asyncio.sleep(1)
    await balancer.ask(get("/readyz"))
    server.process.send_signal(signal.SIGTERM)
    begin_s = time.monotonic()
    while ready:  # as a load balancer does, which sends nothing more when it fails
        probe = await balancer.ask(get("/readyz"))
        ready = probe.status == 200
        await asyncio.sleep(0.1)
    unready_s = time.monotonic() - begin_s
    in_flight = len(traffic.under_way)
    await asyncio.gather(clients, *slow)
    status = await asyncio.to_thread(server.process.wait, 2 * REQUEST_TIMEOUT_S)
    took_s = time.monotonic() - begin_s
    failed = [answer for answer in traffic.answers if answer.status != 200]
    return [
        Check(
            f"readiness {probe.status or probe.failure} after {unready_s:.1f} s",
            "503 before anything else fails",
            probe.status == 503,
        ),
        Check(
            f"{len(failed)} of {len(traffic.answers)} requests failed {dict(_wrong(failed)) or ''}, "
            f"{in_flight} were in flight when readiness did",
            f"0, {len(slow)} at least",
            not failed and in_flight >= len(slow),
        ),
        Check(
            f"exit {status} after {took_s:.1f} s",
            f"0 within {REQUEST_TIMEOUT_S:.0f} s",
            status == 0 and took_s < REQUEST_TIMEOUT_S,
        ),
    ]


def slow_origin(scene: Scene) -> Iterable[Check]:
    """10 % of the URLs on an origin that takes 20 s"""
    per_s = scene.usual_rate
    with scene.server() as server:
        return uvloop.run(_slow_origin(scene, server, per_s))


async def _slow_origin(scene: Scene, server: Server, per_s: float) -> Iterable[Check]:
    seconds, rounds = 10.0, 7  # a p99 is a round's five slowest: three rounds' median was 0.9 to 1.2
    others: dict[bool, dict[int, list[Answer]]] = {False: {}, True: {}}
    slow: list[Answer] = []

    async def measured(number: int, *, beside_slow: bool) -> None:
        moments = at_random(0.9 * per_s, seconds, seed=number)  # the same ones with and without
        others[beside_slow][number] = await Traffic(server.port).at(moments, scene.requests())

    async def beside_slow(*numbers: int) -> None:
        lead_s = FETCH_TIMEOUT_S  # until as many wait as ever will
        moments = at_random(0.1 * per_s, lead_s + len(numbers) * seconds)
        background = asyncio.ensure_future(Traffic(server.port).at(moments, scene.slow_requests()))
        await asyncio.sleep(lead_s)
        for number in numbers:
            await measured(number, beside_slow=True)
        slow.extend(await background)

    for number in range(0, rounds - 1, 2):
        await measured(number, beside_slow=False)
        await beside_slow(number, number + 1)
        await measured(number + 1, beside_slow=False)
    await measured(rounds - 1, beside_slow=False)
    await beside_slow(rounds - 1)
    p99_ms = {
        beside: [_percentile(others[beside][number], 99) for number in range(rounds)] for beside in others
    }
    ratio = statistics.median(b / a for a, b in zip(p99_ms[False], p99_ms[True], strict=True))
    together = {beside: list(itertools.chain(*others[beside].values())) for beside in others}
    p50_ms = {beside: _percentile(together[beside], 50) for beside in together}
    wrong = _wrong([*together[False], *together[True]], 200)
    codes = _wrong(slow)
    return [
        Check(
            f"{0.9 * per_s:.0f}/s of others: p50 {p50_ms[False]:.0f} ms without and {p50_ms[True]:.0f} ms "
            f"with, p99 {_listed(p99_ms[False])} and {_listed(p99_ms[True])}, ratio (median) {ratio:.2f}",
            "at most 1.2",
            ratio <= 1.2,
        ),
        Check(f"of the others failed: {dict(wrong) or 'none'}", "none", not wrong),
        Check(f"the slow ones: {dict(codes)}", "fetch_timeout", codes.keys() == {"424 fetch_timeout"}),
    ]


def shed(scene: Scene) -> Iterable[Check]:
    """twice as many requests as can be answered, for a minute"""
    seen = scene.overload
    good = [answer for answer in seen.answers if answer.status == 200]
    refused = [answer for answer in seen.answers if answer.status == 429]
    goodput = rate(seen.answers, seen.begin_s, seen.begin_s + seen.seconds)
    wrong = _wrong(seen.answers, 200, 429)
    asked_s = max(answer.sent_s for answer in seen.answers) - seen.begin_s
    yield Check(
        f"{len(seen.answers)} asked for in {asked_s:.1f} s",
        f"{seen.seconds + 1:.0f} s: the client keeps up",
        asked_s <= seen.seconds + 1,
    )
    yield Check(
        f"goodput {goodput:.0f}/s of {seen.peak:.0f}/s, {seen.peaks[0]:.0f} before and "
        f"{seen.peaks[1]:.0f} after ({goodput / seen.peak:.0%})",
        "at least 90 %",
        goodput >= 0.9 * seen.peak,
    )
    yield Check(
        f"accepted: {len(good)}, p50 {_percentile(good, 50):.0f} ms, p99 {_percentile(good, 99):.0f} ms",
        f"p99 at most {CLIENT_TIMEOUT_S:g} s, when BentoML's own client gives up",
        _percentile(good, 99) <= 1000 * CLIENT_TIMEOUT_S,
    )
    yield Check(
        f"shed: {len(refused)}, p50 {_percentile(refused, 50):.0f} ms, "
        f"p99 {_percentile(refused, 99):.0f} ms; the client itself takes {seen.client_cpu:.0%} of a core",
        "p99 less than 50 ms",
        _percentile(refused, 99) < 50,
    )
    yield Check(
        f"{sum('retry-after' not in answer.headers for answer in refused)} of them without Retry-After",
        "0",
        all("retry-after" in answer.headers for answer in refused),
    )
    yield Check(f"anything else: {dict(wrong) or 'none'}", "none", not wrong)


def health(scene: Scene) -> Iterable[Check]:
    """health and metrics during that"""
    for path in (*HEALTH, "/metrics"):
        probes = [answer for asked, answer in scene.overload.probes if asked == path]
        slowest_ms = max(answer.ms for answer in probes)
        wrong = _wrong(probes, 200)
        yield Check(
            f"{path}: {len(probes)} times, p50 {_percentile(probes, 50):.0f} ms, "
            f"at most {slowest_ms:.0f} ms, not 200: {dict(wrong) or 'none'}",
            "200 in less than 200 ms",
            slowest_ms < 200 and not wrong,
        )


def _overload(scene: Scene, server: Server, *, seconds: float) -> Overload:
    probes: list[tuple[str, Answer]] = []

    async def probe(path: str) -> None:
        # Each on a connection of its own, as orchestrators ask.
        probes.append((path, await Traffic(server.port).ask(get(path, closes=True))))

    async def probing() -> None:
        # The metrics once a second, which is often: to write them takes 20 ms, of the time for images.
        paths = itertools.cycle([*HEALTH * 3, "/metrics"])
        # At its time, whether or not the others are answered: one that hangs must be seen, and hide none.
        asked = []
        for _ in range(int(10 * seconds)):
            await asyncio.sleep(0.1)
            asked.append(asyncio.ensure_future(probe(next(paths))))
        await asyncio.gather(*asked)

    async def overloaded(per_s: float) -> list[Answer]:
        answers, _ = await asyncio.gather(
            Traffic(server.port).at(at_random(per_s, seconds), scene.requests()), probing()
        )
        return answers

    before = scene.peak(server)
    gc.disable()  # it takes 0.3 s, which would be counted as the service's
    begin_s, cpu_s = time.monotonic(), time.process_time()
    answers = uvloop.run(overloaded(2 * before))
    gc.enable()
    cpu = (time.process_time() - cpu_s) / (time.monotonic() - begin_s)
    return Overload((before, scene.peak(server)), answers, probes, begin_s, seconds, cpu)


def connections(scene: Scene) -> Iterable[Check]:
    """10 000 connections at once, a request on each"""
    with scene.server() as server:
        return uvloop.run(_connections(scene, server, 10_000))


async def _connections(scene: Scene, server: Server, count: int) -> Iterable[Check]:
    before_ms = await _lone_ms(scene, server)
    with _peak_memory(server) as memory:
        traffic, requests = Traffic(server.port), scene.requests()
        # Several addresses, as one has only as many ports.
        opened = await asyncio.gather(
            *(traffic.connect(f"127.0.0.{1 + number // 5000}") for number in range(count))
        )
        begin_s = time.monotonic()
        answers = await asyncio.gather(*(traffic.ask(next(requests), over=each) for each in opened))
        took_s = time.monotonic() - begin_s
    after_ms = await _lone_ms(scene, server)
    statuses = Counter(answer.status for answer in answers)
    wrong = _wrong(answers, 200, 429, 503, describe=_in_full)
    return [
        Check(
            f"{len(opened)} open at once, answered in {took_s:.1f} s: {dict(statuses)}, "
            f"anything else: {dict(wrong) or 'none'}",
            "only 200, 429 and 503, no reset, and some 200",
            not wrong and statuses[200] > 0,
        ),
        Check(
            f"a worker's memory {memory.before / 1e6:.0f} MB before, {memory.peak / 1e6:.0f} MB at most",
            f"at most {2 * WORKER_BYTES / 1e6:.0f} MB, twice what settings count a worker with",
            memory.peak <= 2 * WORKER_BYTES,
        ),
        Check(
            f"a lone request afterwards {after_ms:.0f} ms, before {before_ms:.0f} ms",
            "at most twice as long",
            after_ms <= 2 * before_ms,
        ),
    ]


async def _lone_ms(scene: Scene, server: Server) -> float:
    """The median of ten requests that are alone; not a number when one fails, which no bar lets pass."""
    traffic, requests = Traffic(server.port), scene.requests()
    answers = [await traffic.ask(next(requests)) for _ in range(10)]
    return math.nan if _wrong(answers, 200) else _percentile(answers, 50)


def bodies(scene: Scene) -> Iterable[Check]:
    """bodies that are too much"""
    megabyte = b"x" * 1_000_000
    urls = b",".join([b'"http://example.com/1.jpg"'] * 1_000_000)
    form = head("/embed", 400_000_000, media_type=FORM) + FORM_START
    cases: dict[str, tuple[bytes, Sequence[bytes], int]] = {
        "400 MB": (head("/embed", 400_000_000), [megabyte] * 400, 413),
        "400 MB in chunks": (head("/embed", None), [b"F4240\r\n" + megabyte + b"\r\n"] * 400, 413),
        "200 000 deep": (*_sized("/embed", b'{"url":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), 400),
        "10^6 URLs": (*_sized("/embed_batch", b'{"urls":[' + urls + b"]}"), 400),
        "400 MB in a form": (form, [megabyte] * 400, 413),
        "400 MB in a form, in chunks": (
            head("/embed", None, media_type=FORM) + b"%x\r\n%b\r\n" % (len(FORM_START), FORM_START),
            [b"F4240\r\n" + megabyte + b"\r\n"] * 400,
            422,  # the file is over its own limit before the body is
        ),
        "10^7 empty arrays": (*_sized("/embed_batch", b'{"urls":[' + b"[]," * 10_000_000 + b"[]]}"), 400),
    }
    with scene.server() as server:
        for name, (top, pieces, status) in cases.items():
            with _peak_memory(server) as memory:
                upload = _upload(server.port, top, pieces)
            yield Check(
                f"{name}: {upload.status} after {upload.answer_s:.2f} s, {upload.sent_before / 1e6:.1f} MB; "
                f"{'closed' if upload.closed else 'open'} after {upload.sent / 1e6:.1f} MB; "
                f"memory +{memory.growth / 1e6:.0f} MB",
                f"{status}, +{2 * BODY_LIMIT_BYTES / 1e6:.0f} MB",
                upload.status == status
                and upload.answer_s < 2
                and memory.growth < 2 * BODY_LIMIT_BYTES
                and upload.sent <= BODY_LIMIT_BYTES + LINGER_BYTES + SOCKET_BUFFERS_BYTES,
            )


@dataclass(frozen=True)
class _Upload:
    status: int
    answer_s: float
    """From the first byte of the body."""
    sent_before: int
    """Bytes, until the answer was there."""
    sent: int
    """Bytes, in all: on after the answer, for as long as they were taken."""
    closed: bool
    """Before all was sent."""


def _upload(port: int, top: bytes, pieces: Sequence[bytes]) -> _Upload:
    """Sends all `pieces`, whatever is answered, until the connection is closed."""
    answer, answer_s, sent_before, sent, closed = b"", 0.0, 0, 0, False
    with socket.create_connection(("127.0.0.1", port), timeout=REQUEST_TIMEOUT_S) as connection:
        begin_s = time.monotonic()
        connection.sendall(top)
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:
                closed = True
                break
            sent += len(piece)
            if not answer and select.select([connection], [], [], 0)[0]:
                answer, answer_s, sent_before = _received(connection), time.monotonic() - begin_s, sent
        if not answer:
            answer, answer_s, sent_before = _received(connection), time.monotonic() - begin_s, sent
    status = int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else 0
    return _Upload(status, answer_s, sent_before, sent, closed)


def _received(connection: socket.socket) -> bytes:
    with suppress(OSError):
        return connection.recv(65536)
    return b""


def _sized(path: str, body: bytes) -> tuple[bytes, list[bytes]]:
    return head(path, len(body)), [body[at : at + 1_000_000] for at in range(0, len(body), 1_000_000)]


def slow_clients(scene: Scene) -> Iterable[Check]:
    """200 half-sent heads, and 200 bodies at a byte a second, half of them forms"""
    per_s = scene.usual_rate
    with scene.server() as server:
        return uvloop.run(_slow_clients(scene, server, per_s, count=200))


async def _slow_clients(scene: Scene, server: Server, per_s: float, *, count: int) -> Iterable[Check]:
    seconds = BODY_TIMEOUT_S - 2

    async def p99_ms(seed: int) -> float:
        answers = await Traffic(server.port).at(at_random(per_s, seconds, seed=seed), scene.requests())
        wrong.update(_wrong(answers, 200))
        return _percentile(answers, 99)

    async def beside_drips(seed: int) -> float:
        dripping = [
            asyncio.ensure_future(_drip(server.port, form=number % 2 == 0)) for number in range(count)
        ]
        found_ms = await p99_ms(seed)
        drips.extend(await asyncio.gather(*dripping))
        return found_ms

    async def beside_halves_and_drips(*seeds: int) -> None:
        halves = [asyncio.ensure_future(_half_a_head(server.port)) for _ in range(count)]
        with_ms.extend([await beside_drips(seed) for seed in seeds])
        heads.extend(await asyncio.gather(*halves))

    wrong: Counter[str] = Counter()
    drips: list[tuple[bytes, float]] = []
    heads: list[tuple[bytes, float]] = []
    without_ms: list[float] = []
    with_ms: list[float] = []
    for seed in (0, 2):  # a p99 is a round's three slowest: one round says little
        without_ms.append(await p99_ms(seed))
        await beside_halves_and_drips(seed, seed + 1)
        without_ms.append(await p99_ms(seed + 1))
    ratio = statistics.median(b / a for a, b in zip(without_ms, with_ms, strict=True))
    return [
        _closed("bodies", drips, BODY_TIMEOUT_S + LINGER_S + 2),
        _closed("heads", heads, HEAD_TIMEOUT_S + LINGER_S + 2),
        Check(
            f"{per_s:.0f}/s of others: p99 {_listed(without_ms)} without and {_listed(with_ms)} with, "
            f"ratio (median) {ratio:.2f}, failed: {dict(wrong) or 'none'}",
            "at most 1.2, none",
            ratio <= 1.2 and not wrong,
        ),
    ]


def _closed(what: str, clients: Sequence[tuple[bytes, float]], limit_s: float) -> Check:
    """Whether all `clients`, of whom there are what came and after how long, got a 400 within `limit_s`."""
    answered = Counter(answer[9:12].decode() for answer, _ in clients)
    longest_s = max(lived_s for _, lived_s in clients)
    return Check(
        f"{what}: answered {dict(answered)}, closed after {longest_s:.1f} s at most",
        f"400, {limit_s:.0f} s",
        set(answered) == {"400"} and longest_s <= limit_s,
    )


async def _half_a_head(port: int) -> tuple[bytes, float]:
    """Sends a part of a head and waits until the connection is closed; what came, and after how long."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begin_s = time.monotonic()
    writer.write(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-")
    answer = await asyncio.wait_for(reader.read(), REQUEST_TIMEOUT_S)
    lived_s = time.monotonic() - begin_s
    writer.close()
    return answer, lived_s


async def _drip(port: int, *, form: bool) -> tuple[bytes, float]:
    """Sends a byte of a body each second until the connection is closed; what came, and after how long."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begin_s = time.monotonic()
    answer = bytearray()

    async def reading() -> None:
        with suppress(OSError):  # a reset, of a byte that came too late
            while chunk := await reader.read(65536):
                answer.extend(chunk)

    until_closed = asyncio.ensure_future(reading())
    writer.write(head("/embed", 1000, media_type=FORM) + FORM_START if form else head("/embed", 1000))
    while not until_closed.done() and time.monotonic() - begin_s < REQUEST_TIMEOUT_S:
        writer.write(b" ")
        await asyncio.wait({until_closed}, timeout=1)
    lived_s = time.monotonic() - begin_s
    writer.close()
    await until_closed
    return bytes(answer), lived_s


def gone(scene: Scene) -> Iterable[Check]:
    """1000 clients that go away"""
    places, clients = 256, 1000
    batch = {"urls": ["ftp://x"] * places}  # which takes its places, and no more
    settings = {"EMBEDDER_WORKERS": "1", "EMBEDDER_MAX_URLS": str(places)}
    with Origin() as origin, scene.server(origin.port, warm=False, **settings) as server:
        origin.raw("/photo", says(with_length(scene.photo())))
        origin.raw("/hang", hang)
        (worker,) = server.workers()

        def all_places_are_free() -> bool:
            return server.post("/embed_batch", batch).status_code == 200

        def nothing_is_open() -> bool:
            return not server.client_ports(worker) and not origin.connections.open

        _go_away(server, origin, 8)
        until(all_places_are_free, FETCH_TIMEOUT_S + 10)
        until(nothing_is_open)
        before = server.descriptors()
        _go_away(server, origin, clients)
        begin_s, most = time.monotonic(), server.descriptors()
        free = _comes_about(all_places_are_free, FETCH_TIMEOUT_S + 10)
        places_s = time.monotonic() - begin_s
        _comes_about(lambda: server.descriptors() <= before, 10)
        settled_s, after = time.monotonic() - begin_s, server.descriptors()
    yield Check(
        f"all {places} places free {places_s:.1f} s after the last one",
        f"{GIVEN_UP_S:g} s: nothing goes on for somebody who has left",
        free and places_s <= GIVEN_UP_S,
    )
    yield Check(
        f"descriptors {before} before, {most} at the end, {after} after {settled_s:.1f} s",
        "no more than before",
        after <= before,
    )


def _go_away(server: Server, origin: Origin, count: int) -> None:
    """So many clients that leave: before an answer, in their body, in their head."""
    whole, chance = post("/embed", {"url": origin.url("/hang")}), random.Random(0)
    for number in range(count):
        if number % 4 < 2:  # at any moment: before it is fetched, while it is, while it is decoded
            url = origin.url(f"/{('hang', 'photo')[number % 4]}?{number}")
            go_away(server.port, url, after_s=chance.uniform(0, 0.03))
            continue
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(whole[: len(whole) - 10 if number % 4 == 2 else 40])


def _comes_about(condition: Callable[[], object], timeout_s: float) -> bool:
    try:
        until(condition, timeout_s)
    except AssertionError:
        return False
    return True


def poison(scene: Scene) -> Iterable[Check]:
    """a bad image among 32"""
    kinds = {name: pictures.hostile()[name] for name in ("cut", "bomb")}
    with Origin() as origin, scene.server(origin.port) as server:
        good = []
        for number in range(31):
            path = f"/good/{number}.jpg"
            origin.serve(path, pictures.encoded(pictures.photo(200 + 10 * number, 300), "JPEG"))
            good.append(origin.url(path))
        for name, data in kinds.items():
            origin.serve(f"/bad/{name}", data)
        alone = np.array(server.post("/embed_batch", {"urls": good}).json()["embeddings"])
        worst, codes = 0.0, []
        for name in (*kinds, "missing"):
            answer = server.post(
                "/embed_batch", {"urls": [*good[:16], origin.url(f"/bad/{name}"), *good[16:]]}
            )
            content = answer.json()
            codes.append([(error["index"], error["code"]) for error in content["errors"]])
            vectors = [vector for vector in content["embeddings"] if vector is not None]
            same = len(vectors) == 31 and content["embeddings"][16] is None
            worst = max(worst, float(np.abs(np.array(vectors) - alone).max()) if same else 1.0)
    yield Check(
        f"errors (index, code): {codes}",
        "exactly one each, that of index 16",
        [[index for index, _ in found] for found in codes] == [[16]] * len(codes),
    )
    yield Check(f"the 31 others: at most {worst:.1e} from what they are without it", "1e-5", worst <= 1e-5)


# What was measured


def _percentile(answers: Sequence[Answer], percent: float) -> float:
    """Of their times in milliseconds."""
    return float(np.percentile([answer.ms for answer in answers], percent)) if answers else math.nan


def _listed(times_ms: Sequence[float]) -> str:
    return ", ".join(f"{ms:.0f}" for ms in times_ms) + " ms"


def _wrong(
    answers: Sequence[Answer], *right: int, describe: Callable[[Answer], str] | None = None
) -> Counter[str]:
    """How often what came that is not one of the `right` statuses."""
    return Counter((describe or _in_short)(answer) for answer in answers if answer.status not in right)


def _in_full(answer: Answer) -> str:
    return f"{answer.status} after {answer.ms / 1000:.0f} s: {answer.failure or answer.body[:150]!r}"


def _in_short(answer: Answer) -> str:
    if answer.failure:
        return answer.failure
    try:
        return f"{answer.status} {json.loads(answer.body)['code']}"
    except (ValueError, KeyError, TypeError):
        return str(answer.status)


@dataclass
class _Memory:
    """Of the workers, resident, in bytes, while it is watched."""

    first: dict[int, int]
    most: dict[int, int]

    @property
    def before(self) -> int:
        return max(self.first.values())

    @property
    def peak(self) -> int:
        return max(self.most.values())

    @property
    def growth(self) -> int:
        return max(self.most[worker] - self.first[worker] for worker in self.first)


@contextmanager
def _peak_memory(server: Server) -> Iterator[_Memory]:
    first = server.resident_bytes()
    memory, over = _Memory(first, dict(first)), threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            for worker, size in server.resident_bytes().items():
                memory.most[worker] = max(size, memory.most.get(worker, 0))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield memory
    finally:
        over.set()
        watcher.join()


ROWS: dict[str, Callable[[Scene], Iterable[Check]]] = {
    "killed": killed,
    "sigterm": sigterm,
    "slow_origin": slow_origin,
    "shed": shed,
    "health": health,
    "connections": connections,
    "bodies": bodies,
    "slow_clients": slow_clients,
    "gone": gone,
    "poison": poison,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.overload", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--only", default=",".join(ROWS), metavar="ROW,...", help=f"of {', '.join(ROWS)}")
    names = parser.parse_args().only.split(",")
    if unknown := set(names) - ROWS.keys():
        parser.error(f"there is no row {', '.join(sorted(unknown))}")
    if shutil.which("nginx") is None:
        parser.error("nginx is not installed: apt-get install nginx-light")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    busy, cores = os.getloadavg()[0], available_cores()
    warning = ": too much" if busy > cores / 2 else ""
    print(f"overload: {cores} cores, load average {busy:.1f} before{warning}", flush=True)
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos = make_photos(folder / "photos" / SIZE, SIZE)
        with Nginx(folder / "photos", folder, slow_s=20) as nginx:
            scene = Scene(
                folder, saved_model(folder / "store", save_pth(folder / "weights.pth")), len(photos), nginx
            )
            for name in names:
                checks = _checks(ROWS[name], scene)
                passed = all(check.passed for check in checks)
                failed += [] if passed else [name]
                print(_line(name, checks, passed), flush=True)
    print("overload:", f"failed: {', '.join(failed)}" if failed else "passed")
    return bool(failed)


def _checks(row: Callable[[Scene], Iterable[Check]], scene: Scene) -> list[Check]:
    try:
        return list(row(scene))
    except (AssertionError, ArithmeticError, LookupError, OSError, RuntimeError) as exc:
        return [Check(f"{type(exc).__name__}: {exc}", "to be measured", False)]


def _line(name: str, checks: Sequence[Check], passed: bool) -> str:
    found = "; ".join(f"{c.figure} [{c.bar}{'' if c.passed else ': FAIL'}]" for c in checks)
    return f"{'pass' if passed else 'FAIL'} {name} ({ROWS[name].__doc__}): {found}"


if __name__ == "__main__":
    sys.exit(main())
