"""Tables behind URIs, by Daft: object stores, Delta, Iceberg, Lance, Hugging Face.

    s3://bucket/shop/*.parquet   gs://...   az://...   https://...   file://...   .csv .tsv .jsonl .parquet, also .gz
    hf://datasets/owner/name     delta+s3://bucket/table     iceberg+s3://bucket/t/metadata/v3.json     lance+s3://...

Credentials are Daft's matter: it looks where the object store's own tools do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from bulk.errors import JobError


def daft_module() -> Any:  # Any: Daft, which is there only with its extra
    """Daft, which reports its use unless it is told not to before it is imported. Raises JobError without it."""
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    try:
        import daft
    except ImportError as error:
        raise JobError("URIs and Ray take Daft: python scripts/setup.py daft") from error
    return daft


def table(uri: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    daft = daft_module()
    try:
        frame = _frame(daft, uri)
        schema = frame.schema().to_pyarrow_schema()
    except JobError:
        raise
    except (
        Exception
    ) as error:  # Daft's, pyarrow's, deltalake's and the object stores' have no base class in common
        raise _unreadable(uri, error) from error

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from frame.to_arrow_iter()
        except Exception as error:  # as above
            raise _unreadable(uri, error) from error

    return schema, batches()


def _frame(daft: Any, uri: str) -> Any:  # Any: as above
    form, plus, rest = uri.partition("+")
    if plus and form == "delta":
        return daft.read_deltalake(rest)
    if plus and form == "lance":
        return daft.read_lance(rest)
    if plus and form == "iceberg":
        try:
            from pyiceberg.table import StaticTable
        except ImportError as error:
            raise JobError("Iceberg tables take pyiceberg: pip install pyiceberg") from error
        return daft.read_iceberg(StaticTable.from_metadata(rest))
    if uri.startswith("hf://datasets/") and "." not in uri.rpartition("/")[2]:
        return daft.read_huggingface(uri.removeprefix("hf://datasets/"))
    name = uri.lower().removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        delimiter = "\t" if name.endswith(".tsv") else ","
        names = daft.read_csv(uri, delimiter=delimiter).column_names
        # As text: an id of 007 is no 7.
        schema = dict.fromkeys(names, daft.DataType.string())
        return daft.read_csv(uri, delimiter=delimiter, infer_schema=False, schema=schema)
    if name.endswith((".json", ".jsonl", ".ndjson")):
        return daft.read_json(uri)
    if name.endswith((".parquet", ".pq", "/")):
        return daft.read_parquet(uri)
    kinds = ".csv .tsv .jsonl .parquet, hf://datasets/, delta+, iceberg+, lance+"
    raise JobError(f"{uri} is of no kind that is read: {kinds}")


def _unreadable(uri: str, error: Exception) -> JobError:
    return JobError(f"{uri} can't be read: {str(error).strip().partition(chr(10))[0][:300]}")
