"""Find near copies among the pictures of a catalogue.

    python scripts/find_duplicates.py DIR --threshold 0.97 --report duplicates.html --csv duplicates.csv

DIR is what scripts/embed_catalogue.py made. The report is one page that loads nothing: its thumbnails are fetched now,
with all guards of fetching, and are in it. They show what the network sees, the middle of each picture.

Ends with 0; with one line that says why not, and 2; with 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bulk.commands import Parser, add_common, output, run, say, whole

if TYPE_CHECKING:
    from bulk.index import Searchable
    from bulk.vectors import Rows, Stored


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    return run("find_duplicates", lambda: _find(options))


def _find(options: argparse.Namespace) -> None:
    # Here, as they take a second, and arguments are refused at once.
    from bulk.duplicates import INDEX_NEIGHBOURS, groups, page, write_csv
    from bulk.files import replaced
    from bulk.index import Index, how, searchable
    from bulk.vectors import Stored

    stored = Stored.of(options.folder)
    # Opened first: what can't be written is said before the minutes of work.
    with replaced(options.report) as beside, beside.open("w", encoding="utf-8") as report:
        vectors = searchable(stored, options.exact_rows, lambda text: say("find_duplicates", text))
        say("find_duplicates", f"comparing {stored.rows:,} rows")
        found = groups(stored, vectors, options.threshold)
        if options.csv:
            write_csv(options.csv, vectors, found)
        rows = sum(map(len, found))
        compared = how(vectors.quick_recall if isinstance(vectors, Index) else None)
        if isinstance(vectors, Index):
            compared += f", each row with its {INDEX_NEIGHBOURS} nearest"
        summary = f"{len(found):,} groups with {rows:,} rows of {stored.rows:,}, {compared}"
        shown = found[: options.limit_groups]
        title = (
            f"{summary}. Each has a cosine of {options.threshold:g} or more with another of its group; below it is "
            "its cosine with the first. "
        )
        title += f"The {len(shown):,} largest groups follow." if len(shown) < len(found) else ""
        report.writelines(page(title, _sections(stored, vectors, shown)))
    print(summary)
    print(f"report: {options.report}" + (f", all rows: {options.csv}" if options.csv else ""))


def _sections(stored: Stored, vectors: Searchable, found: Sequence[Rows]) -> Iterator[str]:
    from itertools import islice

    from bentoml.exceptions import BentoMLException

    from bulk.duplicates import SHOWN, members, section
    from bulk.pictures import any_engine, jpeg, source, started
    from embedder.engine import SHARED_WINDOW, StartError
    from embedder.errors import EmbedderError

    shown = [list(islice(members(vectors, group[:SHOWN]), SHOWN)) for group in found]
    urls = [member.url or "" for group in shown for member in group]
    pictures: list[bytes | str] = []
    try:
        engine = any_engine(stored)
        limit = engine.settings.max_image_bytes
        with started(engine) as runner:
            for first in range(0, len(urls), SHARED_WINDOW):  # so many files in memory at once
                sources = [source(url, limit) for url in urls[first : first + SHARED_WINDOW]]
                for picture in runner.run(engine.pixels(sources)):
                    pictures.append(str(picture) if isinstance(picture, EmbedderError) else jpeg(picture))
    except (BentoMLException, StartError) as error:  # no model: the groups are true without pictures
        say("find_duplicates", f"no thumbnails: {error}")
        pictures = [str(error)] * len(urls)
    for number, (group, rows) in enumerate(zip(found, shown, strict=True), 1):
        yield section(number, len(group), [(member, pictures.pop(0)) for member in rows])


def _threshold(text: str) -> float:
    try:
        if 0 < float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a cosine over 0 and up to 1")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="find_duplicates.py", description="Find near copies among a catalogue's pictures.")
    add_common(parser)
    parser.add_argument(
        "--threshold",
        type=_threshold,
        default=0.97,
        metavar="COSINE",
        help="rows of at least this cosine are of one group (%(default)s)",
    )
    parser.add_argument("--report", type=output, required=True, metavar="HTML", help="the page to write")
    parser.add_argument("--csv", type=output, metavar="CSV", help="a table of all rows of all groups")
    parser.add_argument(
        "--limit-groups", type=whole, default=200, metavar="N", help="groups on the page (%(default)s)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
