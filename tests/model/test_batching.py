"""The batcher that does not wait: what goes together, what is left out, what comes back to whom."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from embedder.errors import Overloaded
from embedder.metrics.measures import Metrics
from embedder.model.batching import Batcher, Lane
from embedder.runtime.cores import Cores

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


def lane_of(cores: int) -> Lane:
    return Lane(Cores(cores), Metrics())


def batcher(lane: Lane | None = None, *, max_batch_size: int = 4, max_latency_s: float = 60) -> Batcher:
    return Batcher(lane or lane_of(1), max_batch_size=max_batch_size, max_latency_s=max_latency_s)


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


async def test_each_request_that_waited_and_each_batch_is_measured_once() -> None:
    registry = CollectorRegistry()
    model, submit = (model := Model()), batcher(Lane(Cores(1), Metrics(registry)))(model)
    results = [asyncio.ensure_future(submit(rows(0, 1)))]
    await turns()
    results += [asyncio.ensure_future(submit(rows(n))) for n in (2, 3)]
    for _ in range(2):
        await turns()
        model.finish_one()
    await asyncio.gather(*results)

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"embedder_{name}", labels)

    assert sample("stage_duration_seconds_count", stage="queue") == 3
    assert sample("stage_duration_seconds_count", stage="encode") == 2
    assert (sample("batch_size_count"), sample("batch_size_sum")) == (2, 4)


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
    lane, model = lane_of(1), Model()
    submit, submit_impatiently = batcher(lane)(model), batcher(lane, max_latency_s=0)(model)
    first = asyncio.ensure_future(submit(rows(1)))
    await turns()
    late = asyncio.ensure_future(submit_impatiently(rows(2)))
    await turns()
    model.finish_one()
    with pytest.raises(Overloaded, match="waited 0 s for the model"):
        await late
    assert (await first).tolist() == [2]
    assert model.batches == [[[1.0]]]


async def test_a_batch_that_there_is_no_memory_for_is_no_bug() -> None:
    async def infer(batch: Sequence[Rows]) -> Sequence[Rows]:
        raise MemoryError

    with pytest.raises(Overloaded, match="no memory for the batch"):
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
    lane, model = lane_of(1), Model()
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
    model, submit = (model := Model()), batcher(lane_of(3), max_batch_size=32)(model)
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
    model, submit = (model := Model()), batcher(lane_of(2))(model)
    model.gates = {0: asyncio.Event(), 1: asyncio.Event()}
    large = asyncio.ensure_future(submit(rows(1, 2, 3, 4)))
    await turns()
    model.gates[1].set()
    await turns()
    assert not large.done()
    model.gates[0].set()
    assert (await large).tolist() == [2, 4, 6, 8]


async def test_a_part_that_fails_fails_its_request_and_no_other() -> None:
    model, submit = (model := Model()), batcher(lane_of(2), max_batch_size=2)(model)
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


async def test_cores_that_others_of_the_process_took_are_left_to_them() -> None:
    cores = Cores(2)
    model, submit = (model := Model()), batcher(Lane(cores, Metrics()))(model)
    cores.take()
    results = [asyncio.ensure_future(submit(rows(n))) for n in range(3)]
    await turns()
    assert len(model.batches) == 1
    cores.give_back()
    for _ in range(3):
        model.finish_one()
        await turns()
    await asyncio.gather(*results)
    assert cores.take(up_to=3) == 2
