"""What a CDN's smaller pictures save and cost: images a second, bytes, and how far the vectors move.

    EMBEDDER_MODEL=efficientnet_lite0:latest python -m benchmarks.renditions --size 12MP --images 400

Each side embeds the same photos by an engine in this process, from an origin that speaks Cloudinary's grammar and
really resizes. What it makes is made before anything is timed, as a CDN keeps what it has made.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import numpy as np

from benchmarks.photos import SIZES, make_photos
from embedder.engine import Engine
from embedder.result import Result
from embedder.settings import Settings
from tests.cdn import Cloudinary

WORK = Path(__file__).resolve().parent / ".work" / "photos"
IN_WORK = 16


async def embedded(settings: Settings, urls: list[str], count: int) -> tuple[float, list[Result]]:
    """Images a second for `count` of the `urls`, round and round; and a result of each. Raises what one failed of."""
    async with Engine(settings) as engine:
        results = await engine.embed(urls)
        began_s = time.perf_counter()
        # A URL that is new each time: equal ones under way are fetched once.
        again = [f"{urls[number % len(urls)]}?{number}" for number in range(count)]
        rest = [result async for result in engine.stream(again)]
        took_s = time.perf_counter() - began_s
    for result in results + rest:
        if result.error is not None:
            raise result.error
    return count / took_s, results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="12MP")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    files = make_photos(WORK / options.size, options.size)
    with Cloudinary() as cdn:
        urls = [cdn.put(file.name, file.read_bytes()) for file in files]
        original = replace(
            Settings.from_environ(os.environ),
            allowed_networks=(ip_network("127.0.0.0/8"),),
            allowed_ports=frozenset({cdn.port}),
            max_in_flight_images=max(IN_WORK, 64),
            fetch_timeout_s=40,
            cache_entries=0,
        )
        small = replace(original, renditions=(f"cloudinary@{cdn.host}",))
        rates: dict[str, list[float]] = {"original": [], "rendition": []}
        made: dict[str, list[Result]] = {}
        for _ in range(options.rounds):
            for name, settings in (("original", original), ("rendition", small)):
                rate, made[name] = asyncio.run(embedded(settings, urls, options.images))
                rates[name].append(rate)
    for name, results in made.items():
        kb = statistics.mean((result.bytes or 0) / 1000 for result in results)
        print(f"{name}: {statistics.median(rates[name]):.1f} images/s, {kb:.0f} kB a picture")
    vectors = {name: np.stack([r.embedding for r in results]) for name, results in made.items()}  # type: ignore[misc]
    cosines = np.sum(vectors["original"] * vectors["rendition"], axis=1)
    print(f"cosine: worst {cosines.min():.4f}, mean {cosines.mean():.4f}, of {len(cosines)} photos")


if __name__ == "__main__":
    main()
