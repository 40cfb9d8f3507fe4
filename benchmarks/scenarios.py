"""What is done to the sides, one at a time, by turns."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import ceiling, load
from benchmarks.origin import SLOW_S, Origin
from benchmarks.results import Lone, Results, Run, Slow
from benchmarks.servers import Server, Setting, Side

BURST = 64
BATCH_URLS = 64
# A request for a batch is the work of one worker: with two for each, none of them waits for a request.
BATCH_CLIENTS_PER_WORKER = 2
IDLE_S = 2.0
LONE_WINDOW_S = 1.0
LONE_PAUSE_S = 0.05
# For the slow origin: each side at the same share of its own most, so that nothing waits for want of cores.
SLOW_LOAD = 0.6
SLOW_SHARE = 0.1
PACE_S = 1.0


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of one run, at least; see `run_s` and `load.run`."""
    connections: tuple[int, ...]
    everywhere: tuple[int, ...]
    """Of `connections`, those that are measured at all sizes, not just at the first."""
    warm_s: float
    ceiling_batches: tuple[int, ...]
    """The ceiling is the better of these."""
    batches: int
    """For each client."""
    slow_s: float
    slow_for_all: bool
    """Whether the other sides have the slow origin too, once."""
    starts: int
    job_rows: Mapping[str, tuple[int, int]]
    """Of a catalogue: ours, and the others', which take longer; by size. Other sizes have none."""

    def cells(self, sizes: list[str]) -> Iterator[tuple[str, int]]:
        for size, connections in itertools.product(sizes, self.connections):
            if size == sizes[0] or connections in self.everywhere:
                yield size, connections

    def run_s(self, size: str, connections: int) -> float:
        """Long enough for the slowest side to answer each connection a few times."""
        return self.seconds * (2 if size == "12MP" else 1) * (2 if connections > 16 else 1)


FULL = Plan(
    rounds=3,
    seconds=4,
    connections=(1, 16, 64),
    everywhere=(1, 16, 64),
    warm_s=2,
    ceiling_batches=(1, 8),
    batches=5,
    slow_s=20,
    slow_for_all=True,
    starts=3,
    job_rows={"640": (4000, 1000), "12MP": (800, 300)},
)
QUICK = Plan(
    rounds=2,
    seconds=4,
    connections=(16,),
    everywhere=(16,),
    warm_s=1,
    ceiling_batches=(1,),
    batches=2,
    slow_s=8,
    slow_for_all=False,
    starts=1,
    job_rows={"640": (1000, 300), "12MP": (200, 80)},
)


@dataclass
class Bench:
    results: Results
    plan: Plan
    origin: Origin
    photos: dict[str, list[Path]]
    models: dict[str, Path]
    """The service's network, by precision."""
    sides: Sequence[Side]
    setting: Setting

    def run(self) -> None:
        """Every side once a round, forwards and backwards by turns: what drifts, drifts for all.

        Each is started for its turn. Nothing else runs: some sides use the processor even when idle, and held
        back by a signal, some take their workers for dead.
        """
        for number in range(self.plan.rounds):
            for side in self.sides[:: -1 if number % 2 else 1]:
                _say(f"round {number + 1} of {self.plan.rounds}: {side.label}")
                with Server(side, self.setting) as server:
                    # The service's own p99 varies by half from run to run; of the others one is enough.
                    self._turn(server, with_slow=self.plan.slow_for_all and number == 0)

    def _turn(self, server: Server, *, with_slow: bool) -> None:
        name = server.side.name
        server.wait_for_an_answer(next(self._urls(next(iter(self.photos)))))
        for size, connections in self.plan.cells(list(self.photos)):
            target = self._target(server, size)
            load.warm(target, connections=connections, seconds=self.plan.warm_s)
            seconds = self.plan.run_s(size, connections)
            self.results.runs.append(self._run(server, size, connections, seconds))
            if connections == 16 and name in self.models:
                self._ceiling(name, size)
        self._lone(server)
        if name in self.models:
            self._batches(server)
        if name in self.models or with_slow:
            self._slow(server)

    def _target(self, server: Server, size: str, *, slow: bool = False) -> load.Target:
        return server.target(self.origin.prefix(size, slow=slow), len(self.photos[size]))

    def _run(self, server: Server, size: str, connections: int, seconds: float) -> Run:
        used_s, origin_s = server.processes.cpu_s(), self.origin.processes.cpu_s()
        seen = load.run(self._target(server, size), connections=connections, seconds=seconds)
        used_s, origin_s = server.processes.cpu_s() - used_s, self.origin.processes.cpu_s() - origin_s
        return Run(
            side=server.side.name,
            size=size,
            connections=connections,
            rate=seen.rate,
            p50_ms=seen.p50_ms,
            p99_ms=seen.p99_ms,
            cpu_ms=1000 * used_s / seen.requests,
            origin_cpu_ms=1000 * origin_s / seen.requests,
        )

    def _ceiling(self, precision: str, size: str) -> None:
        rates = [self._bare(precision, size, "--batch", str(batch)) for batch in self.plan.ceiling_batches]
        self.results.ceiling.setdefault(precision, {}).setdefault(size, []).append(max(rates))

    def _bare(self, precision: str, size: str, *options: str) -> float:
        """The first of what `benchmarks.ceiling` says."""
        return ceiling.said(
            self.models[precision],
            precision,
            self.photos[size][0].parent,
            *("--processes", str(self.results.workers)),
            *("--seconds", str(self.plan.seconds), *options),
        )[0]

    def _lone(self, server: Server) -> None:
        name, size = server.side.name, next(iter(self.photos))
        time.sleep(IDLE_S)
        idle_ms = self._alone_ms(server, size)
        with ThreadPoolExecutor(BURST) as clients:
            list(clients.map(server.embed, itertools.islice(self._urls(size), BURST)))
        self.results.lone.setdefault(name, []).append(Lone(idle_ms, self._alone_ms(server, size)))
        if name in self.models:
            self.results.bare_ms.setdefault(name, []).append(self._bare(name, size, "--alone"))

    def _alone_ms(self, server: Server, size: str) -> float:
        """The median of requests that are sent alone, for a second."""
        urls, times_ms = self._urls(size), []
        deadline = time.perf_counter() + LONE_WINDOW_S
        while (start := time.perf_counter()) < deadline:
            server.embed(next(urls))
            times_ms.append(1000 * (time.perf_counter() - start))
            time.sleep(LONE_PAUSE_S)
        return statistics.median(times_ms)

    def _urls(self, size: str) -> Iterator[str]:
        for number in itertools.count(time.monotonic_ns()):
            yield f"{self.origin.prefix(size)}{number % len(self.photos[size])}.jpg?n={number}"

    def _batches(self, server: Server) -> None:
        size = next(iter(self.photos))
        singles = load.run(self._target(server, size), connections=16, seconds=2 * self.plan.seconds)
        pair = (self._batch_rate(server, size), singles.rate)
        self.results.batches.setdefault(server.side.name, []).append(pair)

    def _batch_rate(self, server: Server, size: str) -> float:
        """Images per second of some clients that post one batch after the other."""
        clients = BATCH_CLIENTS_PER_WORKER * self.results.workers
        urls = self._urls(size)
        batches = [list(itertools.islice(urls, BATCH_URLS)) for _ in range(clients * self.plan.batches)]
        with ThreadPoolExecutor(clients) as pool:
            start = time.perf_counter()
            images = sum(pool.map(server.embed_batch, batches))
            return images / (time.perf_counter() - start)

    def _slow(self, server: Server) -> None:
        name, size = server.side.name, next(iter(self.photos))
        rate = SLOW_LOAD * (self.results.rate(name, size, 16) or 0)
        fast = self._others(server, size, rate, slow=False)
        slow = self._others(server, size, rate, slow=True)
        self.results.slow.setdefault(name, []).append(
            Slow(rate * (1 - SLOW_SHARE), fast.p50_ms, fast.p99_ms, slow.p50_ms, slow.p99_ms)
        )

    def _others(self, server: Server, size: str, rate: float, *, slow: bool) -> load.Load:
        """What requests for photos on the fast origin saw, beside a tenth for the same ones on another."""
        # A connection asks about once in PACE_S, or in PACE_S and the time that the slow origin takes.
        others = replace(self._target(server, size), pace_ms=1000 * PACE_S)
        tenth = replace(self._target(server, size, slow=slow), pace_ms=1000 * PACE_S)
        each_s = PACE_S + (SLOW_S if slow else 0)
        connections = max(1, round(rate * SLOW_SHARE * each_s))
        background = load.start(tenth, connections=connections, seconds=self.plan.slow_s + SLOW_S + 1)
        time.sleep(SLOW_S + 1)  # until as many slow ones are under way as there will be
        seen = load.run(others, connections=round(rate * (1 - SLOW_SHARE) * PACE_S), seconds=self.plan.slow_s)
        load.finish(background)
        return seen


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)
