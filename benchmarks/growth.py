"""How images per second grow: with workers, with connections, with images in a request, with rows of a catalogue.

python -m benchmarks.growth                       takes about 12 minutes
python -m benchmarks.growth --charts rows

Photos of 640 pixels, our side alone. Writes growth.json, growth.md and growth.png beside this file; charts that are not
measured stay there as they are. Ends with 1 when a request fails, or a row is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import requests
from PIL import Image

from benchmarks import load
from benchmarks.jobs import JOBS, JobBench
from benchmarks.load import LoadError
from benchmarks.origin import Origin
from benchmarks.results import Catalogue, describe_machine
from benchmarks.run import BenchError, prepared
from benchmarks.scenarios import FULL
from benchmarks.servers import SIDES, Server, Setting, Side
from embedder.runtime.cpu import available_cores
from tests.weights import discriminating_state_dict, torchvision_embeddings

HERE = Path(__file__).resolve().parent
SIZE = "640"
SECONDS = 5.0
WARM_S = 2.0

WORKERS = (1, 2, 4)
CONNECTIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
IMAGES = (1, 2, 4, 8, 16, 32, 64)
ROWS = (250, 1000, 4000, 16000)
BATCH_CLIENTS = 4
"""Two for each core: while an answer is written, another request is computed."""

LABELS = {
    "workers": "workers, 16 connections, int8",
    "connections": "connections, an image a request",
    "images": f"images in a request, {BATCH_CLIENTS} connections",
    "rows": "rows of a catalogue, from start to end, int8",
}
_COLOURS = ("#0b6e4f", "#4fb286")


@dataclass(frozen=True)
class Point:
    chart: str
    """One of LABELS."""
    line: str
    at: int
    images_per_s: float
    p50_ms: float | None = None
    """Of a request."""
    p99_ms: float | None = None
    peak_mb: float | None = None
    """Of memory."""


@dataclass(frozen=True)
class Bench:
    origin: Origin
    setting: Setting
    photos: list[Path]
    models: dict[str, Path]

    def workers(self) -> Iterator[Point]:
        for cores in range(1, min(2, available_cores()) + 1):
            for workers in WORKERS:
                side = _pinned(_side("int8"), cores, EMBEDDER_WORKERS=str(workers))
                with Server(side, self.setting) as server:
                    line = f"{cores} core{'s' * (cores > 1)}"
                    yield self._point(server, "workers", line, workers, connections=16)

    def connections(self) -> Iterator[Point]:
        for precision in ("int8", "fp32"):
            with Server(_side(precision), self.setting) as server:
                for connections in CONNECTIONS:
                    yield self._point(server, "connections", precision, connections, connections=connections)

    def images(self) -> Iterator[Point]:
        for precision in ("int8", "fp32"):
            with Server(_side(precision), self.setting) as server:
                for images in IMAGES:
                    yield self._point(
                        server, "images", precision, images, connections=BATCH_CLIENTS, urls=images
                    )

    def rows(self) -> Iterator[Point]:
        (job,) = (job for job in JOBS if job.name == "bulk-int8")
        results = Catalogue({}, available_cores(), {job.name: job.label}, {}, rows={})
        bench = JobBench(results, FULL, self.origin, {SIZE: self.photos}, self.models, [job], self.setting)
        pictures = [Image.open(file).convert("RGB") for file in self.photos]
        expected = torchvision_embeddings(discriminating_state_dict(), pictures)
        for rows in ROWS:
            done = bench.finished(job, SIZE, rows, expected, "")
            yield Point("rows", "int8", rows, rows / done.wall_s, peak_mb=done.peak_mb)

    def _point(
        self, server: Server, chart: str, line: str, at: int, *, connections: int, urls: int = 0
    ) -> Point:
        target = server.target(self.origin.prefix(SIZE), len(self.photos))
        if urls:
            target = replace(target, endpoint=f"{server.url}/embed_batch", shape="list", urls=urls)
        load.warm(target, connections=connections, seconds=WARM_S)
        seen = load.run(target, connections=connections, seconds=SECONDS)
        return Point(chart, line, at, seen.rate * max(1, urls), seen.p50_ms, seen.p99_ms)


def _side(precision: str) -> Side:
    (side,) = (side for side in SIDES if side.name == precision)
    return side


def _pinned(side: Side, cores: int, **environ: str) -> Side:
    """`side` on the last `cores` of this machine's; with one of two, the load has the other one."""
    last = sorted(os.sched_getaffinity(0))[-cores:]
    program = (
        f"import os, sys; os.sched_setaffinity(0, {last}); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    return replace(side, command=("-c", program, *side.command), environ={**side.environ, **environ})


def measure(charts: list[str]) -> Iterator[Point]:
    """Raises LoadError, RuntimeError or BenchError."""
    with prepared([SIZE]) as (origin, photos, models, setting):
        bench = Bench(origin, setting, photos[SIZE], models)
        measured: dict[str, Callable[[], Iterator[Point]]] = {
            "workers": bench.workers,
            "connections": bench.connections,
            "images": bench.images,
            "rows": bench.rows,
        }
        for chart in charts:
            for point in measured[chart]():
                print(f"growth: {point}", file=sys.stderr, flush=True)
                yield point


def write(points: list[Point], machine: dict[str, str]) -> None:
    kept = json.dumps({"machine": machine, "points": [asdict(point) for point in points]}, indent=1)
    (HERE / "growth.json").write_text(kept + "\n")
    said = f"Commit {machine['commit']}, {available_cores()} cores of {machine['processor']}. One run each."
    (HERE / "growth.md").write_text("\n\n".join([said, *(_table(points, chart) for chart in LABELS)]) + "\n")
    _draw(points, HERE / "growth.png")


def _table(points: list[Point], chart: str) -> str:
    rows = [
        f"### By {LABELS[chart]}\n",
        "| | | images/s | p50, ms | p99, ms | memory at most, MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for point in points:
        if point.chart == chart:
            others = (point.p50_ms, point.p99_ms, point.peak_mb)
            shown = " | ".join("" if value is None else f"{value:.0f}" for value in others)
            rows.append(f"| {point.line} | {point.at} | {point.images_per_s:.1f} | {shown} |")
    return "\n".join(rows)


def _draw(points: list[Point], file: Path) -> None:
    figure, panels = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
    for panel, (chart, label) in zip(panels.flat, LABELS.items(), strict=True):
        shown = [point for point in points if point.chart == chart]
        for line, colour in zip(dict.fromkeys(point.line for point in shown), _COLOURS, strict=False):
            on_line = [point for point in shown if point.line == line]
            places, rates = [point.at for point in on_line], [point.images_per_s for point in on_line]
            panel.plot(places, rates, marker="o", markersize=4, color=colour, label=line)
        panel.set_xscale("log", base=2)
        places = sorted({point.at for point in shown})
        panel.set_xticks(places, [f"{place:,}" for place in places])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.set_xlabel(label)
        panel.set_ylabel("images per second")
        panel.spines[["top", "right"]].set_visible(False)
        if chart != "rows":
            panel.legend(frameon=False)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--charts", nargs="+", choices=LABELS, default=list(LABELS))
    options = parser.parse_args()
    file = HERE / "growth.json"
    known = json.loads(file.read_text())["points"] if file.exists() else []
    kept = [Point(**point) for point in known if point["chart"] not in options.charts]
    try:
        write([*kept, *measure(options.charts)], describe_machine())
    except (BenchError, LoadError, RuntimeError, requests.RequestException) as exc:
        print(f"growth: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
