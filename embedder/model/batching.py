"""Batches that wait for nothing but a free core.

BentoML's own batcher holds a request back in the hope of company, for about as long as recent batches waited:
after a burst of 64 a lone request took 222 ms instead of 19, ten seconds later still 236. Here what is queued
goes to the model as soon as a core is free. Under load the queue fills while a batch is computed, and that
alone makes the next batch larger; a lone request goes at once.

    request ─► queue ─┐
    request ─► queue ─┴─► lane: a batch for each free core, the longest wait first ─► model
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedder.errors import Draining, Overloaded
from embedder.metrics.measures import Metrics
from embedder.runtime.cores import Cores

Array: TypeAlias = NDArray[Any]  # Any: the batcher does not care what the rows are
Infer: TypeAlias = Callable[[Sequence[Array]], Awaitable[Sequence[Array]]]
"""Some requests' rows → as many results, with as many rows."""


async def together(encode: Callable[[Array], Awaitable[Array]], batch: Sequence[Array]) -> Sequence[Array]:
    """What `encode` makes of all rows of `batch` together, for each request its own."""
    results = await encode(np.concatenate(batch))
    return np.split(results, np.cumsum([len(rows) for rows in batch])[:-1])


WAITED_S: ContextVar[float] = ContextVar("waited_s")
"""In the task of a request that has its rows' results: how long the first of them waited for a batch."""


@dataclass(eq=False)
class _Job:
    """One request's rows on their way through the model, in one batch or several."""

    rows: Array
    result: asyncio.Future[Array]
    enqueued_s: float
    """On the clock of `perf_counter`: the event loop's counts in whole milliseconds."""
    began_s: float = 0.0
    taken: int = 0
    """How many of the rows, the first ones, are on their way or back."""
    results: dict[int, Array] = field(default_factory=dict)
    """Results of some of the rows, by the index of their first."""

    def finish(self, first: int, result: Array) -> None:
        """Takes the `result` of the rows from `first` on."""
        self.results[first] = result
        if not self.result.done() and sum(map(len, self.results.values())) == len(self.rows):
            parts = [self.results[first] for first in sorted(self.results)]
            self.result.set_result(parts[0] if len(parts) == 1 else np.concatenate(parts))


@dataclass(frozen=True)
class _Part:
    """Those of a job's rows that go in one batch."""

    job: _Job
    first: int
    rows: Array


class Lane:
    """The way to the model: a batch for each free core, whichever queue it is from."""

    def __init__(self, cores: Cores, metrics: Metrics) -> None:
        self._cores = cores
        self.metrics = metrics
        self._batchers: list[Batcher] = []
        self._batches: set[asyncio.Task[None]] = set()

    def join(self, batcher: Batcher) -> None:
        self._batchers.append(batcher)

    def dispatch(self) -> None:
        """Send batches for as long as a core is free and anything waits."""
        while waiting := [batcher for batcher in self._batchers if batcher.waiting_since_s() is not None]:
            batcher = min(waiting, key=lambda batcher: batcher.waiting_since_s() or 0.0)
            cores = self._cores.take(up_to=batcher.waiting_rows())
            if not cores:
                return
            batch = asyncio.get_running_loop().create_task(batcher.run(batcher.take(cores=cores)))
            self._cores.give_back(cores - 1)
            self._batches.add(batch)
            batch.add_done_callback(self._done)

    def _done(self, batch: asyncio.Task[None]) -> None:
        self._batches.remove(batch)
        self._cores.give_back()
        self.dispatch()


class Batcher:
    """One queue. It is bounded by the pipeline: a request's images hold their places until it is answered.

    A request that was given up, by its client or by its timeout, is not computed.
    """

    def __init__(self, lane: Lane, *, max_batch_size: int, max_latency_s: float) -> None:
        """A request that waits for longer than `max_latency_s` gets Overloaded."""
        self._lane = lane
        self._max_batch_size = max_batch_size
        self._max_latency_s = max_latency_s
        self._queue: deque[_Job] = deque()
        self._infer: Infer
        lane.join(self)

    def __call__(self, infer: Infer) -> Callable[[Array], Awaitable[Array]]:
        """A function of one request's rows; `infer` must be the same at each call.

        The function raises Overloaded, or what `infer` raised for the whole batch.
        """
        self._infer = infer
        return self._submit

    async def _submit(self, rows: Array) -> Array:
        if len(rows) == 0:  # an error, or embeddings that are known: answered without queueing, and no batch
            return np.empty(0)
        job = _Job(rows, asyncio.get_running_loop().create_future(), perf_counter())
        self._queue.append(job)
        self._lane.dispatch()
        result = await job.result
        WAITED_S.set(job.began_s - job.enqueued_s)
        return result

    def waiting_since_s(self) -> float | None:
        """When the oldest job that is still wanted came, on the clock of `perf_counter`; None without one."""
        while self._queue:
            job = self._queue[0]
            if job.result.done():  # cancelled
                self._queue.popleft()
            elif perf_counter() - job.enqueued_s > self._max_latency_s:
                self._queue.popleft()
                job.result.set_exception(Overloaded(f"waited {self._max_latency_s:g} s for the model"))
            else:
                return job.enqueued_s
        return None

    def waiting_rows(self) -> int:
        """How many are to be computed, with those of requests that were given up meanwhile."""
        return sum(len(job.rows) - job.taken for job in self._queue)

    def take(self, *, cores: int) -> list[_Part]:
        """The next batch, oldest rows first: at most `max_batch_size`.

        What waits is split evenly over the free `cores`: an image takes as long in any batch.
        """
        room = min(self._max_batch_size, math.ceil(self.waiting_rows() / cores))
        batch = []
        while room and self.waiting_since_s() is not None:
            job = self._queue[0]
            part = _Part(job, job.taken, job.rows[job.taken : job.taken + room])
            job.began_s = job.began_s or perf_counter()
            self._lane.metrics.queue_stage.observe(perf_counter() - job.enqueued_s)
            batch.append(part)
            job.taken += len(part.rows)
            room -= len(part.rows)
            if job.taken == len(job.rows):
                self._queue.popleft()
        return batch

    async def run(self, batch: Sequence[_Part]) -> None:
        """Run `batch` and hand out the results."""
        self._lane.metrics.batch_size.observe(sum(len(part.rows) for part in batch))
        try:
            with self._lane.metrics.encode_stage.time():
                results = await self._infer([part.rows for part in batch])
            finished = list(zip(batch, results, strict=True))
        except (Exception, asyncio.CancelledError) as exc:
            failure: BaseException = exc
            if isinstance(exc, MemoryError):  # joining a batch takes memory beside its images': no bug
                failure = Overloaded("there is no memory for the batch now")
            elif isinstance(exc, asyncio.CancelledError):  # the threads that compute are shut down
                failure = Draining()
            for part in batch:
                if not part.job.result.done():
                    part.job.result.set_exception(failure)
            return
        for part, result in finished:
            part.job.finish(part.first, result)
