"""Catalogues cut into parts, and what becomes of columns that are called as ours are."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bulk.catalogue import ID, URL, opened
from bulk.errors import JobError
from bulk.folder import RESULTS, schema
from bulk.plan import Plan, planned

SAID = {"embedder.model": "resnet18:1", "embedder.fingerprint": "0123456789ab", "embedder.dimension": "512"}


def plan(folder: Path, catalogue: Path) -> Plan:
    made, _ = planned(
        folder,
        opened(str(catalogue)),
        said=SAID,
        part_rows=4,
        limit=None,
        settings={},
    )
    return made


def urls(folder: Path, texts: list[str]) -> Path:
    (folder / "urls.txt").write_text("\n".join(texts))
    return folder / "urls.txt"


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (4, [4]), (5, [4, 1]), (11, [4, 4, 3])])
def test_parts_have_the_rows_in_order(count: int, sizes: list[int], tmp_path: Path) -> None:
    made = plan(tmp_path / "out", urls(tmp_path, [f"u{n}" for n in range(count)]))
    tables = [made.read(number) for number in range(made.parts)]
    assert [len(table) for table in tables] == sizes
    assert pa.concat_tables(tables)[URL].to_pylist() == [f"u{n}" for n in range(count)]
    assert pa.concat_tables(tables)[ID].to_pylist() == [str(n) for n in range(count)]


def test_a_url_that_came_before_is_a_copy_of_the_first(tmp_path: Path) -> None:
    texts = ["a", "b", "a", "c", "b", "a", "d"]
    made = plan(tmp_path / "out", urls(tmp_path, texts))
    firsts = {row: texts.index(url) for row, url in enumerate(texts) if texts.index(url) != row}
    assert made.firsts(0) | made.firsts(1) == firsts
    assert set(made.firsts(0)) == {2}


def test_rows_without_a_url_are_no_copies_of_each_other(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": [None, "", " ", None, "a", " a"]}), tmp_path / "x.parquet")
    made = plan(tmp_path / "out", tmp_path / "x.parquet")
    assert made.firsts(0) | made.firsts(1) == {5: 4}


def test_it_is_cut_again_where_it_was_not_cut_to_the_end(tmp_path: Path) -> None:
    catalogue = urls(tmp_path, [f"u{n}" for n in range(6)])
    (tmp_path / "out" / "_plan").mkdir(parents=True)
    (tmp_path / "out" / "_plan" / "part-00009.parquet").write_bytes(b"half")
    made = plan(tmp_path / "out", catalogue)
    assert len(made.read(1)) == 2
    assert not (tmp_path / "out" / "_plan" / "part-00009.parquet").exists()


def test_parts_of_nobody_knows_what_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "part-00000.parquet").write_bytes(b"somebody's")
    with pytest.raises(JobError, match="is no job's folder; choose another one"):
        plan(tmp_path, urls(tmp_path, ["a"]))


def test_a_kept_column_that_is_called_as_ours_gets_another_name() -> None:
    names = ("status", "status_input", "price", "model")
    made = schema([pa.field(name, pa.int64()) for name in names], {"embedder.model": "x"})
    assert made.names == [
        *("status_input_input", "status_input", "price", "model_input"),
        *(field.name for field in RESULTS),
    ]
