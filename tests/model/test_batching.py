"""The batcher that does not wait: what goes together, what is left out, what comes back to whom."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import numpy as np
import pytest
from _bentoml_impl.server import app as bentoml_app
from bentoml.exceptions import ServiceUnavailable
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from embedder.model.batching import Batcher, Lane, eager_batching
from embedder.runtime.cpu import Cores

pytestmark = pytest.mark.anyio

Rows = NDArray[np.float64]


class Model:
    """Doubles its rows, a batch at a time, each when the test says so."""

    def __init__(self) -> None:
        self.batches: list[list[list[float]]] = []
        self.running = self.most_running = 0
        self.gates: dict[int, asyncio.Event] = {}
        """For batches that do not wait for their turn, by their number."""
        self._gate = asyncio.Semaphore(0)
        self.fails = False

    async def __call__(self, batch: Sequence[Rows]) -> Sequence[Rows]:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        number = len(self.batches)
        try:
            self.batches.append([rows.tolist() for rows in batch])
            await (self.gates[number].wait() if number in self.gates else self._gate.acquire())
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
    return Batcher(
        model_lane or Lane(Cores(1)), max_batch_size=max_batch_size, max_latency_in_ms=max_latency_in_ms
    )


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


async def test_waiting_and_computing_are_measured_each_for_itself() -> None:
    model, submit = (model := Model()), batcher()(model)
    before = {name: measured(*name) for name in MEASURED}
    results = [asyncio.ensure_future(submit(rows(0, 1)))]
    await turns()
    results.append(asyncio.ensure_future(submit(rows(2))))
    await asyncio.sleep(0.1)
    for _ in range(2):
        model.finish_one()
        await turns()
    grown = {name: measured(*name) - before[name] for name in MEASURED}
    assert all(result.done() for result in results)
    # The first batch takes 0.1 s, for which the second request waits.
    assert grown["stage_duration_seconds_count", "queue"] == 2
    assert grown["stage_duration_seconds_count", "encode"] == 2
    assert grown["stage_duration_seconds_sum", "queue"] > 0.09
    assert grown["stage_duration_seconds_sum", "encode"] > 0.09
    assert grown["batch_size_count", None] == 2
    assert grown["batch_size_sum", None] == 3


MEASURED = [
    *(
        (f"stage_duration_seconds_{what}", stage)
        for what in ("count", "sum")
        for stage in ("queue", "encode")
    ),
    ("batch_size_count", None),
    ("batch_size_sum", None),
]


def measured(name: str, stage: str | None) -> float:
    value = REGISTRY.get_sample_value(f"embedder_{name}", {"stage": stage} if stage else None)
    assert value is not None
    return value


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


async def test_a_request_cancelled_between_others_is_not_computed_with_them() -> None:
    model, submit = (model := Model()), batcher()(model)
    first = asyncio.ensure_future(submit(rows(1)))
    await turns()
    before, gone, after = (asyncio.ensure_future(submit(rows(n))) for n in (2, 3, 4))
    await turns()
    gone.cancel()
    for _ in range(2):
        model.finish_one()
        await turns()
    assert model.batches == [[[1.0]], [[2.0], [4.0]]]
    assert [(await result).tolist() for result in (first, before, after)] == [[2], [4], [8]]


async def test_a_request_cancelled_in_a_batch_that_fails_keeps_the_failure_from_nobody() -> None:
    model, submit = (model := Model()), batcher()(model)
    first = asyncio.ensure_future(submit(rows(0)))
    await turns()
    gone, stays = (asyncio.ensure_future(submit(rows(n))) for n in (1, 2))
    await turns()
    model.finish_one()
    await first
    await turns()
    gone.cancel()
    model.fails = True
    model.finish_one()
    with pytest.raises(ValueError, match="broken"):
        await asyncio.wait_for(stays, 5)


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
    with pytest.raises(ServiceUnavailable, match=r"waited 0\.05 s"):
        await late
    assert (await first).tolist() == [2]
    assert model.batches == [[[1.0]]]


async def test_a_batch_that_there_is_no_memory_for_is_no_bug() -> None:
    async def infer(batch: Sequence[Rows]) -> Sequence[Rows]:
        raise MemoryError

    with pytest.raises(ServiceUnavailable, match="no memory for the batch"):
        await batcher()(infer)(rows(1))


async def test_a_model_that_loses_a_request_leaves_nobody_waiting() -> None:
    async def lossy(batch: Sequence[Rows]) -> Sequence[Rows]:
        return batch[:-1]

    submit = batcher()(lossy)
    with pytest.raises(ValueError, match="shorter"):
        await asyncio.wait_for(submit(rows(1)), 10)


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
    lane, model = Lane(Cores(1)), Model()
    one, two = batcher(lane)(model), batcher(lane)(model)
    results = [asyncio.ensure_future(one(rows(0)))]
    await turns()
    results += [asyncio.ensure_future(submit(rows(n))) for n, submit in ((1, two), (2, one), (3, two))]
    for _ in range(3):
        await turns()
        model.finish_one()
    assert [(await result).tolist() for result in results] == [[0], [2], [4], [6]]
    assert model.batches == [[[0.0]], [[1.0], [3.0]], [[2.0]]]


async def test_one_core_computes_one_batch_at_a_time() -> None:
    model, submit = (model := Model()), batcher()(model)
    results = [asyncio.ensure_future(submit(rows(n))) for n in range(20)]
    for _ in range(10):
        await turns()
        model.finish_one()
    await asyncio.gather(*results)
    assert model.most_running == 1


async def test_free_cores_share_what_waits() -> None:
    model, submit = (model := Model()), batcher(Lane(Cores(3)), max_batch_size=32)(model)
    large = asyncio.ensure_future(submit(rows(*range(10))))
    await turns()
    assert [sum(map(len, batch)) for batch in model.batches] == [4, 3, 3]
    later = asyncio.ensure_future(submit(rows(100, 101)))
    await turns()
    assert len(model.batches) == 3
    for _ in range(5):
        model.finish_one()
        await turns()
    assert (await large).tolist() == [2.0 * n for n in range(10)]
    assert (await later).tolist() == [200, 202]


async def test_parts_that_come_back_in_another_order_are_joined_in_theirs() -> None:
    model, submit = (model := Model()), batcher(Lane(Cores(2)))(model)
    model.gates = {0: asyncio.Event(), 1: asyncio.Event()}
    large = asyncio.ensure_future(submit(rows(1, 2, 3, 4)))
    await turns()
    model.gates[1].set()
    await turns()
    assert not large.done()
    model.gates[0].set()
    assert (await large).tolist() == [2, 4, 6, 8]


async def test_a_part_that_fails_fails_its_request_and_no_other() -> None:
    model, submit = (model := Model()), batcher(Lane(Cores(2)), max_batch_size=2)(model)
    model.gates = {0: asyncio.Event(), 1: asyncio.Event()}
    large = asyncio.ensure_future(submit(rows(1, 2, 3, 4)))
    await turns()
    model.fails = True
    model.gates[0].set()
    with pytest.raises(ValueError, match="broken"):
        await large
    model.fails = False
    model.gates[1].set()
    model.finish_one()
    assert (await submit(rows(5))).tolist() == [10]


async def test_cores_that_other_workers_use_are_left_to_them() -> None:
    in_use = bytearray([0, 1])
    model, submit = (model := Model()), batcher(Lane(Cores(2, in_use=in_use, worker=0)))(model)
    results = [asyncio.ensure_future(submit(rows(n))) for n in range(3)]
    await turns()
    assert len(model.batches) == 1
    assert in_use == bytes([1, 1])
    in_use[1] = 0
    model.finish_one()
    await turns()
    assert in_use == bytes([2, 0])
    for _ in range(2):
        model.finish_one()
    await asyncio.gather(*results)
    await turns()
    assert in_use == bytes([0, 0])


def test_bentoml_makes_its_application_with_our_batchers_only_meanwhile() -> None:
    stock = bentoml_app.CorkDispatcher
    with eager_batching(Cores(1)):
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
    with caplog.at_level(logging.WARNING), eager_batching(Cores(1)):
        assert bentoml_app.CorkDispatcher is stock
    assert "its own batcher waits" in caplog.text
