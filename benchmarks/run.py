"""`make bench`: the service and the catalogue's job against what one would write instead, and their ceiling.

python -m benchmarks.run                                     everything
python -m benchmarks.run --quick                             fewer and shorter runs
python -m benchmarks.run --sides fp32,mosec --sizes 640
python -m benchmarks.run --sides bulk-int8,daft              a catalogue

Writes results.json, results.md and chart.png beside this file; the services or the catalogue stay there as they are
where none of their sides takes part. Ends with 1, and writes nothing, when a side gives a wrong vector, fails a single
request, or leaves a row out.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import requests
from PIL import Image

from benchmarks import report, scenarios
from benchmarks.jobs import JOBS, Job, JobBench
from benchmarks.load import LoadError
from benchmarks.origin import Origin
from benchmarks.photos import SIZES, make_photos
from benchmarks.results import MIN_COSINE, Catalogue, Measured, Report, Results, describe_machine
from benchmarks.servers import ROOT, SIDES, Server, Setting, Side
from embedder.model.spec import SAVED_AS
from embedder.runtime.cpu import available_cores
from tests.server import plain_environ
from tests.weights import discriminating_state_dict, save_pth, torchvision_embeddings

HERE = Path(__file__).resolve().parent
WORK = HERE / ".work"
PRECISIONS = ("fp32", "bf16", "int8")


class BenchError(Exception):
    """The benchmark can't be run, or what it would say would be wrong. The message is one line."""


def main() -> int:
    options = _options()
    try:
        for program, package in (("wrk", "wrk"), ("nginx", "nginx-light")):
            if shutil.which(program) is None:
                raise BenchError(f"{program} is not installed: apt-get install {package}")
        found = Report.read(HERE / "results.json")
        sides = _installed(options.sides)
        plan = scenarios.QUICK if options.quick else scenarios.FULL
        measured = measure(sides, options.sizes, replace(plan, rounds=options.rounds or plan.rounds))
    except (BenchError, LoadError, RuntimeError, requests.RequestException) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    both = Report(measured.services or found.services, measured.catalogue or found.catalogue)
    print(report.write(both, HERE))
    return 0


def measure(chosen: Sequence[Side | Job], sizes: Sequence[str], plan: scenarios.Plan) -> Report:
    """Everything, side by side on this machine. Raises BenchError, LoadError or RuntimeError."""
    sides = [side for side in chosen if isinstance(side, Side)]
    rows = {size: plan.job_rows[size] for size in sizes if size in plan.job_rows}
    jobs = [side for side in chosen if isinstance(side, Job)] if rows else []
    if not (sides or jobs):
        raise BenchError(f"nothing to measure: a catalogue has the sizes {', '.join(plan.job_rows)}")
    named = [*(side.apart for side in sides), *(job.apart for job in jobs)]
    apart = dict(name.split("==") for name in named if name)
    machine, workers = {**describe_machine(), **apart}, available_cores()
    measured = Report()
    with prepared(sizes) as (origin, photos, models, setting):
        photo_kb = {
            size: sum(file.stat().st_size for file in files) / len(files) / 1000
            for size, files in photos.items()
        }
        if sides:
            labels = {side.name: side.label for side in sides}
            services = measured.services = Results(machine, workers, labels, photo_kb)
            own = {side.name: models[side.name] for side in sides if side.name in models}
            with _timed(services):
                _measure_services(scenarios.Bench(services, plan, origin, photos, own, sides, setting))
        if jobs:
            labels = {job.name: job.label for job in jobs}
            catalogue = measured.catalogue = Catalogue(machine, workers, labels, photo_kb, rows=rows)
            with _timed(catalogue):
                JobBench(catalogue, plan, origin, photos, models, jobs, setting).run()
    return measured


@contextmanager
def prepared(
    sizes: Sequence[str],
) -> Iterator[tuple[Origin, dict[str, list[Path]], dict[str, Path], Setting]]:
    """The photos' origin, the photos by size, the service's network by precision, and what all sides share.

    Raises BenchError or RuntimeError.
    """
    WORK.mkdir(exist_ok=True)
    _say("making photos and the model")
    photos = {size: make_photos(WORK / "photos" / size, size) for size in sizes}
    weights, store = WORK / "weights.pth", WORK / "bentoml"
    if not weights.exists():
        save_pth(weights)
    models = _save_models(weights, store)
    with Origin(WORK / "photos", WORK) as origin:
        yield (
            origin,
            photos,
            models,
            Setting(weights, store, WORK, available_cores(), (origin.port, origin.slow_port)),
        )


def _measure_services(bench: scenarios.Bench) -> None:
    for side in bench.sides:
        if side.name in bench.models:
            _say(f"starting and stopping {side.label}")
            starts = [_start_s(side, bench.setting) for _ in range(1 + bench.plan.starts)]
            bench.results.start_s[side.name] = starts[1:]
    for side in bench.sides:
        _say(f"checking {side.label}")
        with Server(side, bench.setting) as server:
            bench.results.min_cosine[side.name] = _check(server, bench.origin, bench.photos)
    bench.run()


@contextmanager
def _timed(results: Measured) -> Iterator[None]:
    started_s = time.monotonic()
    yield
    results.minutes = round((time.monotonic() - started_s) / 60, 1)


def _save_models(weights: Path, store: Path) -> dict[str, Path]:
    """Saves the model as a user does; gives its files by precision."""
    command = [sys.executable, "scripts/save_model.py", "--weights", str(weights), "--precision", "int8"]
    shutil.rmtree(store, ignore_errors=True)
    environ = {**plain_environ(), "BENTOML_HOME": str(store)}
    saved = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    if saved.returncode != 0:
        raise BenchError(f"the model can't be saved: {saved.stderr.strip()}")
    (folder,) = store.glob("models/*/*/")
    return {name: folder / f"{SAVED_AS.get(name, name)}.onnx" for name in PRECISIONS}


def _start_s(side: Side, setting: Setting) -> float:
    with Server(side, setting) as server:
        return server.start_s


def _check(server: Server, origin: Origin, photos: dict[str, list[Path]]) -> float:
    """The worst cosine to torchvision's vectors, over some photos. Raises BenchError below MIN_COSINE."""
    server.wait_for_an_answer(f"{origin.prefix(next(iter(photos)))}0.jpg")
    state = discriminating_state_dict()
    worst = 1.0
    for size, files in photos.items():
        for file in files[:4]:
            (expected,) = torchvision_embeddings(state, [Image.open(file).convert("RGB")])
            worst = min(worst, float(server.embed(origin.prefix(size) + file.name) @ expected))
    if not worst >= MIN_COSINE:
        raise BenchError(f"{server.side.label} gives wrong vectors: cosine {worst:.4f} to torchvision's")
    return worst


def _installed(sides: Sequence[Side | Job]) -> list[Side | Job]:
    for side in sides:
        if not side.installed:
            _say(f"{side.label} is skipped: pip install {side.package}")
    return [side for side in sides if side.installed]


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    names: dict[str, Side | Job] = {side.name: side for side in (*SIDES, *JOBS)}

    def sides(text: str) -> list[Side | Job]:
        return [names[name] for name in text.split(",")]

    def sizes(text: str) -> list[str]:
        return [name for name in text.split(",") if SIZES[name]]

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--rounds", type=int, help="of turns: 3, or 2 with --quick")
    parser.add_argument("--sides", type=sides, default=list(names.values()), help=",".join(names))
    parser.add_argument("--sizes", type=sizes, default=list(SIZES), help=",".join(SIZES))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
