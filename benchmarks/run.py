"""`make bench`: the service against what it replaces, what one would write instead, and its ceiling.

python -m benchmarks.run                                     everything
python -m benchmarks.run --quick                             fewer and shorter runs
python -m benchmarks.run --sides fp32,mosec --sizes 640

Writes results.json, results.md and chart.png beside this file. Ends with 1, and writes nothing, when
a side gives a wrong vector or fails a single request.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import requests
from PIL import Image

from benchmarks import report, scenarios
from benchmarks.load import LoadError
from benchmarks.origin import Origin
from benchmarks.photos import SIZES, make_photos
from benchmarks.results import Results, describe_machine
from benchmarks.servers import ROOT, SIDES, Server, Setting, Side
from embedder.runtime.cpu import available_cores
from tests.server import plain_environ
from tests.weights import discriminating_state_dict, save_pth, torchvision_embeddings

HERE = Path(__file__).resolve().parent
WORK = HERE / ".work"
PRECISIONS = ("fp32", "int8")
MIN_COSINE = 0.99


class BenchError(Exception):
    """The benchmark can't be run, or what it would say would be wrong. The message is one line."""


def main() -> int:
    options = _options()
    started_s = time.monotonic()
    try:
        for program, package in (("wrk", "wrk"), ("nginx", "nginx-light")):
            if shutil.which(program) is None:
                raise BenchError(f"{program} is not installed: apt-get install {package}")
        sides = _installed(options.sides)
        results = measure(sides, options.sizes, scenarios.QUICK if options.quick else scenarios.FULL)
    except (BenchError, LoadError, RuntimeError, requests.RequestException) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    results.minutes = round((time.monotonic() - started_s) / 60, 1)
    print(report.write(results, HERE))
    return 0


def measure(sides: Sequence[Side], sizes: Sequence[str], plan: scenarios.Plan) -> Results:
    """Everything, side by side on this machine. Raises BenchError or LoadError."""
    WORK.mkdir(exist_ok=True)
    _say("making photos and the model")
    photos = {size: make_photos(WORK / "photos" / size, size) for size in sizes}
    weights = WORK / "weights.pth"
    if not weights.exists():
        save_pth(weights)
    store = WORK / "bentoml"
    models = _save_models(weights, store, [side.name for side in sides if side.name in PRECISIONS])
    results = Results(
        machine=describe_machine(),
        workers=available_cores(),
        sides={side.name: side.label for side in sides},
        photo_kb={
            size: sum(file.stat().st_size for file in files) / len(files) / 1000
            for size, files in photos.items()
        },
    )
    with Origin(WORK / "photos", WORK) as origin:
        setting = Setting(weights, store, WORK, results.workers, (origin.port, origin.slow_port))
        for side in sides:
            if side.name in models:
                _say(f"starting and stopping {side.label}")
                results.start_s[side.name] = [_start_s(side, setting) for _ in range(1 + plan.starts)][1:]
        for side in sides:
            _say(f"checking {side.label}")
            with Server(side, setting) as server:
                results.min_cosine[side.name] = _check(server, origin, photos)
        scenarios.Bench(results, plan, origin, photos, models, sides, setting).run()
    return results


def _save_models(weights: Path, store: Path, wanted: Sequence[str]) -> dict[str, Path]:
    """Saves the model as a user does; gives the files of the `wanted` precisions."""
    command = [sys.executable, "scripts/save_model.py", "--weights", str(weights), "--precision", "int8"]
    shutil.rmtree(store, ignore_errors=True)
    environ = {**plain_environ(), "BENTOML_HOME": str(store)}
    saved = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    if saved.returncode != 0:
        raise BenchError(f"the model can't be saved: {saved.stderr.strip()}")
    return {name: file for name in wanted for file in store.glob(f"models/*/*/{name}.onnx")}


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


def _installed(sides: Sequence[Side]) -> list[Side]:
    for side in sides:
        if not side.installed:
            _say(f"{side.label} is skipped: pip install {side.package}")
    return [side for side in sides if side.installed]


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    names = {side.name: side for side in SIDES}

    def sides(text: str) -> list[Side]:
        return [names[name] for name in text.split(",")]

    def sizes(text: str) -> list[str]:
        return [name for name in text.split(",") if SIZES[name]]

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--sides", type=sides, default=list(SIDES), help=",".join(names))
    parser.add_argument("--sizes", type=sizes, default=list(SIZES), help=",".join(SIZES))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
