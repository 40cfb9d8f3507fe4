"""The vectors of a folder (`folder.py`), and which of them are nearest.

`Loaded` has all of them in memory and is exact. Beyond EXACT_ROWS (`commands.py`) `index.py` takes its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bulk.errors import JobError
from bulk.folder import RESULTS, ROW_GROUP, SUCCESS, Folder

ROUNDING = 1e-6
"""What a cosine of float32 vectors may be off by: 1e-7 is seen, and one of a picture with itself is 1."""

COLUMNS = ("id", "url", "sha256", "duplicate_of")
"""What is kept of a row beside its vector."""

Matrix: TypeAlias = NDArray[np.float32]
"""Vectors of norm 1: float32 (rows, dimension)."""
Scores: TypeAlias = NDArray[np.float64]
"""Cosines: float64 (queries, k), the largest first. Where k neighbours were not found, -inf at the end."""
Rows: TypeAlias = NDArray[np.int64]
"""Numbers of rows: int64, from 0, over all that have a vector. Of neighbours (queries, k); -1 beside -inf."""


@dataclass(frozen=True)
class Stored:
    """A folder that has vectors, all of one model."""

    folder: Folder
    model: str
    """Its tag in the store of whoever made the vectors."""
    precision: str
    renditions: tuple[str, ...]
    """The setting that its pictures were fetched with."""
    fingerprint: str
    dimension: int
    rows: int
    """How many have a vector."""

    @classmethod
    def of(cls, path: Path) -> Stored:
        """Raises JobError where there are no vectors, or some that must not be compared with each other."""
        folder = Folder(path)
        if not path.is_dir():
            raise JobError(f"{path} is not a folder")
        parts = folder.done()
        if not parts:
            raise JobError(f"{path} has no part-NNNNN.parquet that is done")
        first = _said(folder.part(parts[0]))
        for number in parts[1:]:
            file = folder.part(number)
            if (other := _said(file)["fingerprint"]) != first["fingerprint"]:
                raise JobError(
                    f"{path} has vectors of two models: {file.name} has the fingerprint {other}, "
                    f"{folder.part(parts[0]).name} has {first['fingerprint']}"
                )
        rows = sum(pc.sum(_embedded(batch)).as_py() or 0 for batch in _batches(folder, ["status"]))
        if not rows:
            raise JobError(f"{path} has no row with a vector: all failed, errors.csv says why")
        return cls(
            folder=folder,
            model=first["model"],
            precision=first["precision"],
            renditions=tuple(filter(None, first["renditions"].split(","))),
            fingerprint=first["fingerprint"],
            dimension=int(first["dimension"]),
            rows=rows,
        )

    def blocks(self) -> Iterator[tuple[pa.RecordBatch, Matrix]]:
        """COLUMNS and the vectors of all rows that have one, in order, at most ROW_GROUP at once."""
        for batch in _batches(self.folder, [*COLUMNS, "status", "embedding"]):
            batch = batch.filter(_embedded(batch))
            numbers = pc.list_flatten(batch.column("embedding")).cast(pa.float32())
            if len(numbers) != batch.num_rows * self.dimension or numbers.null_count:
                raise JobError(f"{self.folder.path} has a vector that is not {self.dimension} numbers")
            yield batch.select(COLUMNS), numbers.to_numpy().reshape(-1, self.dimension)

    def texts(self, name: str) -> pa.Array:
        """One of COLUMNS, of all rows that have a vector."""
        batches = _batches(self.folder, ["status", name])
        columns = [batch.filter(_embedded(batch)).column(name) for batch in batches]
        return pa.chunked_array(columns, pa.string()).combine_chunks()

    def identity(self) -> str:
        """Another one when a part was written since."""
        files = [self.folder.part(number) for number in self.folder.done()]
        state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.sha256(repr(state).encode()).hexdigest()


class Loaded:
    """All vectors of a folder in memory, and exact search in them."""

    def __init__(self, stored: Stored) -> None:
        self.embeddings: Matrix = np.empty((stored.rows, stored.dimension), np.float32)
        batches, filled = [], 0
        for batch, vectors in stored.blocks():
            self.embeddings[filled : filled + len(vectors)] = vectors
            batches.append(batch)
            filled += len(vectors)
        self.table = pa.Table.from_batches(batches)

    def nearest(self, queries: Matrix, k: int) -> tuple[Scores, Rows]:
        """The `k` nearest of each of the `queries`, float32 (queries, dimension).

        Of equal ones the earlier row is first.
        """
        firsts = range(0, len(self.embeddings), ROW_GROUP)
        _, rows = nearest(queries, (self.embeddings[first : first + ROW_GROUP] for first in firsts), k)
        # A product's last bit depends on where in a block a row stands. Summed alone, equal vectors score equal.
        scores = np.einsum("qkd,qd->qk", self.embeddings[rows], queries, dtype=np.float64)
        order = np.lexsort((rows, -scores))
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def rows(self, numbers: Rows) -> pa.Table:
        """COLUMNS of the rows with these `numbers`, in their order."""
        return self.table.take(numbers)

    def vectors(self, numbers: Rows) -> Matrix:
        """float32 (len(numbers), dimension), in their order."""
        return self.embeddings[numbers]


def nearest(queries: Matrix, blocks: Iterable[Matrix], k: int) -> tuple[Scores, Rows]:
    """The `k` nearest of all rows of `blocks`, or all where there are fewer. Holds one block's scores at once."""
    scores: Scores = np.empty((len(queries), 0))
    rows: Rows = np.empty((len(queries), 0), np.int64)
    first = 0
    for block in blocks:
        numbers = np.arange(first, first + len(block))
        scores = np.concatenate([scores, queries @ block.T], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(numbers, (len(queries), len(block)))], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        first += len(block)
    return scores, rows


def _batches(folder: Folder, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        for _, batch in folder.batches(columns):
            yield batch
    except pa.ArrowException as error:
        raise JobError(f"{folder.path} can't be read: {error}") from error


def _embedded(batch: pa.RecordBatch) -> pa.Array:
    return pc.equal(batch.column("status"), SUCCESS)


def _said(file: Path) -> dict[str, str]:
    """What a part says of its vectors. Raises JobError where it is none of a catalogue's."""
    try:
        schema = pq.read_schema(file)
    except pa.ArrowException as error:
        raise JobError(f"{file} can't be read: {error}") from error
    metadata = schema.metadata or {}
    said = {}
    for name in ("model", "precision", "renditions", "fingerprint", "dimension"):
        said[name] = metadata.get(f"embedder.{name}".encode(), b"").decode("utf-8", "replace")
        if not said[name] and name != "renditions":
            raise JobError(f"{file} does not say the {name} of its vectors: it is no catalogue's output")
    missing = [field.name for field in RESULTS if field.name not in schema.names]
    if missing or not said["dimension"].isdecimal() or not int(said["dimension"]):
        raise JobError(f"{file} is no catalogue's output: {', '.join(missing) or 'dimension'} is not there")
    return said
