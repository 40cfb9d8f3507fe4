"""The batcher that does not wait: what goes together, what is left out, what comes back to whom."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import numpy as np
import pytest
from _bentoml_impl.server import app as bentoml_app
from numpy.typing import NDArray

from embedder.batching import Batcher, Lane, eager_batching

pytestmark = pytest.mark.anyio

Rows = NDArray[np.float64]


class Model:
    """Doubles its rows, a batch at a time, each when the test says so."""

    def __init__(self) -> None:
        self.batches: list[list[list[float]]] = []
        self.running = 0
        self._gate = asyncio.Semaphore(0)
        self.fails = False

    async def __call__(self, batch: Sequence[Rows]) -> Sequence[Rows]:
        self.running += 1
        assert self.running == 1
        try:
            self.batches.append([rows.tolist() for rows in batch])
            await self._gate.acquire()
            if self.fails:
                raise ValueError("the model is broken")
            return [rows * 2 for rows in batch]
        finally:
            self.running -= 1

    def finish_one(self) -> None:
        self._gate.release()


def batcher(
    model_lane: Lane | None = None, *, max_batch_size: int = 4, max_latency_in_ms: int = 60_000
) -> Batcher:
    return Batcher(model_lane or Lane(), max_batch_size=max_batch_size, max_latency_in_ms=max_latency_in_ms)


def rows(*values: float) -> Rows:
    return np.array(values, dtype=float)


async def turns() -> None:
    """Let everything happen that can happen without more input."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_lone_request_goes_at_once() -> None:
    model = Model()
    model.finish_one()
    result = asyncio.ensure_future(batcher()(model)(rows(1, 2)))
    await turns()
    assert result.result().tolist() == [2, 4]


async def test_what_comes_while_a_batch_is_computed_goes_together_next() -> None:
    model, submit = (model := Model()), batcher(max_batch_size=4)(model)
    results = [asyncio.ensure_future(submit(rows(0)))]
    await turns()
    results += [asyncio.ensure_future(submit(rows(n))) for n in range(1, 7)]
    await turns()
    assert model.batches == [[[0.0]]]
    for _ in range(3):
        model.finish_one()
        await turns()
    assert model.batches == [[[0.0]], [[1.0], [2.0], [3.0], [4.0]], [[5.0], [6.0]]]
    assert [result.result().tolist() for result in results] == [[2.0 * n] for n in range(7)]


async def test_a_request_larger_than_a_batch_is_split_and_put_together_again() -> None:
    model, submit = (model := Model()), batcher(max_batch_size=4)(model)
    large = asyncio.ensure_future(submit(rows(*range(10))))
    small = asyncio.ensure_future(submit(rows(100)))
    for _ in range(3):
        await turns()
        model.finish_one()
    await turns()
    assert [sum(map(len, batch)) for batch in model.batches] == [4, 4, 3]
    assert large.result().tolist() == [2.0 * n for n in range(10)]
    assert small.result().tolist() == [200]


async def test_a_request_without_rows_is_answered_while_the_model_is_busy() -> None:
    model, submit = (model := Model()), batcher()(model)
    busy = asyncio.ensure_future(submit(rows(1)))
    await turns()
    empty = asyncio.ensure_future(submit(rows()))
    await turns()
    assert len(empty.result()) == 0
    assert model.batches == [[[1.0]]]
    model.finish_one()
    await busy


async def test_a_cancelled_request_is_not_computed() -> None:
    model, submit = (model := Model()), batcher()(model)
    first = asyncio.ensure_future(submit(rows(1)))
    await turns()
    gone, last = (asyncio.ensure_future(submit(rows(n))) for n in (2, 3))
    await turns()
    gone.cancel()
    for _ in range(2):
        model.finish_one()
        await turns()
    assert model.batches == [[[1.0]], [[3.0]]]
    assert (first.result().tolist(), last.result().tolist()) == ([2], [6])


async def test_a_request_cancelled_while_it_is_computed_leaves_its_neighbours_alone() -> None:
    model, submit = (model := Model()), batcher()(model)
    first = asyncio.ensure_future(submit(rows(0)))
    await turns()
    gone, stays = (asyncio.ensure_future(submit(rows(n))) for n in (1, 2))
    await turns()
    model.finish_one()
    await turns()
    assert model.batches[-1] == [[1.0], [2.0]]
    gone.cancel()
    model.finish_one()
    assert (await first).tolist() == [0]
    assert (await stays).tolist() == [4]


async def test_a_request_that_waited_too_long_is_not_computed() -> None:
    model, submit = (model := Model()), batcher(max_latency_in_ms=50)(model)
    first = asyncio.ensure_future(submit(rows(1)))
    await turns()
    late = asyncio.ensure_future(submit(rows(2)))
    await asyncio.sleep(0.06)
    model.finish_one()
    with pytest.raises(TimeoutError, match=r"waited 0\.05 s"):
        await late
    assert (await first).tolist() == [2]
    assert model.batches == [[[1.0]]]


async def test_a_batch_that_fails_takes_only_itself_down() -> None:
    model, submit = (model := Model()), batcher()(model)
    model.fails = True
    first = asyncio.ensure_future(submit(rows(1)))
    await turns()
    second = asyncio.ensure_future(submit(rows(2)))
    model.finish_one()
    await turns()
    with pytest.raises(ValueError, match="broken"):
        await first
    model.fails = False
    model.finish_one()
    assert (await second).tolist() == [4]


async def test_routes_share_the_model_and_the_one_that_waited_longest_goes_first() -> None:
    lane, model = Lane(), Model()
    one, two = batcher(lane)(model), batcher(lane)(model)
    results = [asyncio.ensure_future(one(rows(0)))]
    await turns()
    results += [asyncio.ensure_future(submit(rows(n))) for n, submit in ((1, two), (2, one), (3, two))]
    for _ in range(3):
        await turns()
        model.finish_one()
    assert [(await result).tolist() for result in results] == [[0], [2], [4], [6]]
    assert model.batches == [[[0.0]], [[1.0], [3.0]], [[2.0]]]


def test_bentoml_makes_its_application_with_our_batchers_only_meanwhile() -> None:
    stock = bentoml_app.CorkDispatcher
    with eager_batching():
        made = bentoml_app.CorkDispatcher(
            max_latency_in_ms=1, max_batch_size=2, fallback=None, get_batch_size=len, batch_dim=(0, 0)
        )
    assert isinstance(made, Batcher)
    assert bentoml_app.CorkDispatcher is stock


@pytest.mark.parametrize("stock", [None, type("Other", (), {"__init__": lambda self, max_batch: None})])
def test_a_bentoml_that_batches_otherwise_keeps_its_own_batcher_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stock: object
) -> None:
    monkeypatch.setattr(bentoml_app, "CorkDispatcher", stock)
    with caplog.at_level(logging.WARNING), eager_batching():
        assert bentoml_app.CorkDispatcher is stock
    assert "its own batcher waits" in caplog.text
