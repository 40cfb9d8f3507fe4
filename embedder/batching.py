"""BentoML's batcher without its waiting. The only file that reaches into BentoML.

BentoML holds a request back in the hope of company, for about as long as recent batches waited: after a
burst of 64 a lone request took 222 ms instead of 19, ten seconds later still 236. Here nothing is held back:
what is queued goes to the model as soon as the model is free. Under load the queue fills while a batch is
computed, and that alone makes the next batch larger; a lone request goes at once.

    request ─► queue of its route ─┐
    request ─► queue of its route ─┴─► lane: one batch at a time, the route that has waited longest ─► model
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from _bentoml_impl.server import app as bentoml_app
from numpy.typing import NDArray

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
    done: list[Array] = field(default_factory=list)
    """Results of the first of the rows."""


class Lane:
    """The way to the model: one batch at a time, whichever route it is from."""

    def __init__(self) -> None:
        self._batchers: list[Batcher] = []
        self._batch: asyncio.Task[None] | None = None

    def join(self, batcher: Batcher) -> None:
        self._batchers.append(batcher)

    def dispatch(self) -> None:
        """Send the next batch if the model is free and anything waits."""
        if self._batch is not None:
            return
        waiting = [batcher for batcher in self._batchers if batcher.waiting_since_s() is not None]
        if waiting:
            batcher = min(waiting, key=lambda batcher: batcher.waiting_since_s() or 0.0)
            self._batch = asyncio.get_running_loop().create_task(batcher.run_batch())
            self._batch.add_done_callback(self._free)

    def _free(self, _: asyncio.Task[None]) -> None:
        self._batch = None
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
        loop = asyncio.get_running_loop()
        job = _Job(rows, loop.create_future(), loop.time())
        self._queue.append(job)
        self._lane.dispatch()
        return await job.result

    def waiting_since_s(self) -> float | None:
        """When the oldest job that is still wanted came, on the event loop's clock; None without one."""
        while self._queue:
            job = self._queue[0]
            if job.result.done():  # cancelled
                self._queue.popleft()
            elif asyncio.get_running_loop().time() - job.enqueued_s > self._max_latency_s:
                self._queue.popleft()
                job.result.set_exception(TimeoutError(f"waited {self._max_latency_s:g} s for the model"))
            else:
                return job.enqueued_s
        return None

    async def run_batch(self) -> None:
        """Take what fits one batch from the queue, run it, and hand the results to who waits for them."""
        batch = list(self._take())
        try:
            results = await self._infer([rows for _, rows in batch])
        except Exception as exc:
            for job, _ in batch:
                if not job.result.done():
                    job.result.set_exception(exc)
            return
        for (job, _), result in zip(batch, results, strict=True):
            job.done.append(result)
            if not job.result.done() and sum(map(len, job.done)) == len(job.rows):
                job.result.set_result(job.done[0] if len(job.done) == 1 else np.concatenate(job.done))

    def _take(self) -> Iterator[tuple[_Job, Array]]:
        """Jobs and the rows of theirs that go now, at most `max_batch_size` rows, oldest first."""
        room = self._max_batch_size
        while room and self.waiting_since_s() is not None:
            job = self._queue[0]
            taken = sum(map(len, job.done))
            rows = job.rows[taken : taken + room]
            if taken + len(rows) == len(job.rows):
                self._queue.popleft()
            room -= len(rows)
            yield job, rows


@contextmanager
def eager_batching() -> Iterator[None]:
    """While this lasts, BentoML's application is made with our batchers.

    Where BentoML makes its own in another way than we know, they stay, with a warning.
    """
    stock = getattr(bentoml_app, "CorkDispatcher", None)
    known = set(inspect.signature(stock.__init__).parameters) if stock is not None else set()
    if not known >= _OPTIONS:
        logger.warning("this BentoML batches in a way that is not known here: its own batcher waits")
        yield
        return
    bentoml_app.CorkDispatcher = partial(Batcher, Lane())
    try:
        yield
    finally:
        bentoml_app.CorkDispatcher = stock
