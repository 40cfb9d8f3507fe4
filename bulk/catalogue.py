"""A catalogue, wherever it is → rows of text: the columns that are kept, `id` and `url`.

    shop.csv  shop.tsv.gz  shop.jsonl  shop.parquet  'part-*.csv'      tables, by pyarrow
    urls.txt                                                           a URL on each line
    photos/   'photos/**/*.jpg'                                        image files
    s3://...  hf://datasets/...  delta+s3://...  iceberg+...           whatever Daft reads (the extra `daft`)

What CSV and JSON hold is kept as text, as it is written: 007 stays 007. Parquet's columns keep their types.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, TypeVar

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq

from bulk.errors import JobError

T = TypeVar("T")

URL_NAMES = (
    *("url", "image_url", "imageurl", "img_url", "image_link"),
    *("image", "img", "link", "src", "picture", "photo"),
)
ID_NAMES = ("id", "sku", "product_id", "item_id", "image_id", "asin", "ean", "gtin", "key", "handle", "uid")
ID, URL = "__id", "__url"
"""The columns of `Catalogue.rows`."""
_IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".avif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ico", ".heic", ".heif", ".jxl"),
)
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".pq", ".txt")
_BATCH_ROWS = 10_000
_LOOKED_AT_ROWS = 100


@dataclass(frozen=True)
class Columns:
    """What of a catalogue is used."""

    url: str
    id: str | None
    """None: rows are numbered."""
    kept: tuple[pa.Field, ...]


@dataclass
class Catalogue:
    """Rows to embed. Raises JobError, when it is opened or read, for what can't be used."""

    said: str
    """What was found, for a person."""
    identity: dict[str, Any]  # Any: JSON
    """Equal exactly when the same catalogue is read again."""
    columns: Columns
    is_files: bool
    """Whether `url` holds paths of local files."""
    _batches: Iterable[pa.RecordBatch] = field(repr=False)

    def rows(self, limit: int | None = None) -> Iterator[pa.Table]:
        """Pieces in order, with the kept columns, then ID (string) and URL (string, or null).

        A row without an id has its number.
        """
        columns, left, number = self.columns, limit, 0
        for batch in self._batches:
            if left is not None:
                batch = batch.slice(0, left)
                left -= len(batch)
            ids = pa.array(map(str, range(number, number + len(batch))), pa.string())
            number += len(batch)
            if columns.id is not None:
                ids = pc.coalesce(_text(batch[columns.id]), ids)
            arrays = [*(batch[field.name] for field in columns.kept), ids, _text(batch[columns.url])]
            names = [*(field.name for field in columns.kept), ID, URL]
            yield pa.Table.from_arrays(arrays, names)
            if left == 0:
                return


def opened(
    source: str, *, url_column: str | None = None, id_column: str | None = None, keep: str = "all"
) -> Catalogue:
    """`keep` is all, none, or names with commas between."""
    if "://" in source:
        from bulk.daft_tables import table

        schema, batches = table(source)
        return _table(source, lambda: {"uri": source}, schema, batches, url_column, id_column, keep)
    files, is_images = _files(source)
    if is_images:
        return _images(source, files)
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise JobError(f"{source} holds files of several kinds: {', '.join(sorted(kinds))}")
    (kind,) = kinds
    schema, batches = _READERS[kind](files)
    return _table(source, lambda: _identity(files), schema, batches, url_column, id_column, keep)


def _files(source: str) -> tuple[list[Path], bool]:
    """The files, sorted, and whether they are images."""
    path = Path(source)
    if path.is_dir():
        if (path / "_delta_log").is_dir():
            raise JobError(f"{source} is a Delta table: write delta+file://{path.resolve()}")
        found = [
            Path(folder) / name
            for folder, folders, names in os.walk(path)
            if not folders.sort()
            for name in names
            if not name.startswith(".")
        ]
    elif path.exists():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(source, recursive=True) if Path(name).is_file()]
    if not found:
        raise JobError(f"{source} is no file, no folder with files, and no pattern that fits any")
    images = sorted(file for file in found if file.suffix.lower() in _IMAGES)
    if images:
        return images, True
    tables = sorted(file for file in found if _kind(file) in _READERS)
    if not tables:
        names = ", ".join((*_TABLES, "each also .gz, and image files"))
        raise JobError(f"{source} is of no kind that is read: {names}")
    return tables, False


def _kind(file: Path) -> str:
    name = file.name.lower().removesuffix(".gz")
    return os.path.splitext(name)[1]


def _images(source: str, files: Sequence[Path]) -> Catalogue:
    """Their ids are their paths below the folder; a pattern's, below the part of it that is no pattern."""
    path = Path(source)
    base = path if path.is_dir() else Path(re.split(r"[*?\[]", source, maxsplit=1)[0])
    if not base.is_dir():
        base = base.parent
    digest = hashlib.sha256()
    for file in files:
        if not str(file).isprintable() and os.fsencode(file).decode("utf-8", "replace") != str(file):
            raise JobError(f"the name {os.fsencode(file)!r} is not in UTF-8: rename it")
        status = file.stat()
        digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())

    def batches() -> Iterator[pa.RecordBatch]:
        for some in _batched(files):
            ids = [str(file.relative_to(base)) for file in some]
            yield pa.RecordBatch.from_arrays(
                [pa.array(ids), pa.array([str(file) for file in some])], ["id", "path"]
            )

    return Catalogue(
        said=f"{len(files)} image files; their ids are their paths below {base}",
        identity={"files": len(files), "sha256": digest.hexdigest()},
        columns=Columns("path", "id", ()),
        is_files=True,
        _batches=batches(),
    )


def _identity(files: Sequence[Path]) -> dict[str, Any]:  # Any: JSON
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened_file:
            digest.update(hashlib.file_digest(opened_file, "sha256").digest())
    return {"files": len(files), "bytes": sum(f.stat().st_size for f in files), "sha256": digest.hexdigest()}


def _table(
    source: str,
    identity: Callable[[], dict[str, Any]],  # Any: JSON. Reads all there is, so it is called last
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
    url_column: str | None,
    id_column: str | None,
    keep: str,
) -> Catalogue:
    first = next(batches, None)
    if first is None or not len(first):
        raise JobError(f"{source} has no rows")
    names = list(schema.names)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise JobError(f"{source} has several columns {twice!r}: rename one")
    url = (
        _named(source, names, url_column, "--url-column") if url_column else _url_column(source, names, first)
    )
    found = _named(source, names, id_column, "--id-column") if id_column else _usual(names, ID_NAMES)
    id = found if found != url else None
    others = [field for field in schema if field.name not in (url, id)]
    if keep == "none":
        others = []
    elif keep != "all":
        wanted = [name.strip() for name in keep.split(",")]
        others = [schema.field(_named(source, names, name, "--keep")) for name in wanted]
        others = [field for field in others if field.name not in (url, id)]
    kept = ", ".join(field.name for field in others) or "nothing else"
    rows = "the rows' numbers" if id is None else f"the column {id!r}"
    return Catalogue(
        said=f"URLs are in the column {url!r}, ids are {rows}, kept is {kept}",
        identity=identity(),
        columns=Columns(url, id, tuple(others)),
        is_files=False,
        _batches=chain([first], batches),
    )


def _named(source: str, names: Sequence[str], name: str, option: str) -> str:
    if name not in names:
        raise JobError(f"{source} has no column {name!r} ({option}); it has {', '.join(names)}")
    return name


def _usual(names: Sequence[str], usual: Sequence[str]) -> str | None:
    """The column with the most usual of the names, however it is spelt."""
    plain = {re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"): name for name in reversed(names)}
    return next((plain[name] for name in usual if name in plain), None)


def _url_column(source: str, names: Sequence[str], first: pa.RecordBatch) -> str:
    """By its name; else the only column that holds URLs."""

    def holds_urls(name: str) -> bool:
        column = first.column(names.index(name)).slice(0, _LOOKED_AT_ROWS)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return False
        texts = [text for text in column.to_pylist() if text]
        return bool(texts) and all(
            re.match(r"(https?://|data:)", text.strip(), re.IGNORECASE) for text in texts
        )

    usual = _usual(names, URL_NAMES)
    if usual is not None:
        return usual
    urls = [name for name in names if holds_urls(name)]
    if len(urls) == 1:
        return urls[0]
    has = (
        f"several columns hold URLs: {', '.join(urls)}" if urls else f"it has the columns {', '.join(names)}"
    )
    raise JobError(f"which column of {source} has the URLs? {has}; say --url-column NAME")


def _text(column: pa.Array) -> pa.Array:
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        raise JobError("the column of URLs or of ids holds binary data, not text in UTF-8")
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise JobError(f"the column of URLs or of ids can't be read as text: {_line(error)}") from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


# Readers: files of one kind → their schema and their rows, a piece at a time.

_Read = tuple[pa.Schema, Iterator[pa.RecordBatch]]


def _is_gzip(file: Path) -> bool:
    return file.name.lower().endswith(".gz")


def _opened(file: Path) -> IO[bytes]:
    return gzip.open(file, "rb") if _is_gzip(file) else file.open("rb")  # type: ignore[return-value]


def _batched(items: Iterable[T]) -> Iterator[list[T]]:
    left = iter(items)
    while some := list(islice(left, _BATCH_ROWS)):
        yield some


def _separated(files: Sequence[Path], delimiter: str | None = None) -> _Read:
    header = _header(files[0])
    delimiter = delimiter or max(",;\t|", key=header.count)
    names = _names(files[0], delimiter)
    schema = pa.schema([pa.field(name, pa.string()) for name in names])

    def batches() -> Iterator[pa.RecordBatch]:
        for file in files:
            if _names(file, delimiter) != names:
                raise JobError(f"{file} has other columns than {files[0]}")
            try:
                yield from _csv_reader(file, delimiter, schema)
            except (pa.ArrowInvalid, OSError, EOFError) as error:
                raise JobError(f"{file} can't be read: {_line(error)}{_hint(error)}") from error

    return schema, batches()


def _header(file: Path) -> str:
    try:
        with _opened(file) as opened_file:
            return opened_file.readline(1_000_000).decode("utf-8-sig", "replace")
    except (OSError, EOFError) as error:
        raise JobError(f"{file} can't be read: {_line(error)}") from error


def _names(file: Path, delimiter: str) -> list[str]:
    try:
        return list(_csv_reader(file, delimiter, None).schema.names)
    except pa.ArrowInvalid as error:
        said = "it is empty" if "Empty CSV file" in str(error) else f"{_line(error)}{_hint(error)}"
        raise JobError(f"{file} can't be read: {said}") from error


def _csv_reader(file: Path, delimiter: str, types: pa.Schema | None) -> pv.CSVStreamingReader:
    return pv.open_csv(
        pa.input_stream(str(file), compression="gzip" if _is_gzip(file) else None),
        read_options=pv.ReadOptions(block_size=4_000_000, use_threads=False),
        parse_options=pv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pv.ConvertOptions(column_types=types, strings_can_be_null=False),
    )


def _hint(error: Exception) -> str:
    utf8 = "invalid UTF8" in str(error)
    return " (is it Latin-1? iconv -f latin1 -t utf8 makes UTF-8 of it)" if utf8 else ""


def _json(files: Sequence[Path]) -> _Read:
    """JSON lines. Their columns are all keys that any line has, so the files are read twice."""
    names = list(dict.fromkeys(key for file in files for line in _objects(file) for key in line))
    schema = pa.schema([pa.field(name, pa.string()) for name in names])

    def batches() -> Iterator[pa.RecordBatch]:
        for rows in _batched(line for file in files for line in _objects(file)):
            columns = [pa.array([_as_text(row.get(name)) for row in rows], pa.string()) for name in names]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return schema, batches()


def _objects(file: Path) -> Iterator[dict[str, Any]]:  # Any: JSON
    with _opened(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                content = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                array = " (JSON lines are read, an object on each line: jq -c '.[]' makes them of an array)"
                raise JobError(f"{file}, line {number}: {error}{array if number == 1 else ''}") from error
            if not isinstance(content, dict):
                raise JobError(
                    f"{file}, line {number}: it is no object (jq -c '.[]' makes lines of an array)"
                )
            yield content


def _as_text(value: Any) -> str | None:  # Any: JSON
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


def _lines(files: Sequence[Path]) -> _Read:
    schema = pa.schema([pa.field("url", pa.string())])

    def urls() -> Iterator[str]:
        for file in files:
            with _opened(file) as lines:
                texts = (line.decode("utf-8-sig", "replace").strip() for line in lines)
                yield from filter(None, texts)

    return schema, (pa.RecordBatch.from_arrays([pa.array(some)], schema=schema) for some in _batched(urls()))


def _parquet(files: Sequence[Path]) -> _Read:
    try:
        schema = pq.read_schema(files[0])
    except (pa.ArrowInvalid, OSError) as error:
        raise JobError(f"{files[0]} can't be read: {_line(error)}") from error

    def batches() -> Iterator[pa.RecordBatch]:
        for file in files:
            try:
                with pq.ParquetFile(file) as opened_file:
                    if not opened_file.schema_arrow.equals(schema):
                        raise JobError(f"{file} has other columns than {files[0]}")
                    yield from opened_file.iter_batches(_BATCH_ROWS)
            except (pa.ArrowInvalid, OSError) as error:
                raise JobError(f"{file} can't be read: {_line(error)}") from error

    return schema, batches()


_READERS: dict[str, Callable[[Sequence[Path]], _Read]] = {
    ".csv": _separated,
    ".tsv": partial(_separated, delimiter="\t"),
    ".json": _json,
    ".jsonl": _json,
    ".ndjson": _json,
    ".parquet": _parquet,
    ".pq": _parquet,
    ".txt": _lines,
}
