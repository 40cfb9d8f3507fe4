"""BentoML's batcher without its waiting. Reaches into BentoML, and checks that it finds there what it knows.

BentoML holds a request back in the hope of company, for about as long as recent batches waited: after a
burst of 64 a lone request took 222 ms instead of 19, ten seconds later still 236. Here nothing is held back:
what is queued goes to the model as soon as the model is free. Under load the queue fills while a batch is
computed, and that alone makes the next batch larger; a lone request goes at once.

    request ─► queue of its route ─┐
    request ─► queue of its route ─┴─► lane: a batch for each free core, who waited longest first ─► model
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from _bentoml_impl.server import app as bentoml_app
from bentoml.exceptions import ServiceUnavailable
from numpy.typing import NDArray

from embedder import metrics
from embedder.runtime.cpu import Cores

logger = logging.getLogger(__name__)

Array = NDArray[Any]  # Any: the batcher does not care what the rows are
Infer = Callable[[Sequence[Array]], Awaitable[Sequence[Array]]]
"""Some requests' rows → as many results, with as many rows."""

# What BentoML's application makes its batchers with, and so what this file relies on.
_OPTIONS = {"max_latency_in_ms", "max_batch_size", "fallback", "get_batch_size", "batch_dim"}


@dataclass(eq=False)
class _Job:
    """One request's rows on their way through the model, in one batch or several."""

    rows: Array
    result: asyncio.Future[Array]
    enqueued_s: float
    """On the clock of `perf_counter`: the event loop's counts in whole milliseconds."""
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
    """The way to the model: a batch for each free core, whichever route it is from."""

    def __init__(self, cores: Cores) -> None:
        self._cores = cores
        self._batchers: list[Batcher] = []
        self._batches: set[asyncio.Task[None]] = set()

    def join(self, batcher: Batcher) -> None:
        self._batchers.append(batcher)

    def dispatch(self) -> None:
        """Send batches for as long as a core is free and anything waits."""
        while free := self._cores.free():
            waiting = [batcher for batcher in self._batchers if batcher.waiting_since_s() is not None]
            if not waiting:
                return
            batcher = min(waiting, key=lambda batcher: batcher.waiting_since_s() or 0.0)
            batch = asyncio.get_running_loop().create_task(batcher.run(batcher.take(cores=free)))
            self._batches.add(batch)
            self._cores.take()
            batch.add_done_callback(self._done)

    def _done(self, batch: asyncio.Task[None]) -> None:
        self._batches.remove(batch)
        self._cores.give_back()
        self.dispatch()


class Batcher:
    """One route's queue. Called by BentoML's application in place of its `CorkDispatcher`.

    The queue is bounded by the intake: a request's images hold their places in work until it is answered.
    A request that was given up, by its client or by its timeout, is not computed.
    """

    def __init__(self, lane: Lane, *, max_batch_size: int, max_latency_in_ms: int, **_: object) -> None:
        self._lane = lane
        self._max_batch_size = max_batch_size
        self._max_latency_s = max_latency_in_ms / 1000
        self._queue: deque[_Job] = deque()
        self._infer: Infer
        lane.join(self)

    def __call__(self, infer: Infer) -> Callable[[Array], Awaitable[Array]]:
        """BentoML asks for a function of one request's rows; `infer` is the same at each call."""
        self._infer = infer
        return self._submit

    async def _submit(self, rows: Array) -> Array:
        if len(rows) == 0:  # an error, or embeddings that are known: answered without queueing, and no batch
            return np.empty(0)
        job = _Job(rows, asyncio.get_running_loop().create_future(), perf_counter())
        self._queue.append(job)
        self._lane.dispatch()
        return await job.result

    def waiting_since_s(self) -> float | None:
        """When the oldest job that is still wanted came, on the clock of `perf_counter`; None without one."""
        while self._queue:
            job = self._queue[0]
            if job.result.done():  # cancelled
                self._queue.popleft()
            elif perf_counter() - job.enqueued_s > self._max_latency_s:
                self._queue.popleft()
                job.result.set_exception(
                    ServiceUnavailable(f"waited {self._max_latency_s:g} s for the model")
                )
            else:
                return job.enqueued_s
        return None

    def take(self, *, cores: int) -> list[_Part]:
        """What goes in the next batch, oldest first: at most `max_batch_size` rows.

        And no more than leaves as many for each other one of the free `cores`: an image takes as long in a
        small batch as in a large one.
        """
        waiting = sum(len(job.rows) - job.taken for job in self._queue) if cores > 1 else self._max_batch_size
        room = min(self._max_batch_size, math.ceil(waiting / cores))
        batch = []
        while room and self.waiting_since_s() is not None:
            job = self._queue[0]
            part = _Part(job, job.taken, job.rows[job.taken : job.taken + room])
            metrics.queue_stage.observe(perf_counter() - job.enqueued_s)
            batch.append(part)
            job.taken += len(part.rows)
            room -= len(part.rows)
            if job.taken == len(job.rows):
                self._queue.popleft()
        return batch

    async def run(self, batch: Sequence[_Part]) -> None:
        """Run `batch` and hand the results to who waits for them."""
        metrics.batch_size.observe(sum(len(part.rows) for part in batch))
        try:
            with metrics.encode_stage.time():
                results = await self._infer([part.rows for part in batch])
            finished = list(zip(batch, results, strict=True))
        except Exception as exc:
            # Joining a batch takes memory beside what its images take: too little is no bug.
            lacking = isinstance(exc, MemoryError)
            failure = ServiceUnavailable("there is no memory for the batch now") if lacking else exc
            for part in batch:
                if not part.job.result.done():
                    part.job.result.set_exception(failure)
            return
        for part, result in finished:
            part.job.finish(part.first, result)


@contextmanager
def eager_batching(cores: Cores) -> Iterator[None]:
    """While this lasts, BentoML's application is made with our batchers, which run on `cores`.

    Where BentoML makes its own in another way than we know, they stay, with a warning.
    """
    stock = getattr(bentoml_app, "CorkDispatcher", None)
    known = set(inspect.signature(stock.__init__).parameters) if stock is not None else set()
    if not known >= _OPTIONS:
        logger.warning("this BentoML batches in a way that is not known here: its own batcher waits")
        yield
        return
    bentoml_app.CorkDispatcher = partial(Batcher, Lane(cores))
    try:
        yield
    finally:
        bentoml_app.CorkDispatcher = stock
