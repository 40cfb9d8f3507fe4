"""What each worker says of itself once a second: its resident memory, and what it has in work.

prometheus_client's own metrics of a process do not exist where several processes answer as one, as BentoML's
workers do: each writes its values to a file of its own, and whoever is asked reads all the files. So each
has to write, whether it is asked or not. It takes less than 0.1 ms of each second.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from embedder.metrics.measures import Metrics
from embedder.runtime.memory import resident_memory_bytes

EVERY_S = 1.0


async def report(
    metrics: Metrics,
    *,
    in_flight_images: Callable[[], int],
    in_flight_bytes: Callable[[], int],
    folder: Path | None,
) -> None:
    """Keeps this worker's gauges up to date until it is cancelled. `folder`: where workers keep their metrics."""
    while True:
        metrics.in_flight_images.set(in_flight_images())
        metrics.in_flight_bytes.set(in_flight_bytes())
        with suppress(OSError):  # no descriptor is left: the next time
            metrics.resident_memory.set(resident_memory_bytes())
            if folder is not None:
                _forget_ended_workers(folder)
        await asyncio.sleep(EVERY_S)


def _forget_ended_workers(folder: Path) -> None:
    """A worker that was killed leaves its file, and what it had in work would be counted without end."""
    for file in folder.glob("gauge_live*_*.db"):
        try:
            os.kill(int(file.stem.rpartition("_")[2]), 0)
        except OSError:  # there is none of that number any more, or it is somebody else's
            file.unlink(missing_ok=True)  # another worker may have been faster
