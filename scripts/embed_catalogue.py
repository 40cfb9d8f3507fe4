"""Embeds a catalogue: a CSV, TSV, JSON lines or Parquet file with URLs of images, a list of URLs, a folder of images.

    python scripts/embed_catalogue.py shop.csv --out vectors

DIR gets part-00000.parquet and so on, a row for each of the catalogue's. Whatever stops it, the same command goes on.
It ends with 0; 2 where it can't begin or go on; 3 over --max-failure-rate; 130 when it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bulk.commands import Parser, run, say, typed, whole


def main() -> int:
    options = _parser().parse_args()
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        say("embed_catalogue", "this takes pyarrow: python scripts/setup.py bulk")
        return 2
    return run("embed_catalogue", lambda: _embed(options))


def _embed(options: argparse.Namespace) -> int:
    # Here, as they take a second, and arguments are refused at once.
    from bulk.run import Options, quiet
    from bulk.run import run as embed

    quiet()
    return embed(Options(**vars(options), command=typed(*sys.argv)), os.environ)


def _parser() -> Parser:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = Parser(
        prog="embed_catalogue.py",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("input", metavar="INPUT", help="a file, a folder, a pattern, or a URI that Daft reads (s3://...)")
    add("--out", type=Path, required=True, metavar="DIR", help="the folder of the vectors")
    add("--url-column", metavar="NAME", help="the column with the URLs; otherwise found by its name")
    add(
        "--id-column", metavar="NAME", help="the column with the ids; otherwise found by its name, or numbers"
    )
    add("--keep", default="all", metavar="all|none|A,B", help="which other columns are kept")
    add("--shard-rows", type=whole, default=10_000, metavar="N", help="rows in a part")
    add(
        "--format",
        choices=("parquet", "lance", "npy"),
        default="parquet",
        help="what is made beside the parts",
    )
    add(
        "--precision",
        choices=("fp32", "bf16", "int8"),
        help="of the model; by default what EMBEDDER_PRECISION says",
    )
    add("--concurrency", type=whole, default=64, metavar="N", help="rows in work at once")
    add("--per-host", type=whole, default=16, metavar="N", help="of them from one host")
    add("--limit", type=whole, metavar="N", help="only the first rows")
    add(
        "--max-failure-rate",
        type=_share,
        default=1.0,
        metavar="0.2",
        help="stop when more fail; after 1000 rows",
    )
    add(
        *("--retry-failed",),
        nargs="?",
        const="",
        metavar="CODES",
        help="repeat rows that failed: those whose cause may pass, or those with these codes",
    )
    add("--overwrite", action="store_true", help="begin anew where DIR has another job's vectors")
    add(
        "--server",
        dest="servers",
        action="append",
        default=[],
        metavar="URL",
        help="have services embed, instead of this process",
    )
    add("--runner", choices=("local", "ray"), default="local", help="where it runs")
    add("--ray-address", metavar="ADDRESS", help="the Ray cluster's; otherwise one is started here")
    add("--progress", choices=("auto", "bar", "json", "none"), default="auto", help="what it says meanwhile")
    add("--dry-run", action="store_true", help="try the first 100 rows and say what all would take")
    return parser


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return share


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupted)  # until the job takes both signals for itself
    status = main()
    if (
        "ray" in sys.modules
    ):  # a thread may wait for the cluster still, and Ray's own way out makes 1 of any status
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
