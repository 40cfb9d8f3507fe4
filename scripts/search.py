"""Find the pictures of a catalogue that are most like one.

    python scripts/search.py DIR --image URL|FILE --top 12 --sheet found.png

DIR is what scripts/embed_catalogue.py made. The picture is embedded here, by the model that the vectors in DIR are of:
the one that DIR names, or EMBEDDER_MODEL where that is not in the store. Another fingerprint is refused.

Ends with 0; with one line that says why not, and 2; with 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bulk.commands import Parser, add_common, output, printable, run, say, whole


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    return run("search", lambda: _search(options))


def _search(options: argparse.Namespace) -> None:
    # Here, as they take a second, and arguments are refused at once.
    from bulk.errors import JobError
    from bulk.index import Index, how, searchable
    from bulk.pictures import engine_for, sheet, source, started
    from bulk.vectors import Stored

    stored = Stored.of(options.folder)
    engine = engine_for(stored)
    limit = engine.settings.max_image_bytes
    with started(engine) as runner:
        query = source(options.image, limit)
        (result,) = runner.run(engine.embed([query]))
        if result.embedding is None:
            raise JobError(f"{options.image} can't be embedded: {result.error}")
        vectors = searchable(stored, options.exact_rows, lambda text: say("search", text))
        (scores,), (numbers,) = vectors.nearest(result.embedding[None], min(options.top, stored.rows))
        scores, numbers = scores[numbers >= 0], numbers[numbers >= 0]
        rows = vectors.rows(numbers).to_pylist()
        if options.sheet:
            sources = [query, *(source(row["url"] or "", limit) for row in rows)]
            captions = [("the query", options.image)]
            captions += [(f"{score:.4f}", row["id"]) for score, row in zip(scores, rows, strict=True)]
            pictures = runner.run(engine.pixels(sources))
            cells = [(picture, *caption) for picture, caption in zip(pictures, captions, strict=True)]
            options.sheet.write_bytes(sheet(cells, engine.spec.preprocessing.crop))
    neighbours = [
        {"rank": rank, "score": round(float(score), 6), "id": row["id"], "url": row["url"]}
        for rank, (score, row) in enumerate(zip(scores, rows, strict=True), 1)
    ]
    recall = vectors.recall if isinstance(vectors, Index) else None
    if options.json:
        said = {
            "image": options.image,
            "model": engine.spec.tag,
            "fingerprint": stored.fingerprint,
            "rows": stored.rows,
            "recall": recall,
            "sheet": str(options.sheet) if options.sheet else None,
            "neighbours": neighbours,
        }
        print(json.dumps(said))
        return
    for each in neighbours:
        place = f"{each['rank']:>3}  {each['score']:.4f}  {each['id']}  {each['url'] or ''}"
        print(printable(place))
    print(f"of {stored.rows:,} rows, {how(recall)}")
    if options.sheet:
        print(f"pictures: {options.sheet}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="search.py", description="Find the pictures of a catalogue that are most like one.")
    add_common(parser)
    parser.add_argument("--image", required=True, metavar="URL|FILE", help="what to look for")
    parser.add_argument("--top", type=whole, default=12, help="so many neighbours (%(default)s)")
    parser.add_argument("--sheet", type=output, metavar="PNG", help="draw the image and its neighbours")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
