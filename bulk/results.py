"""Results of some rows → the columns of a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa

from bulk.folder import FAILED, PENDING, RESULTS, SUCCESS
from embedder.errors import EmbedderError, OriginError
from embedder.result import Embedding, Result

_MEANINGS = {
    "name": "its name can't be resolved",
    "address": "its address is not public",
    "connection": "it can't be connected to",
}


@dataclass(frozen=True, eq=False)
class Embedded:
    """What became of a row, and when."""

    result: Result
    at: datetime


def text_of(error: EmbedderError) -> str:
    """Its sentence, with what HTTP clients of a service are not told."""
    meaning = _MEANINGS.get(error.reason) if isinstance(error, OriginError) else None
    return f"{error}: {meaning}" if meaning else str(error)


def may_pass(code: str, http_status: int | None) -> bool:
    """Whether the same row may have an embedding another time."""
    if code == "fetch_failed":
        return http_status is None or http_status in (408, 425, 429) or http_status >= 500
    return code in ("fetch_timeout", "overloaded", "draining", "internal_error")


def columns(
    rows: Sequence[int],
    embedded: Mapping[int, Embedded],
    ids: Sequence[str],
    urls: Sequence[str | None],
    model: str,
) -> dict[str, pa.Array]:
    """RESULTS for `rows`, in their order; `ids` and `urls` are theirs. A row that is not `embedded` is PENDING."""
    found = [embedded.get(row) for row in rows]
    results = [Result() if each is None else each.result for each in found]
    errors = [result.error for result in results]
    arrays: dict[str, pa.Array] = {
        "id": pa.array(ids, pa.string()),
        "url": pa.array(urls, pa.string()),
        "embedding": _vectors([result.embedding for result in results]),
        "status": pa.array(
            [PENDING if each is None else FAILED if each.result.error else SUCCESS for each in found]
        ),
        "error_code": pa.array([error and error.code for error in errors], pa.string()),
        "error": pa.array([error and text_of(error) for error in errors], pa.string()),
        "http_status": pa.array([getattr(error, "http_status", None) for error in errors], pa.int16()),
        "duplicate_of": pa.nulls(len(found), pa.string()),
        "embedded_at": pa.array(
            [each.at if each and not each.result.error else None for each in found],
            pa.timestamp("us", tz="UTC"),
        ),
        "model": pa.array([model] * len(found), pa.string()),
    }
    arrays["rendition"] = pa.array(
        [None if result.embedding is None else result.rendition for result in results], pa.bool_()
    )
    for name in ("width", "height", "format", "bytes", "sha256"):
        type = next(field.type for field in RESULTS if field.name == name)
        arrays[name] = pa.array([getattr(result, name) for result in results], type)
    return arrays


def _vectors(vectors: Sequence[Embedding | None]) -> pa.ListArray:
    there = [vector is not None for vector in vectors]
    lengths = [0 if vector is None else len(vector) for vector in vectors]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = np.concatenate([vector for vector in vectors if vector is not None] or [np.empty(0, np.float32)])
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(values, pa.float32()), mask=pa.array([not each for each in there])
    )
