"""A catalogue on a local origin of which it is known what must become of each row, and the command that embeds it."""

from __future__ import annotations

import asyncio
import csv
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.bulk import folders
from tests.origin import Origin
from tests.pictures import encoded, photo
from tests.server import ROOT

COLUMNS = ("sku", "image_url", "price", "title")


@dataclass(frozen=True)
class Row:
    sku: str
    image_url: str
    price: str
    title: str
    failure: str | None = None
    """The code of its error."""
    http_status: int | None = None
    same_as: str | None = None
    """The id of the first row with this file."""
    file: bytes | None = None


def pictures(count: int) -> list[bytes]:
    """JPEGs of which no two look the same."""
    noise = np.random.default_rng(1)
    base = np.asarray(photo(120, 90)).astype(np.int64)
    made = []
    for _ in range(count):
        shades = noise.integers(-60, 60, (3, 4, 3)).repeat(30, axis=0).repeat(30, axis=1)
        made.append(
            encoded(Image.fromarray((base + shades).clip(0, 255).astype(np.uint8)), "JPEG", quality=85)
        )
    return made


def rows(origin: Origin, count: int) -> list[Row]:
    """Ids with leading zeros, titles with commas and line ends; one in ten is bad, or there already."""
    chance = random.Random(5)
    files = pictures(count)
    made: list[Row] = []
    good: list[Row] = []
    hung = 0

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    origin.raw("/hangs.jpg", wait)
    for number in range(count):
        sku, price, title = f"{number:05d}", f"{number / 7:.2f}", f'No {number}, "blue"\nsecond line'
        path = f"/shop/{number}.jpg"
        kind = chance.random()
        if kind < 0.02:
            row = Row(sku, origin.url(f"/gone/{number}.jpg"), price, title, "fetch_failed", 404)
        elif kind < 0.03:
            row = Row(sku, f"http://10.0.0.1/{number}.jpg", price, title, "url_not_allowed")
        elif kind < 0.04:
            origin.serve(path, files[number][:700])
            row = Row(sku, origin.url(path), price, title, "bad_image")
        elif kind < 0.05:
            row = Row(sku, "", price, title, "url_not_allowed")
        elif kind < 0.06 and hung < 2:
            hung += 1
            row = Row(sku, origin.url(f"/hangs.jpg?{number}"), price, title, "fetch_timeout")
            origin.raw(f"/hangs.jpg?{number}", wait)
        elif kind < 0.09 and good:
            first = chance.choice(good)
            row = Row(sku, first.image_url, price, title, same_as=first.same_as or first.sku, file=first.file)
        elif kind < 0.12 and good:
            first = chance.choice(good)
            assert first.file is not None
            origin.serve(path, first.file)
            row = Row(
                sku, origin.url(path), price, title, same_as=first.same_as or first.sku, file=first.file
            )
        else:
            origin.serve(path, files[number])
            row = Row(sku, origin.url(path), price, title, file=files[number])
        made.append(row)
        if row.file is not None:
            good.append(row)
    return made


def write_csv(path: Path, made: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([getattr(row, name) for name in COLUMNS] for row in made)
    return path


def write_parquet(path: Path, made: list[Row]) -> Path:
    table = pa.table({name: [getattr(row, name) for row in made] for name in COLUMNS})
    pq.write_table(table, path)
    return path


def environ(store: Path, origin: Origin, **more: str) -> dict[str, str]:
    return {
        **folders.environ(store, origin),
        "EMBEDDER_ALLOWED_PORTS": f"80,443,{origin.port}",
        "EMBEDDER_FETCH_TIMEOUT_S": "2",
        "EMBEDDER_PRECISION": "int8",
        **more,
    }


def command(*arguments: str | Path) -> list[str]:
    script = str(ROOT / "scripts" / "embed_catalogue.py")
    return [sys.executable, "-W", "error::ResourceWarning", script, *map(str, arguments)]


def embed(
    environ: dict[str, str], *arguments: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environ, cwd=cwd, capture_output=True, text=True, timeout=500
    )


def parts(folder: Path) -> pa.Table:
    """All rows of a folder's vectors, but when they were made."""
    files = sorted(folder.glob("part-*.parquet"))
    tables = [pq.read_table(file, partitioning=None) for file in files]
    return pa.concat_tables(tables).drop_columns(["embedded_at"])
