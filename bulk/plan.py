"""A catalogue cut into parts, before the first picture is asked for.

    _plan/part-00042.parquet     rows 420000 to 429999: what is kept, ID, URL
    _plan/copies.npy             int64 (2, copies): rows whose URL an earlier row has, and the first row that has it
    _manifest.json               written last: with it the plan is whole

So the catalogue is read once, a part is done by whoever takes it, and a row has the same place in every run.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bulk.catalogue import URL, Catalogue
from bulk.errors import JobError
from bulk.files import read_json, write_json
from bulk.folder import MANIFEST, write_table

_VERSION = 1
PLAN = "_plan"
"""Its folder, in that of the vectors."""


@dataclass(frozen=True)
class Plan:
    """What is to be done, as the manifest has it."""

    folder: Path
    rows: int
    part_rows: int
    is_files: bool
    said: Mapping[str, str]
    """Of the vectors: `folder.provenance`."""

    @property
    def parts(self) -> int:
        return -(-self.rows // self.part_rows)

    def first_row(self, part: int) -> int:
        return part * self.part_rows

    def read(self, part: int) -> pa.Table:
        """Its rows of the catalogue: what is kept, ID and URL."""
        return pq.read_table(self._file(part), partitioning=None)

    def forget(self, part: int) -> None:
        """A part that is done holds all that its plan did, and all that was begun of it."""
        self.begun(part).unlink(missing_ok=True)
        self._file(part).unlink(missing_ok=True)

    def begun(self, part: int) -> Path:
        """The file for rows of the part that are done, while others are not."""
        return self.folder / PLAN / f"part-{part:05d}.done.parquet"

    def forget_all(self) -> None:
        """Also what was left behind by a process that was killed between a part and its plan."""
        for file in (self.folder / PLAN).glob("part-*"):
            file.unlink()

    @cached_property
    def copies(self) -> NDArray[np.int64]:
        """(2, n): rows in order, and for each the first row with its URL."""
        copies: NDArray[np.int64] = np.load(self.folder / PLAN / "copies.npy", mmap_mode="r")
        return copies

    def firsts(self, part: int) -> dict[int, int]:
        """For those rows of the part that are copies: the first row with their URL. Rows of the whole catalogue."""
        first, last = np.searchsorted(
            self.copies[0], (self.first_row(part), self.first_row(part) + self.part_rows)
        )
        rows, firsts = self.copies[:, first:last].tolist()
        return dict(zip(rows, firsts, strict=True))

    def _file(self, part: int) -> Path:
        return self.folder / PLAN / f"part-{part:05d}.parquet"


def planned(
    folder: Path,
    catalogue: Catalogue,
    *,
    said: Mapping[str, str],
    part_rows: int,
    limit: int | None,
    settings: Mapping[str, Any],  # Any: JSON
) -> tuple[Plan, bool]:
    """The plan in `folder`, and whether it is an earlier run's. `settings` are those that change what comes out.

    Raises JobError where the folder holds another job.
    """
    asked = {
        "version": _VERSION,
        "input": {**catalogue.identity, "limit": limit},
        "columns": {
            "url": catalogue.columns.url,
            "id": catalogue.columns.id,
            "kept": [field.name for field in catalogue.columns.kept],
        },
        "shard_rows": part_rows,
        "model": {"embedder.fingerprint": said["embedder.fingerprint"]},
        "settings": dict(settings),
    }
    manifest = read_json(folder / MANIFEST)
    if manifest is not None:
        _check_same(folder, manifest.get("asked", {}), asked)
        rows = manifest["rows"]
    else:
        if any(folder.glob("part-*.parquet")):
            raise JobError(f"{folder} has parts and no {MANIFEST}: it is no job's folder; choose another one")
        rows = _cut(folder, catalogue, part_rows, limit)
        if not rows:
            raise JobError("the catalogue has no rows")
        write_json(
            folder / MANIFEST, {"asked": asked, "rows": rows, "model": dict(said), "found": catalogue.said}
        )
    return Plan(folder, rows, part_rows, catalogue.is_files, said), manifest is not None


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:  # Any: JSON
    names = {
        "version": "version of this program",
        "input": "catalogue",
        "columns": "choice of columns",
        "shard_rows": "--shard-rows",
        "model": "model",
        "settings": "settings",
    }
    for key, name in names.items():
        if before.get(key) != now[key]:
            raise JobError(
                f"{folder} is of another {name}: {_difference(before.get(key), now[key])}; "
                "choose another --out, or --overwrite"
            )


def _difference(before: Any, now: Any) -> str:  # Any: JSON
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in (*now, *before):
            if before.get(key) != now.get(key):
                return f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
    return f"it was {before!r} and is {now!r}"


def _cut(folder: Path, catalogue: Catalogue, part_rows: int, limit: int | None) -> int:
    """Writes the plan but for the manifest; how many rows there are."""
    plan = folder / PLAN
    shutil.rmtree(plan, ignore_errors=True)
    plan.mkdir(parents=True)
    hashes: list[NDArray[np.uint64]] = []
    key = secrets.token_bytes(16)
    rows = 0
    for number, table in enumerate(_pieces(catalogue.rows(limit), part_rows)):
        write_table(plan / f"part-{number:05d}.parquet", table)
        hashes.append(_hashes(table[URL], key))
        rows += len(table)
    all_hashes = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    _, first, which = np.unique(all_hashes, return_index=True, return_inverse=True)
    firsts = first[which]
    copies = np.flatnonzero((firsts != np.arange(rows)) & (all_hashes != 0))
    np.save(plan / "copies.npy", np.stack([copies, firsts[copies]]).astype(np.int64))
    return rows


def _pieces(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += len(table)
        if count >= rows:
            joined = pa.concat_tables(held)
            while len(joined) >= rows:
                yield joined.slice(0, rows)
                joined = joined.slice(rows)
            held, count = [joined], len(joined)
    if count:
        yield pa.concat_tables(held)


def _hashes(urls: pa.ChunkedArray, key: bytes) -> NDArray[np.uint64]:
    """64 bits for each URL, 0 where there is none.

    Of a hundred million URLs two have the same with a chance of 3 in 10,000. Who writes the URLs does not know the
    `key`, so nobody can make two that do.
    """
    hashed = (
        int.from_bytes(hashlib.blake2b(_encoded(url), digest_size=8, key=key).digest())
        if url and url.strip()
        else 0
        for url in urls.to_pylist()
    )
    return np.fromiter(hashed, np.uint64, len(urls))


def _encoded(url: str) -> bytes:
    return url.strip().encode("utf-8", "surrogatepass")
