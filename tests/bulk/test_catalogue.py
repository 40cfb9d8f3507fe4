"""Catalogues in every form: which columns are taken, what stays as it was written, what is refused in one line."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bulk.catalogue import ID, URL, Catalogue, opened
from bulk.errors import JobError

URLS = [f"https://shop.example/{n}.jpg" for n in range(3)]
CSV = "sku,image_url,price\n007,{}\n0008,{}\nnine,{}\n".format(
    *(f"{url},1{n}.50" for n, url in enumerate(URLS))
)
LINES = [{"sku": "007", "image_url": URLS[0], "price": 10.5}, {"sku": "0008", "image_url": URLS[1]}]
LINES.append({"sku": "nine", "image_url": URLS[2], "tags": ["a", "b"]})


def table(catalogue: Catalogue) -> pa.Table:
    return pa.concat_tables(catalogue.rows())


def parquet(path: Path) -> None:
    columns = {"sku": ["007", "0008", "nine"], "image_url": URLS, "price": [10.5, 11.5, 12.5]}
    pq.write_table(pa.table(columns), path)


WAYS: dict[str, Callable[[Path], object]] = {
    "shop.csv": lambda path: path.write_text(CSV),
    "shop.csv.gz": lambda path: path.write_bytes(gzip.compress(CSV.encode())),
    "shop.tsv": lambda path: path.write_text(CSV.replace(",", "\t")),
    "semicolons.csv": lambda path: path.write_text(CSV.replace(",", ";")),
    "excel.csv": lambda path: path.write_bytes(b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode()),
    "shop.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, LINES)) + "\n"),
    "shop.ndjson.gz": lambda path: path.write_bytes(
        gzip.compress("\n\n".join(map(json.dumps, LINES)).encode())
    ),
    "shop.parquet": parquet,
}


@pytest.mark.parametrize("name", WAYS)
def test_ids_and_urls_are_read_as_they_are_written(name: str, tmp_path: Path) -> None:
    WAYS[name](tmp_path / name)
    catalogue = opened(str(tmp_path / name))
    assert catalogue.said.startswith(
        "URLs are in the column 'image_url', ids are the column 'sku', kept is price"
    )
    found = table(catalogue)
    assert found[ID].to_pylist() == ["007", "0008", "nine"]
    assert found[URL].to_pylist() == URLS
    first = found["price"].to_pylist()[0]
    assert first == (
        10.5 if name == "shop.parquet" else "10.50" if "csv" in name or "tsv" in name else "10.5"
    )


def test_json_lines_keep_every_key_that_any_line_has(tmp_path: Path) -> None:
    WAYS["shop.jsonl"](tmp_path / "shop.jsonl")
    found = table(opened(str(tmp_path / "shop.jsonl")))
    assert found["tags"].to_pylist() == [None, None, '["a","b"]']
    assert found["price"].to_pylist() == ["10.5", None, None]


def test_a_list_of_urls_is_numbered(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_bytes(
        "\n".join(["\ufeff" + URLS[0], "", f"  {URLS[1]}\r", URLS[2]]).encode()
    )
    found = table(opened(str(tmp_path / "urls.txt")))
    assert found[URL].to_pylist() == URLS
    assert found[ID].to_pylist() == ["0", "1", "2"]


def test_a_row_without_an_id_has_its_number(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [5, None, 7], "url": URLS}), tmp_path / "shop.parquet")
    assert table(opened(str(tmp_path / "shop.parquet")))[ID].to_pylist() == ["5", "1", "7"]


@pytest.mark.parametrize(
    ("head", "url", "id"),
    [
        ("id,url", "url", "id"),
        ("Product ID,Image URL", "Image URL", "Product ID"),
        ("image,url", "url", None),
        ("IMAGE_LINK,sku", "IMAGE_LINK", "sku"),
        ("src,ean", "src", "ean"),
        ("a,b", "b", None),  # by what it holds
    ],
)
def test_columns_are_found_by_usual_names_or_by_what_they_hold(
    head: str, url: str, id: str | None, tmp_path: Path
) -> None:
    names = head.split(",")
    row = [URLS[0] if name == url else "1" for name in names]
    (tmp_path / "shop.csv").write_text(f"{head}\n{','.join(row)}\n")
    columns = opened(str(tmp_path / "shop.csv")).columns
    assert (columns.url, columns.id) == (url, id)


def test_columns_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text(f"id,url,a,b\n1,x,{URLS[0]},c\n")
    catalogue = opened(str(tmp_path / "shop.csv"), url_column="a", id_column="b", keep="url, id")
    found = table(catalogue)
    assert found.to_pylist() == [{"url": "x", "id": "1", ID: "c", URL: URLS[0]}]


def test_a_pattern_takes_several_files_in_order(tmp_path: Path) -> None:
    for number, url in enumerate(URLS):
        (tmp_path / f"part-{number}.csv").write_text(f"url\n{url}\n")
    assert table(opened(str(tmp_path / "part-*.csv")))[URL].to_pylist() == URLS
    assert table(opened(str(tmp_path)))[URL].to_pylist() == URLS


def test_the_same_bytes_are_the_same_catalogue_and_others_are_not(tmp_path: Path) -> None:
    for name, text in (("a.csv", CSV), ("b.csv", CSV), ("c.csv", CSV + f"ten,{URLS[0]},1\n")):
        (tmp_path / name).write_text(text)
    same, copy, other = (opened(str(tmp_path / name)).identity for name in ("a.csv", "b.csv", "c.csv"))
    assert same == copy
    assert same != other


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.csv", b"", "can't be read: it is empty"),
        ("x.csv", b"url,b\n1,2\n3\n", "can't be read: CSV parse error: "),
        (
            "x.csv",
            "url,b\nhttps://a/é.jpg,ü\n".encode("latin1"),
            "(is it Latin-1? iconv -f latin1 -t utf8 makes",
        ),
        ("x.csv", b"url,url\n1,2\n", "has several columns 'url': rename one"),
        ("x.csv", b"a,b\nhttp://x/,https://y/\n", "several columns hold URLs: a, b; say --url-column NAME"),
        ("x.csv.gz", b"url\n", "can't be read: "),
        ("x.jsonl", b'{"url": 1}\n{"url"\n', "line 2: "),
        ("x.json", b'[{"url": "https://x/"}]', "jq -c '.[]' makes"),
        ("x.parquet", b"PAR1", "can't be read: "),
        ("x.xlsx", b"PK", "is of no kind that is read: .csv, .tsv"),
        ("x.txt", b"\n\n", "has no rows"),
    ],
)
def test_what_can_not_be_read_is_one_line(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JobError) as failed:
        table(opened(str(tmp_path / name)))
    assert says in str(failed.value)
    assert "\n" not in str(failed.value)
    assert name in str(failed.value)


def test_files_of_several_kinds_or_with_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url\nx\n")
    (tmp_path / "b.tsv").write_text("url\nx\n")
    with pytest.raises(JobError, match=r"files of several kinds: \.csv, \.tsv"):
        opened(str(tmp_path))
    (tmp_path / "b.tsv").unlink()
    (tmp_path / "b.csv").write_text("link\nx\n")
    with pytest.raises(JobError, match=r"b\.csv has other columns than .*a\.csv"):
        table(opened(str(tmp_path)))


@pytest.mark.parametrize("name", ["shop.csv", "shop.csv.gz", "shop.tsv", "shop.jsonl", "shop.parquet"])
def test_daft_reads_what_is_behind_a_uri(name: str, tmp_path: Path) -> None:
    WAYS[name](tmp_path / name)
    found = table(opened(f"file://{tmp_path / name}"))
    assert found[ID].to_pylist() == ["007", "0008", "nine"]
    assert found[URL].to_pylist() == URLS


@pytest.mark.parametrize(
    "uri", ["file:///none/shop.csv", "file:///none/shop.bin", "none+x://y", "s4://a/b.csv"]
)
def test_a_uri_that_can_not_be_read_is_one_line(uri: str) -> None:
    with pytest.raises(JobError) as failed:
        table(opened(uri))
    assert uri in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_file_name_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"")
    with pytest.raises(JobError, match=r"\\xff\.jpg' is not in UTF-8: rename it"):
        opened(str(tmp_path))
