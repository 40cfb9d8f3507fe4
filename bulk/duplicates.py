"""Groups of rows whose pictures are near copies, and the page and the table that show them.

Two rows are in one group where a chain of rows leads from one to the other, and each step of it has at least the
threshold's cosine.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from bulk.files import replaced
from bulk.folder import ROW_GROUP
from bulk.index import Index, Searchable
from bulk.vectors import ROUNDING, Matrix, Rows, Stored

BLOCK = 2048
"""Rows that are compared with as many at once: twice 17 MB of cosines, and at most 67 MB of pairs."""

INDEX_NEIGHBOURS = 50
"""Through an index each row is compared with so many nearest. Equal files are joined without it."""

SHOWN = 24
"""Rows of a group on the page."""


@dataclass(frozen=True)
class Member:
    """A row of a group."""

    id: str
    url: str | None
    score: float
    """Its cosine with the group's first row."""
    exact: bool
    """Its file has the bytes of an earlier row's."""


def groups(stored: Stored, vectors: Searchable, threshold: float) -> list[Rows]:
    """The rows of each group of two or more, in order; the largest group first.

    Of an index, what it finds: INDEX_NEIGHBOURS for each row.
    """
    roots = np.arange(stored.rows)
    least = threshold - ROUNDING
    pairs = (
        _found(stored, vectors, least) if isinstance(vectors, Index) else _close(vectors.embeddings, least)
    )
    for one, other in pairs:
        _join(roots, one, other)
    _join(roots, *_equal_files(stored))
    roots = _roots(roots, roots)
    order = np.argsort(roots, kind="stable")
    _, firsts = np.unique(roots[order], return_index=True)
    several = [group for group in np.split(order, firsts[1:]) if len(group) > 1]
    return sorted(several, key=lambda group: (-len(group), group[0]))


def members(vectors: Searchable, group: Rows) -> Iterator[Member]:
    """The rows of a group. Holds ROW_GROUP of them at once."""
    first = vectors.vectors(group[:1])[0].astype(np.float64)
    seen: set[str] = set()
    for start in range(0, len(group), ROW_GROUP):
        numbers = group[start : start + ROW_GROUP]
        scores = vectors.vectors(numbers) @ first
        for score, row in zip(scores.tolist(), vectors.rows(numbers).to_pylist(), strict=True):
            exact = row["duplicate_of"] is not None or row["sha256"] in seen
            if row["sha256"] is not None:
                seen.add(row["sha256"])
            yield Member(row["id"], row["url"], score, exact)


def write_csv(path: Path, vectors: Searchable, found: Sequence[Rows]) -> None:
    """A line for each row of a group; groups count from 1."""
    with replaced(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["group", "id", "url", "score", "exact_copy"])
        for number, group in enumerate(found, 1):
            for row in members(vectors, group):
                exact = "true" if row.exact else "false"
                table.writerow([number, row.id, row.url, f"{row.score:.6f}", exact])


_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.4 system-ui, sans-serif; margin: clamp(.75rem, 4vw, 2rem) }
section { border-top: 1px solid #8886 }
ol { display: flex; flex-wrap: wrap; gap: 1rem; list-style: none; padding: 0 }
li { width: 9rem; overflow-wrap: anywhere; font-size: 13px }
img, .none { width: 112px; height: 112px; display: block; background: #8883; overflow: hidden; font-size: 11px }
"""
# Nothing is loaded and nothing runs, whatever an id or URL has in it.
_POLICY = (
    "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"
)


def page(title: str, sections: Iterable[str]) -> Iterator[str]:
    """The HTML of the report, piece by piece."""
    yield (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        f'<meta name="referrer" content="no-referrer">'
        f"<title>Near copies</title><style>{_STYLE}</style>\n<h1>Near copies</h1>\n<p>{escape(title)}</p>\n"
    )
    yield from sections
    yield "</html>\n"


def section(number: int, size: int, shown: Sequence[tuple[Member, bytes | str]]) -> str:
    """A group of `size` rows: those that are `shown`, each with its JPEG, or why it has none."""
    rows = "\n".join(_item(member, picture) for member, picture in shown)
    more = f"<p>and {size - len(shown):,} more</p>" if size > len(shown) else ""
    return f"<section><h2>Group {number}: {size:,} rows</h2>\n<ol>\n{rows}\n</ol>{more}</section>\n"


def _item(member: Member, picture: bytes | str) -> str:
    if isinstance(picture, str):
        shown = f'<span class="none">{escape(picture)}</span>'
    else:
        shown = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
    url = escape(member.url or "")
    # Of what else a browser follows, javascript: runs and file: tells.
    if re.match("https?://", member.url or "", re.IGNORECASE):
        url = f'<a rel="noopener noreferrer nofollow" href="{url}">{url}</a>'
    exact = ", exact copy" if member.exact else ""
    return f"<li>{shown}<b><bdi>{escape(member.id)}</bdi></b><br>{member.score:.4f}{exact}<br><bdi>{url}</bdi></li>"


def _close(embeddings: Matrix, least: float) -> Iterator[tuple[Rows, Rows]]:
    for start in range(0, len(embeddings), BLOCK):
        block = embeddings[start : start + BLOCK]
        for other in range(start, len(embeddings), BLOCK):
            cosines = block @ embeddings[other : other + BLOCK].T
            if (
                cosines.max() >= least
            ):  # most blocks have none, and looking for where takes as long as the product
                one, two = np.nonzero(cosines >= least)
                yield one + start, two + other


def _found(stored: Stored, index: Index, least: float) -> Iterator[tuple[Rows, Rows]]:
    first = 0
    for _, block in stored.blocks():
        for start in range(0, len(block), 512):  # at most 52 MB of vectors of 512, where all are close
            queries = block[start : start + 512]
            one, other = index.close(queries, min(INDEX_NEIGHBOURS, stored.rows), least)
            yield one + first + start, other
        first += len(block)


def _equal_files(stored: Stored) -> tuple[Rows, Rows]:
    """Each row whose file's sha256 is known, and the first row of the same."""
    codes = stored.texts("sha256").dictionary_encode().indices
    known = np.flatnonzero(codes.is_valid())
    _, firsts, inverse = np.unique(codes.drop_null().to_numpy(), return_index=True, return_inverse=True)
    return known, known[firsts][inverse]


def _join(roots: Rows, one: Rows, other: Rows) -> None:
    """Makes `one[i]` and `other[i]` of one group. `roots` has for each row an earlier one of its group, or itself."""
    while len(one):
        one, other = _roots(roots, np.stack([one, other]))
        apart = one != other
        one, other = one[apart], other[apart]
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))


def _roots(roots: Rows, rows: Rows) -> Rows:
    """The first row of each one's group. Ways are shortened by half until none is left."""
    while True:
        above = roots[rows]
        further = roots[above]
        if (above == further).all():
            return above
        roots[rows] = further
