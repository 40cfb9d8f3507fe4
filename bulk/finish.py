"""What is done once all parts are there: copies, `duplicate_of`, errors.csv, summary.json.

A row whose URL an earlier row has was not fetched: it gets what became of that row. A row whose file is the same, by
its sha256, as an earlier row's says so. Both need all parts, so they are done here, however many processes made them;
and done again, they change nothing.
"""

from __future__ import annotations

import csv
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bulk.files import replaced, write_json
from bulk.folder import ERRORS, FAILED, RESULTS, SUMMARY, Folder
from bulk.plan import Plan

_COPIED = tuple(field.name for field in RESULTS if field.name not in ("id", "url", "duplicate_of", "model"))
_TABLES = 2  # parts in memory, beside the one that is settled


def settle(plan: Plan) -> None:
    """Fills in copies, and says of each row which earlier one it is a duplicate of. Rewrites only parts that change."""
    folder = Folder(plan.folder)
    plan.forget_all()
    hashes = _hashes(plan, folder)
    copies, firsts = np.asarray(plan.copies)
    hashes[copies] = hashes[firsts]
    earliest = _earliest(hashes)
    tables, names = _Tables(folder), _Tables(folder, ["id", "sha256"])
    for number in range(plan.parts):
        begin = plan.first_row(number)
        same = earliest[begin : begin + plan.part_rows]
        rows = np.flatnonzero(same != np.arange(begin, begin + len(same)))
        copied = plan.firsts(number)
        light = folder.read(number, ["duplicate_of"])
        if not (copied or len(rows) or light["duplicate_of"].null_count < len(light)):
            continue
        table = folder.read(number)
        settled = table
        if copied:
            settled = _with_copies(settled, begin, copied, plan, tables)
        settled = _with_duplicates(settled, {int(row): int(same[row]) for row in rows}, plan, names)
        if not settled.equals(table):
            folder.write(number, settled)
            tables.forget(number)
            names.forget(number)
            pa.default_memory_pool().release_unused()  # else it keeps 100 MB of what parts have left


class _Tables:
    """Parts that rows are looked up in, the last few."""

    def __init__(self, folder: Folder, columns: Sequence[str] | None = None) -> None:
        self._folder = folder
        self._columns = columns
        self._held: OrderedDict[int, pa.Table] = OrderedDict()

    def part(self, number: int) -> pa.Table:
        if number not in self._held:
            self._held[number] = self._folder.read(number, self._columns)
            if len(self._held) > _TABLES:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]

    def forget(self, number: int) -> None:
        self._held.pop(number, None)


def _hashes(plan: Plan, folder: Folder) -> NDArray[np.uint64]:
    """The first 64 bits of each row's sha256, 0 where it has none."""
    hashes = np.zeros(plan.rows, np.uint64)
    row = 0
    for _, batch in folder.batches(["sha256"]):
        for text in batch["sha256"].to_pylist():
            if text is not None:
                hashes[row] = int(text[:16], 16)
            row += 1
    return hashes


def _earliest(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each row the first one with its hash: itself, where it has none."""
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    rows = np.arange(len(hashes), dtype=np.int64)
    return np.where(hashes == 0, rows, first[which])


def _with_copies(
    table: pa.Table, begin: int, copied: dict[int, int], plan: Plan, tables: _Tables
) -> pa.Table:
    """`copied`: rows of this part, numbered as in the catalogue, and those whose results they get."""
    sources: dict[int, list[int]] = {}
    for row, first in copied.items():
        sources.setdefault(first // plan.part_rows, []).append(row)
    pieces, rows = [table.select(_COPIED)], np.arange(len(table))
    found = len(table)
    for number, targets in sorted(sources.items()):
        source = table if number == begin // plan.part_rows else tables.part(number)
        places = [copied[row] - plan.first_row(number) for row in targets]
        pieces.append(source.select(_COPIED).take(pa.array(places, pa.int64())))
        rows[[row - begin for row in targets]] = np.arange(found, found + len(targets))
        found += len(targets)
    taken = pa.concat_tables(pieces).take(pa.array(rows))
    for name in _COPIED:
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), taken[name])
    return table


def _with_duplicates(table: pa.Table, same: dict[int, int], plan: Plan, names: _Tables) -> pa.Table:
    """`same`: places in this part, and the first row of the catalogue with that file."""
    ids: list[str | None] = [None] * len(table)
    hashes = table["sha256"].to_pylist() if same else []
    for place, first in sorted(same.items(), key=lambda pair: pair[1]):
        part, there = divmod(first, plan.part_rows)
        source = names.part(part)
        if source["sha256"][there].as_py() == hashes[place]:  # 64 bits may agree by chance
            ids[place] = source["id"][there].as_py()
    index = table.schema.get_field_index("duplicate_of")
    return table.set_column(index, table.schema.field(index), pa.array(ids, pa.string()))


def write_errors(folder: Folder) -> None:
    """The rows that failed, in order."""
    with replaced(folder.path / ERRORS) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        names = ["id", "url", "error_code", "http_status", "error"]
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for _, batch in folder.batches([*names, "status"]):
            writer.writerows(batch.filter(pc.equal(batch["status"], FAILED)).select(names).to_pylist())


def write_summary(folder: Folder, plan: Plan, **more: object) -> dict[str, Any]:
    """All parts together."""
    rows = success = size = 0
    errors: dict[str, int] = {}
    for number in folder.done():
        stats = folder.read_stats(number)
        rows, success, size = rows + stats.rows, success + stats.success, size + stats.bytes
        for code, count in stats.errors.items():
            errors[code] = errors.get(code, 0) + count
    summary = {
        "rows": rows,
        "success": success,
        "failed": sum(errors.values()),
        "errors": dict(sorted(errors.items())),
        "bytes": size,
        "parts": plan.parts,
        "model": plan.said["embedder.model"],
        "fingerprint": plan.said["embedder.fingerprint"],
        **more,
    }
    write_json(folder.path / SUMMARY, summary)
    return summary
