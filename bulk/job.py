"""Parts of a plan → parts of the folder: the loop that embeds.

    plan ─► rows, by host ─► Embedder, so many at once ─► results ─► part, when its last row is there

Rows of the next part begin while the last of this one still wait for slow servers. A part is written at once and
whole. What is done of the parts under way is written beside the plan every FLUSH_S, so that little is done twice
after a power cut.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bulk.catalogue import ID, URL
from bulk.folder import RESULTS, Folder, PartStats, schema, write_table
from bulk.hosts import Turns, host_of
from bulk.plan import Plan
from bulk.results import Embedded, columns, may_pass
from embedder.errors import EmbedderError, OriginError
from embedder.result import Result

FLUSH_S = 60.0
OPEN_PARTS = 2
"""The next begins while the last rows of one are waited for. Each is 25 MB and as much again while it is written."""
MAX_TRIES = 5
"""Of a row whose server asks to be left alone for a while each time."""
NAME_LOST_S = 60.0
"""A name that can't be resolved is not looked up again for so long: that may take seconds each time."""
_RATE_AFTER = 1000
"""A failure rate says something after so many rows."""
_ROW = "__row"


class Embedder(Protocol):
    async def embed(self, source: str) -> Result:
        """What becomes of a row: of a URL, or of a file's path. Raises JobError to end the job."""


@dataclass(frozen=True)
class Limits:
    concurrency: int = 64
    """Rows in work at once."""
    per_host: int = 16
    max_failure_rate: float = 1.0


@dataclass
class Tally:
    """What this run has done so far, for whoever watches."""

    rows: int = 0
    """Whose results came."""
    there: int = 0
    """That were found done, in parts that were not."""
    failed: dict[str, int] = field(default_factory=dict)
    bytes: int = 0

    def count(self, result: Result) -> None:
        self.rows += 1
        self.bytes += result.bytes or 0
        if result.error is not None:
            self.failed[result.error.code] = self.failed.get(result.error.code, 0) + 1

    @property
    def failures(self) -> int:
        return sum(self.failed.values())

    def is_over(self, rate: float) -> bool:
        return self.rows >= _RATE_AFTER and self.failures > rate * self.rows


@dataclass(eq=False)
class _Part:
    """A part under way."""

    number: int
    first_row: int
    kept: pa.Table
    ids: list[str]
    urls: list[str | None]
    before: pa.Table | None
    """Rows that are there already, with their places under _ROW."""
    old: pa.Table | None
    """Of a part that was done before: the rows that are embedded again, as they were."""
    todo: set[int]
    """Rows whose results are still to come, by their places in the part."""
    embedded: dict[int, Embedded] = field(default_factory=dict)
    is_new: bool = False
    """Whether something came since it was last written."""

    def table(self, wanted: pa.Schema, model: str, *, rows: Sequence[int]) -> pa.Table:
        """`rows`, what was there before, and what is still as it was: in order, with _ROW at the end."""
        made = columns(rows, self.embedded, [self.ids[r] for r in rows], [self.urls[r] for r in rows], model)
        taken = self.kept.take(pa.array(rows, pa.int64()))
        arrays = [*taken.columns, *(made[field.name] for field in RESULTS), pa.array(rows, pa.int64())]
        tables = [pa.Table.from_arrays(arrays, schema=_with_row(wanted))]
        if self.before is not None:
            tables.append(self.before)
        if self.old is not None:
            tables.append(self.old.filter(pc.is_in(self.old[_ROW], pa.array(self.todo, pa.int64()))))
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables).sort_by(_ROW)


def _places(rows: pa.Table | None) -> set[int]:
    """Of rows with _ROW."""
    return set() if rows is None else set(rows[_ROW].to_pylist())


def _with_row(wanted: pa.Schema) -> pa.Schema:
    return wanted.append(pa.field(_ROW, pa.int64()))


Again = Callable[[pa.Table], pa.Array]
"""A part → which of its rows are to be embedded again: bool (rows,)."""


class AnyJob(Protocol):
    """Embeds parts of one plan, here or elsewhere: as `Job`, or `ray_runner.RayJob`."""

    tally: Tally
    over_rate: bool

    def stop(self) -> None: ...

    async def run(self, parts: Iterable[int]) -> bool: ...


class Job:
    """Embeds parts of one plan. For one event loop."""

    def __init__(
        self,
        plan: Plan,
        embedder: Embedder,
        *,
        limits: Limits,
        again: Again | None = None,
        part_done: Callable[[PartStats], object] = lambda stats: None,
    ) -> None:
        self.tally = Tally()
        self.over_rate = False
        self._plan = plan
        self._folder = Folder(plan.folder)
        self._embedder = embedder
        self._limits = limits
        self._again = again
        self._part_done = part_done
        self._model = plan.said["embedder.model"]
        self._turns: Turns[tuple[_Part, int, int]] = Turns(limits.per_host)
        self._running: set[asyncio.Task[None]] = set()
        self._lost_names: dict[str, tuple[float, EmbedderError]] = {}
        self._open: dict[int, _Part] = {}
        self._full: set[_Part] = set()
        self._stopping = False
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Begin nothing more. `run` ends when what is in work is done and written."""
        self._stopping = True
        self._turns.changed.set()

    async def run(self, parts: Iterable[int]) -> bool:
        """Whether all `parts` are done. Raises JobError and OSError, once what was done is written."""
        numbers = iter(parts)
        flushed_s = time.monotonic()
        more = True
        try:
            while self._failure is None:
                self._turns.changed.clear()
                self._begin()
                for part in tuple(self._full):
                    self._full.remove(part)
                    await self._finish(part)
                if time.monotonic() - flushed_s > FLUSH_S:
                    await self._flush()
                    flushed_s = time.monotonic()
                if self._stopping:
                    if not self._running:
                        break
                elif more and not self._turns.waiting and len(self._open) < OPEN_PARTS:
                    number = next(numbers, None)
                    more = number is not None
                    if number is not None:
                        await self._open_part(number)
                    continue
                elif not (more or self._open):
                    break
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._turns.changed.wait(), FLUSH_S)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            await self._flush()
        if self._failure is not None:
            raise self._failure
        return not (more or self._open)

    def _begin(self) -> None:
        while not self._stopping and len(self._running) < self._limits.concurrency:
            found = self._turns.next()
            if found is None:
                return
            host, (part, row, tries) = found
            task = asyncio.get_running_loop().create_task(self._embed(host, part, row, tries))
            self._running.add(task)
            task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = failure
        self._turns.changed.set()

    async def _embed(self, host: str, part: _Part, row: int, tries: int) -> None:
        try:
            result = self._known_to_fail(host)
            if result is None:
                result = await self._embedder.embed(part.urls[row] or "")
            error = result.error
            if isinstance(error, OriginError):
                if error.reason == "name" and error.host == host.partition(":")[0]:
                    self._lost_names[host] = (time.monotonic() + NAME_LOST_S, error)
                asks = error.http_status == 429 or (
                    error.http_status == 503 and error.come_back_s is not None
                )
                if asks and tries < MAX_TRIES and self._turns.pause(host, error.come_back_s):
                    self._turns.add(host, (part, row, tries + 1), first=True)
                    return
            self._turns.answered(host)
        finally:
            self._turns.done(host)
        self._take(part, row, result)

    def _known_to_fail(self, host: str) -> Result | None:
        until_s, error = self._lost_names.get(host, (0.0, None))
        return Result(error=error) if error is not None and time.monotonic() < until_s else None

    def _take(self, part: _Part, row: int, result: Result) -> None:
        part.embedded[row] = Embedded(result, datetime.now(UTC))
        part.todo.discard(row)
        part.is_new = True
        self.tally.count(result)
        if self.tally.is_over(self._limits.max_failure_rate):
            self.over_rate = True
            self.stop()
        if not part.todo:
            self._full.add(part)

    async def _open_part(self, number: int) -> None:
        part = await asyncio.to_thread(self._read, number)
        self._open[number] = part
        self.tally.there += 0 if part.before is None else len(part.before)
        for row in sorted(part.todo):
            url = part.urls[row] or ""
            self._turns.add("" if self._plan.is_files else host_of(url), (part, row, 1))
        if not part.todo:
            self._full.add(part)
            self._turns.changed.set()

    def _read(self, number: int) -> _Part:
        first = self._plan.first_row(number)
        copies = {row - first for row in self._plan.firsts(number)}
        before = old = None
        if self._folder.has(number):  # to be done again, in part
            whole = self._folder.read(number)
            kept = whole.select(range(len(whole.schema) - len(RESULTS)))
            ids, urls = whole["id"].to_pylist(), whole["url"].to_pylist()
            numbered = whole.append_column(_ROW, pa.array(range(len(whole)), pa.int64()))
            again = self._again(whole) if self._again is not None else pa.array([False] * len(whole))
            before, old = numbered.filter(pc.invert(again)), numbered.filter(again)
        else:
            table = self._plan.read(number)
            kept, ids, urls = table.drop_columns([ID, URL]), table[ID].to_pylist(), table[URL].to_pylist()
            if self._plan.begun(number).exists():
                before = pq.read_table(self._plan.begun(number), partitioning=None)
        todo = set(range(len(ids))) - _places(before) - copies
        return _Part(number, first, kept, ids, urls, before, old, todo)

    async def _finish(self, part: _Part) -> None:
        await asyncio.to_thread(self._write, part)
        del self._open[part.number]

    def _write(self, part: _Part) -> None:
        if part.old is None and self._folder.has(part.number):
            # Another process took this one for dead and did its part, which may be settled by now.
            self._part_done(self._folder.read_stats(part.number))
            return
        begun = _places(part.before) | part.todo
        rows = [row for row in range(len(part.ids)) if row not in begun]
        table = part.table(self._schema(part), self._model, rows=rows).drop_columns([_ROW])
        stats = self._folder.write(part.number, table)
        self._plan.forget(part.number)
        self._part_done(stats)

    async def _flush(self) -> None:
        for part in self._open.values():
            if part.is_new:
                part.is_new = False
                if part.old is not None:
                    await asyncio.to_thread(self._write, part)
                    continue
                table = part.table(self._schema(part), self._model, rows=sorted(part.embedded))
                await asyncio.to_thread(write_table, self._plan.begun(part.number), table)

    def _schema(self, part: _Part) -> pa.Schema:
        return schema(list(part.kept.schema), self._plan.said)


def retried(codes: Sequence[str] | None) -> Again:
    """Rows that failed, of these codes; None: those whose cause may pass."""

    def again(part: pa.Table) -> pa.Array:
        return pa.array(
            [
                code is not None and (code in codes if codes is not None else may_pass(code, http_status))
                for code, http_status in zip(
                    part["error_code"].to_pylist(), part["http_status"].to_pylist(), strict=True
                )
            ]
        )

    return again


def to_do(plan: Plan, again: Again | None) -> Iterator[int]:
    """The parts that are not done, and of the others those with rows to embed again."""
    folder = Folder(plan.folder)
    done = set(folder.done())
    for number in range(plan.parts):
        if number not in done or (
            again is not None and pc.any(again(folder.read(number, ["error_code", "http_status"]))).as_py()
        ):
            yield number
