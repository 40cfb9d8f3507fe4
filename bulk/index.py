"""Neighbours among more vectors than memory should hold: a Lance index beside the parts, and how much it misses.

    DIR/_index.lance/               the vectors and their rows, once more, with the index; of one state of the parts
    DIR/_index.lance/_built.json    which state, and the recall that was measured. Written last

Only here is `lance` imported, and only when an index is asked for.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from bulk.errors import JobError
from bulk.files import read_json, write_json
from bulk.vectors import COLUMNS, ROUNDING, Loaded, Matrix, Rows, Scores, Stored, nearest

if TYPE_CHECKING:
    import lance

INDEX = "_index.lance"
BUILT = "_built.json"

RECALL_AT, RECALL_SAMPLE = 10, 100
"""Recall is the share of the RECALL_AT nearest that are found, for so many rows drawn from all."""

# 100,000 x 512 on two shared cores: IVF_SQ is built in 17 s and IVF_HNSW_SQ in 208 s, and IVF_PQ is not done in 250 s.
_KIND = "IVF_SQ"
# Of the 10 nearest among 200,000 x 512 this finds 98 %, in 28 ms; with 20 partitions 94 %, in 13 ms.
_SEARCH = {"nprobes": 64, "refine_factor": 5}
# For whoever asks for each row. Reading vectors to refine by is what takes time: 60,000 x 512, the 50 nearest, 1.1 ms
# a query and not 16 ms.
_QUICK = {"nprobes": 4}
QUANTISED = 0.01
"""What a cosine of a quick search may be off by: each number has 8 bits. 0.004 was the most in 20,000."""


class Index:
    """Vectors in an index, to be asked as `Loaded` is."""

    def __init__(self, dataset: lance.LanceDataset, recall: float = 0, quick_recall: float = 0) -> None:
        self._dataset = dataset
        self.recall = recall
        self.quick_recall = quick_recall

    @classmethod
    def of(cls, stored: Stored, say: Callable[[str], None]) -> Index:
        """That of a folder; built first where there is none of the parts as they are now.

        `say` is told what takes minutes. Raises JobError where pylance is not installed.
        """
        # It warns on stderr of partitions that stay empty, which many equal pictures cause. Read on import.
        os.environ.setdefault("LANCE_LOG", "error")
        try:
            import lance
        except ModuleNotFoundError:
            raise JobError(
                f"{stored.rows:,} rows are searched through a Lance index, and pylance is not installed: "
                "pip install 'pylance>=14,<15', or --exact-rows to compare more of them exactly"
            ) from None
        folder = stored.folder.path / INDEX
        identity = stored.identity()
        built = read_json(folder / BUILT) or {}
        if built.get("identity") != identity:
            say(f"building the index of {stored.rows:,} rows in {folder}")
            built = _build(stored, folder, identity)
        return cls(lance.dataset(str(folder)), built["recall"], built["quick_recall"])

    def nearest(self, queries: Matrix, k: int, *, quick: bool = False) -> tuple[Scores, Rows]:
        """About the `k` nearest of each of the `queries`, float32 (queries, dimension).

        A `quick` search finds fewer of them, and its cosines are off by up to QUANTISED.
        """
        how = _QUICK if quick else _SEARCH
        wanted: dict[str, Any] = {"column": "embedding", "q": queries, "k": k, **how}
        found = self._dataset.to_table(columns=["row", "_distance"], nearest=wanted)
        query = found["query_index"].to_numpy()
        cosines, numbers = 1 - found["_distance"].to_numpy().astype(np.float64), found["row"].to_numpy()
        order = np.lexsort((numbers, -cosines, query))
        query = query[order]
        place = np.arange(len(query)) - np.searchsorted(query, query)  # each query's from 0
        scores = np.full((len(queries), k), -np.inf)
        rows = np.full((len(queries), k), -1, np.int64)
        scores[query, place], rows[query, place] = cosines[order], numbers[order]
        return scores, rows

    def close(self, queries: Matrix, k: int, least: float) -> tuple[Rows, Rows]:
        """Pairs of a query, by its place, and a row with at least that cosine, of those that a quick search finds."""
        scores, rows = self.nearest(queries, k, quick=True)
        places, columns = np.nonzero(scores >= least - QUANTISED)
        numbers = rows[places, columns]
        wanted, which = np.unique(numbers, return_inverse=True)
        if not len(wanted):
            return places, numbers
        exact = np.einsum("pd,pd->p", queries[places], self.vectors(wanted)[which]) >= least
        return places[exact], numbers[exact]

    def rows(self, numbers: Rows) -> pa.Table:
        """As `Loaded.rows`."""
        return self._dataset.take(numbers.tolist(), columns=list(COLUMNS))

    def vectors(self, numbers: Rows) -> Matrix:
        """As `Loaded.vectors`."""
        taken = self._dataset.take(numbers.tolist(), columns=["embedding"])["embedding"].combine_chunks()
        flat: Matrix = taken.flatten().to_numpy()
        return flat.reshape(len(numbers), -1)


Searchable: TypeAlias = Loaded | Index


def searchable(stored: Stored, exact_rows: int, say: Callable[[str], None]) -> Searchable:
    """The vectors of a folder: in memory up to `exact_rows`, else through its index, as `Index.of`."""
    return Loaded(stored) if stored.rows <= exact_rows else Index.of(stored, say)


def how(recall: float | None) -> str:
    """How sure a search is: None is all."""
    if recall is None:
        return "compared exactly"
    return (
        f"compared through an index that finds {recall:.2%} of the {RECALL_AT} nearest "
        f"(measured with up to {RECALL_SAMPLE} of the rows)"
    )


def sample(rows: int) -> Rows:
    """The numbers of those whose neighbours recall is measured with: the same for the same count."""
    drawn = np.random.default_rng(0).choice(rows, min(RECALL_SAMPLE, rows), replace=False)
    return np.sort(drawn).astype(np.int64)


def _build(stored: Stored, folder: Path, identity: str) -> dict[str, Any]:  # Any: JSON
    import lance

    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    vector = pa.list_(pa.float32(), stored.dimension)
    texts = [pa.field(name, pa.string()) for name in COLUMNS]
    schema = pa.schema([pa.field("row", pa.int64()), *texts, pa.field("embedding", vector)])

    def batches() -> Iterator[pa.RecordBatch]:
        first = 0
        for batch, vectors in stored.blocks():
            numbers = pa.array(np.arange(first, first + len(vectors)))
            embeddings = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), stored.dimension)
            yield pa.RecordBatch.from_arrays([numbers, *batch.columns, embeddings], schema=schema)
            first += len(vectors)

    try:
        dataset = lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), str(beside))
        partitions = max(1, int(stored.rows**0.5))
        dataset.create_index("embedding", index_type=_KIND, metric="dot", num_partitions=partitions)
        built = {"identity": identity, "rows": stored.rows, **_recalls(stored, Index(dataset))}
        write_json(beside / BUILT, built)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return built


def _recalls(stored: Stored, index: Index) -> dict[str, float]:
    """Against exact search, a row itself not counted. A neighbour as near as the last true one is as good as it."""
    own = sample(stored.rows)
    queries = index.vectors(own)
    true_scores, true_rows = nearest(queries, (vectors for _, vectors in stored.blocks()), RECALL_AT + 1)
    recalls = {}
    for name, quick in (("recall", False), ("quick_recall", True)):
        _, found_rows = index.nearest(queries, RECALL_AT + 1, quick=quick)
        found = wanted = 0
        for query, row in enumerate(own):
            true = true_scores[query][true_rows[query] != row][:RECALL_AT]
            others = found_rows[query][(found_rows[query] != row) & (found_rows[query] >= 0)][:RECALL_AT]
            scores = index.vectors(others) @ queries[query] if len(others) else np.empty(0)
            found += int((scores >= true[-1:] - ROUNDING).sum())
            wanted += len(true)
        recalls[name] = found / max(1, wanted)
    return recalls
