"""The most that could be had: the service's own decode and encode in a bare loop, without HTTP.

python -m benchmarks.ceiling MODEL.onnx PHOTOS --precision int8 --processes 2 --batch 8 --seconds 5
python -m benchmarks.ceiling MODEL.onnx PHOTOS --precision int8 --alone

Prints images/s, and the processor time of an image in ms; with --alone the median milliseconds of one image after the
other, in one process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from embedder.images.decode import decode
from embedder.images.formats import ON
from embedder.model.encoder import Encoder
from embedder.model.spec import ModelSpec, Preprocessing

ROOT = Path(__file__).resolve().parent.parent
MAX_PIXELS = 50_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "model", type=Path, help="fp32.onnx or int8.onnx, in its folder of BentoML's model store"
    )
    parser.add_argument("photos", type=Path, help="a folder of .jpg files")
    parser.add_argument("--precision", choices=("fp32", "bf16", "int8"), required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of the network, in each process")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    if options.alone:
        print(alone_ms(options))
    else:
        print(*rate(options))


def said(model: Path, precision: str, photos: Path, *options: str) -> list[float]:
    """What this program prints, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ceiling", str(model), str(photos), "--precision", precision]
    done = subprocess.run([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def rate(options: argparse.Namespace) -> tuple[float, float]:
    """Images per second of all processes together, and the processor time of one in ms."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(options.processes)
    with context.Pool(options.processes, _keep, (barrier,)) as pool:
        loops = pool.map(_loop, [options] * options.processes, chunksize=1)
    return sum(rate for rate, _ in loops), statistics.mean(cpu_ms for _, cpu_ms in loops)


def alone_ms(options: argparse.Namespace) -> float:
    """The median time of one image, decoded and encoded."""
    work = _prepare(options)
    times_ms: list[float] = []
    deadline = time.perf_counter() + options.seconds
    while (start := time.perf_counter()) < deadline:
        work.embed(len(times_ms), 1)
        times_ms.append(1000 * (time.perf_counter() - start))
    return statistics.median(times_ms)


_barrier: Barrier


def _keep(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _loop(options: argparse.Namespace) -> tuple[float, float]:
    work = _prepare(options)
    _barrier.wait()  # until the other processes have read the model too
    count = 0
    start, used_s = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < options.seconds:
        work.embed(count, options.batch)
        count += options.batch
    used_s = time.process_time() - used_s
    return count / (time.perf_counter() - start), 1000 * used_s / count


@dataclass(frozen=True)
class _Work:
    encoder: Encoder
    preprocessing: Preprocessing
    files: list[bytes]

    def embed(self, first: int, count: int) -> None:
        """Decodes and encodes `count` of the files, one after the other from `first` on, and round again."""
        self.encoder.encode(np.stack([self._pixels(number) for number in range(first, first + count)]))

    def _pixels(self, number: int) -> NDArray[np.uint8]:
        file, crop = self.files[number % len(self.files)], self.preprocessing.crop
        picture = decode(file, self.preprocessing, formats=ON, max_pixels=MAX_PIXELS)
        return np.frombuffer(picture.pixels, np.uint8).reshape(crop, crop, 3)


def _prepare(options: argparse.Namespace) -> _Work:
    model: Path = options.model
    metadata = yaml.safe_load((model.parent / "model.yaml").read_text())["metadata"]  # as BentoML writes it
    spec = ModelSpec.from_metadata("ceiling:1", metadata, precision=options.precision)
    encoder = Encoder(spec, threads=options.threads, threads_alone=options.threads)
    encoder.load(model)
    photos = [file.read_bytes() for file in sorted(options.photos.glob("*.jpg"))]
    return _Work(encoder, spec.preprocessing, photos)


if __name__ == "__main__":
    main()
