"""Writes docs/settings.md from the table in embedder/settings.py.

python scripts/settings_page.py           write it
python scripts/settings_page.py --check   end with 1 when it is not what the table says
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from embedder.settings import ROWS, Row, name_of  # noqa: E402 - see above

PAGE = ROOT / "docs" / "settings.md"

GROUPS = {
    "Serving": (
        "model",
        "precision",
        "workers",
        "threads",
        "batching",
        "max_batch_size",
        "port",
        "cache_entries",
        "probe_inputs",
    ),
    "Limits": (
        *("max_urls", "max_inputs", "max_body_bytes", "max_image_bytes", "max_image_pixels"),
        *("max_in_flight_images", "max_in_flight_bytes"),
    ),
    "Decoding": ("formats", "decoders", "max_decoding_bytes", "decode_timeout_s"),
    "Fetching": (
        *("fetch_timeout_s", "connect_timeout_s", "max_redirects", "allowed_hosts", "allowed_ports"),
        *("allowed_networks", "renditions", "contact", "proxy"),
    ),
    "Access": ("api_keys", "open_routes", "cors_origins", "playground"),
}

BEGINNING = """\
<!-- Written by scripts/settings_page.py from embedder/settings.py: change it there. -->

# Settings

Each setting is an environment variable. One that is not set, or blank, has its default. A value that can't be used
stops the start with one line that says what the variable takes; so does an `EMBEDDER_` variable that is not in these
tables, because a misspelt limit would be no limit. (What Kubernetes sets for Services of that name is left alone.) The
service listens on all addresses, or on the one in BentoML's `BENTOML_HOST`. `make serve PORT=8001` sets the port. A
Python program gives the same settings by their names without `EMBEDDER_`: `Settings(max_urls=8)`.
"""

END = """\
## What `auto` means

| setting | `auto` |
|---|---|
| `EMBEDDER_WORKERS` | one for each core that CPU affinity and the cgroup's quota leave, at least 2, at most 256 |
| `EMBEDDER_DECODERS` | the cores divided by the workers, at least 2 |
| `EMBEDDER_MAX_IN_FLIGHT_BYTES` | a quarter of a worker's share of the memory, 64 MB to 1 GB |
| `EMBEDDER_MAX_DECODING_BYTES` | three quarters of a worker's share of the memory, 128 MB to 2 GB |

A worker's share: four fifths of the memory that the machine has, or the smallest limit of the process's cgroups;
divided by the workers; less 400 MB for the worker itself. Where a process may only map so much (`ulimit -v` or `-d`),
the share is at most four fifths of what that leaves. `EMBEDDER_MAX_IN_FLIGHT_BYTES` is never less than one request may
bring: `EMBEDDER_MAX_IMAGE_BYTES`, and twice `EMBEDDER_MAX_BODY_BYTES`.

## Memory and time of decoding

Each worker has `EMBEDDER_DECODERS` processes that decode, one picture at a time. Large pictures are decoded one after
the other, with three quarters of `EMBEDDER_MAX_DECODING_BYTES`; small ones go past them, each with its share of the
rest. A picture is small when 16 MB and 20 bytes for each of its pixels fit into that share. One that takes more memory
than a large picture may is answered `bad_image`.

`EMBEDDER_DECODE_TIMEOUT_S` is for any picture. Of processor time a small one has 2 s, and as much more of that limit as
its pixels are of `EMBEDDER_MAX_IMAGE_PIXELS`.
"""


def page() -> str:
    """The whole page. Raises ValueError where a setting is in no group, or a group has something else."""
    grouped = sorted(name for names in GROUPS.values() for name in names)
    if grouped != sorted(map(name_of, ROWS)):
        raise ValueError("scripts/settings_page.py: GROUPS and embedder/settings.py have different settings")
    return "\n".join([BEGINNING, *(_table(title, names) for title, names in GROUPS.items()), END])


def _table(title: str, names: tuple[str, ...]) -> str:
    rows = {variable: row for variable, row in ROWS.items() if name_of(variable) in names}
    return "\n".join([f"## {title}\n", *_lines(rows), ""])


def _lines(rows: dict[str, Row]) -> Iterator[str]:
    yield "| variable | default | takes | meaning |"
    yield "|---|---|---|---|"
    for variable, row in rows.items():
        default = f"`{row.default}`" if row.default else ""
        yield f"| `{variable}` | {default} | {row.kind.takes} | {row.meaning} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 when it is stale")
    if not parser.parse_args().check:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page())
        return 0
    if PAGE.is_file() and PAGE.read_text() == page():
        return 0
    print(f"{PAGE.relative_to(ROOT)} is not what embedder/settings.py says: python scripts/settings_page.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
