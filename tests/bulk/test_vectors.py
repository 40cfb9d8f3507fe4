"""Vectors of a folder, and their neighbours: in memory, and through an index."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bulk import index as bulk_index
from bulk.errors import JobError
from bulk.folder import ROW_GROUP, Folder
from bulk.index import INDEX, RECALL_AT, Index, how, sample, searchable
from bulk.vectors import Loaded, Stored, nearest
from tests.bulk.folders import Vectors, clustered, row, write
from tests.server import ROOT

DIMENSION = 24


def brute_force(queries: Vectors, vectors: Vectors, k: int) -> tuple[list[list[int]], list[list[float]]]:
    """The rows and cosines by the definition, in float64, all at once."""
    cosines = queries.astype(np.float64) @ vectors.astype(np.float64).T
    rows = [np.lexsort((np.arange(len(vectors)), -each))[:k].tolist() for each in cosines]
    return rows, [[float(cosines[query, n]) for n in found] for query, found in enumerate(rows)]


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return clustered(2 * ROW_GROUP + 500, DIMENSION, clusters=40, spread=0.4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vectors: Vectors) -> Path:
    """Three parts. Every seventh row of the catalogue failed, and has a number of its own."""
    rows = []
    for number, vector in enumerate(vectors):
        if number % 7 == 0:
            rows.append(row(90_000 + number, None))
        rows.append(row(number, vector))
    return write(tmp_path_factory.mktemp("folder"), rows, dimension=DIMENSION, per_part=4000)


def test_a_folder_says_what_its_vectors_are_of(folder: Path, vectors: Vectors) -> None:
    stored = Stored.of(folder)
    assert (stored.rows, stored.dimension, stored.precision) == (len(vectors), DIMENSION, "fp32")
    assert (stored.model, stored.fingerprint) == ("resnet18:made", "0123456789ab")
    loaded = Loaded(stored)
    assert loaded.embeddings.dtype == np.float32
    np.testing.assert_array_equal(loaded.embeddings, vectors)
    assert loaded.table["id"].to_pylist() == [f"{number:05d}" for number in range(len(vectors))]


def test_exact_neighbours_are_those_of_the_definition(folder: Path, vectors: Vectors) -> None:
    loaded = Loaded(Stored.of(folder))
    queries = clustered(5, DIMENSION, clusters=5, spread=1, seed=1)
    scores, rows = loaded.nearest(queries, 12)
    expected_rows, expected_scores = brute_force(queries, vectors, 12)
    assert rows.tolist() == expected_rows
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    found = loaded.rows(rows[0]).to_pylist()
    assert [each["url"] for each in found] == [f"https://shop.example/{n}.jpg" for n in expected_rows[0]]
    assert how(None) == "compared exactly"


def test_equal_vectors_score_equal_and_the_earlier_row_is_first(tmp_path: Path) -> None:
    vectors = clustered(ROW_GROUP + 50, DIMENSION, clusters=40, spread=0.4)
    copies = [3, 1000, ROW_GROUP - 1, ROW_GROUP, ROW_GROUP + 49]
    vectors[copies] = vectors[3]
    rows = [row(number, vector) for number, vector in enumerate(vectors)]
    loaded = Loaded(Stored.of(write(tmp_path, rows, dimension=DIMENSION)))
    scores, found = loaded.nearest(vectors[3:4], 5)
    assert found.tolist() == [copies]
    assert len(set(scores[0])) == 1
    assert scores[0, 0] == pytest.approx(1, abs=1e-6)


def test_all_rows_are_neighbours_where_there_are_fewer_than_asked_for(tmp_path: Path) -> None:
    vectors = clustered(3, DIMENSION, clusters=3, spread=0.1)
    write(tmp_path, [row(n, vector) for n, vector in enumerate(vectors)], dimension=DIMENSION)
    _, rows = Loaded(Stored.of(tmp_path)).nearest(vectors[:1], 12)
    assert rows.tolist() == brute_force(vectors[:1], vectors, 12)[0]


def test_exact_search_holds_one_block_whatever_the_rows() -> None:
    queries = clustered(20, DIMENSION, clusters=5, spread=1)

    def peak(blocks: int) -> int:
        def made() -> Iterator[Vectors]:
            for seed in range(blocks):
                yield clustered(1000, DIMENSION, clusters=5, spread=1, seed=seed)

        tracemalloc.start()
        nearest(queries, made(), 10)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(40) < 1.1 * peak(4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("nothing", "is not a folder"),
        ("empty", "has no part-NNNNN.parquet that is done"),
        ("not done", "has no part-NNNNN.parquet that is done"),
        ("all failed", "has no row with a vector"),
        (
            "two models",
            "part-00001.parquet has the fingerprint ffffffffffff, part-00000.parquet has 0123456789ab",
        ),
        ("foreign", "does not say the model of its vectors"),
        ("columns", "url, embedding, status"),
        ("short", "has a vector that is not 24 numbers"),
        ("damaged", "can't be read"),
    ],
)
def test_a_folder_that_cannot_be_searched_is_refused_in_one_line(
    tmp_path: Path, vectors: Vectors, content: str, words: str
) -> None:
    path = tmp_path / "out"
    good = [row(0, vectors[0])]
    if content == "empty":
        path.mkdir()
    elif content == "not done":
        write(path, good, dimension=DIMENSION)
        Folder(path).stats(0).unlink()
    elif content == "all failed":
        write(path, [row(0, None), row(1, None)], dimension=DIMENSION)
    elif content == "two models":
        write(path, good, dimension=DIMENSION)
        write(path, good, dimension=DIMENSION, first_part=1, said={"embedder.fingerprint": "ffffffffffff"})
    elif content in ("foreign", "columns"):
        write(path, good, dimension=DIMENSION)
        table = pa.table({"id": ["1"]})
        said = pq.read_schema(Folder(path).part(0)).metadata if content == "columns" else {}
        pq.write_table(table.replace_schema_metadata(said), Folder(path).part(0))
    elif content == "short":
        write(path, [row(0, vectors[0][:-1])], dimension=DIMENSION)
    elif content == "damaged":
        write(path, good, dimension=DIMENSION)
        Folder(path).part(0).write_bytes(b"PAR1 no more")
    with pytest.raises(JobError, match=words) as refusal:
        Loaded(Stored.of(path))
    assert len(str(refusal.value).splitlines()) == 1


def test_an_index_states_the_recall_that_a_calculation_gives(tmp_path: Path) -> None:
    # So hard that the index misses some: spread evenly, and cut in 94 pieces, of which 64 are searched, or 4.
    vectors = clustered(9000, 64, clusters=9000, spread=1)
    write(tmp_path, [row(n, vector) for n, vector in enumerate(vectors)], dimension=64)
    said: list[str] = []
    found = searchable(Stored.of(tmp_path), 8999, said.append)
    assert isinstance(found, Index)
    assert said == [f"building the index of 9,000 rows in {tmp_path / INDEX}"]
    own = sample(9000)
    assert (len(own), len(set(own.tolist()))) == (100, 100)
    true, _ = brute_force(vectors[own], vectors, RECALL_AT + 1)
    for quick, stated in ((False, found.recall), (True, found.quick_recall)):
        _, rows = found.nearest(vectors[own], RECALL_AT + 1, quick=quick)
        kept = 0
        for number, expected, got in zip(own.tolist(), true, rows.tolist(), strict=True):
            others = [n for n in got if n not in (number, -1)][:RECALL_AT]
            kept += len(set(others) & set(expected) - {number})
        assert stated == pytest.approx(kept / (100 * RECALL_AT))
        assert 0.1 < stated < 1
    assert f"finds {found.recall:.2%} of the 10 nearest" in how(found.recall)


def test_an_index_gives_cosines_and_rows_and_is_made_again_only_for_other_parts(tmp_path: Path) -> None:
    vectors = clustered(2000, DIMENSION, clusters=20, spread=0.3)
    rows = [row(n, vector, sha256=f"{n:064x}") for n, vector in enumerate(vectors)]
    write(tmp_path, rows, dimension=DIMENSION)
    said: list[str] = []
    index = Index.of(Stored.of(tmp_path), said.append)
    scores, numbers = index.nearest(vectors[[7, 3]], 3)
    np.testing.assert_allclose(scores, np.einsum("qkd,qd->qk", vectors[numbers], vectors[[7, 3]]), atol=1e-6)
    assert numbers[:, 0].tolist() == [7, 3]
    assert index.rows(numbers[0]).to_pylist() == [
        {
            "id": f"{n:05d}",
            "url": f"https://shop.example/{n}.jpg",
            "sha256": f"{n:064x}",
            "duplicate_of": None,
        }
        for n in numbers[0].tolist()
    ]
    np.testing.assert_array_equal(index.vectors(numbers[0]), vectors[numbers[0]])

    again = Index.of(Stored.of(tmp_path), said.append)
    assert (len(said), again.recall) == (1, index.recall)

    write(tmp_path, [row(5000, vectors[7])], dimension=DIMENSION, first_part=1)
    more = Index.of(Stored.of(tmp_path), said.append)
    assert len(said) == 2
    assert sorted(more.nearest(vectors[7:8], 2)[1][0].tolist()) == [7, 2000]
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_build_that_fails_leaves_no_index_and_no_leftovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clustered(300, DIMENSION, clusters=20, spread=0.3)
    write(tmp_path, [row(n, vector) for n, vector in enumerate(vectors)], dimension=DIMENSION)
    before = sorted(tmp_path.iterdir())

    def full(*_: object) -> dict[str, float]:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(bulk_index, "_recalls", full)
        with pytest.raises(OSError, match="no space"):
            Index.of(Stored.of(tmp_path), lambda text: None)
    assert sorted(tmp_path.iterdir()) == before


def test_without_pylance_one_line_says_what_to_install(
    tmp_path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [row(n, vectors[n]) for n in range(3)], dimension=DIMENSION)
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(JobError, match="pylance is not installed: pip install") as refusal:
        searchable(Stored.of(tmp_path), 2, lambda text: None)
    assert len(str(refusal.value).splitlines()) == 1


def test_lance_is_imported_only_for_an_index(folder: Path) -> None:
    program = """
import sys
from pathlib import Path
from bulk.index import searchable
from bulk.vectors import Stored
searchable(Stored.of(Path(sys.argv[1])), 100_000, print)
print([name for name in sys.modules if name.partition(".")[0] == "lance"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
