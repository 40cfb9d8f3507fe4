"""A catalogue, embedded from its first row to its last: the sides, and what is done to them, by turns.

Each side runs twice for a turn, over few rows and over many. What the many take beyond the few is what is counted:
start and end take as long in both.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from benchmarks import apart, ceiling
from benchmarks.origin import Origin
from benchmarks.processes import Finished, Processes
from benchmarks.results import MIN_COSINE, Catalogue, JobRun
from benchmarks.scenarios import Plan
from benchmarks.servers import OURS, ROOT, Setting
from tests.weights import discriminating_state_dict, torchvision_embeddings

FEW_ROWS = 64
"""A few batches for each core, so that these keep all cores busy too."""


@dataclass(frozen=True)
class Job:
    """One way to embed a catalogue.

    In `command`, {catalogue} stands for a CSV with the columns `id` and `url`, {out} for a folder that is not there.
    It leaves Parquet files there with `id` and `embedding`.
    """

    name: str
    label: str
    package: str
    """Without this package it can't run."""
    command: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    """Beside what all sides get; {ports}, those of the origin, is filled in, and {apart}, the commands of `apart`."""
    apart: str = ""
    """What is installed into a virtual environment of its own, as it can't be beside the rest."""
    precision: str = ""
    """Of ours."""

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None


def _ours(precision: str) -> Job:
    return Job(
        f"bulk-{precision}",
        f"embed_catalogue.py, {precision}",
        "pyarrow",
        (
            *("scripts/embed_catalogue.py", "{catalogue}", "--out", "{out}"),
            *("--precision", precision, "--progress", "none"),
        ),
        environ=OURS,
        precision=precision,
    )


JOBS = (
    _ours("fp32"),
    _ours("int8"),
    Job(
        "img2dataset",
        "img2dataset, then torch",
        "pyarrow",
        ("-m", "benchmarks.sides.img2dataset_torch", "{catalogue}", "{out}"),
        environ={
            "BENCH_IMG2DATASET": "{apart}/img2dataset",
            # Else each of its processes asks the package index for a newer version.
            "NO_ALBUMENTATIONS_UPDATE": "1",
        },
        apart="img2dataset==1.47.0",
    ),
    Job(
        "daft",
        "Daft with torch",
        "daft",
        ("-m", "benchmarks.sides.daft_job", "{catalogue}", "{out}"),
        environ={"DO_NOT_TRACK": "true", "DAFT_PROGRESS_BAR": "0"},
    ),
)


@dataclass
class JobBench:
    results: Catalogue
    plan: Plan
    origin: Origin
    photos: Mapping[str, list[Path]]
    models: Mapping[str, Path]
    """The network of ours, by precision."""
    jobs: Sequence[Job]
    setting: Setting

    def run(self) -> None:
        """Every side once a round, forwards and backwards by turns, as in `scenarios`.

        Raises RuntimeError where a job fails, leaves a row out, or gives a wrong vector.
        """
        commands = {
            job.name: apart.commands(job.apart, self.setting.folder) for job in self.jobs if job.apart
        }
        for size in self.results.rows:
            pictures = [Image.open(file).convert("RGB") for file in self.photos[size]]
            expected = torchvision_embeddings(discriminating_state_dict(), pictures)
            for number in range(self.plan.rounds):
                for job in self.jobs[:: -1 if number % 2 else 1]:
                    _say(f"round {number + 1} of {self.plan.rounds}, a catalogue of {size}: {job.label}")
                    self._turn(job, size, expected, str(commands.get(job.name, "")))

    def _turn(self, job: Job, size: str, expected: NDArray[np.float64], apart: str) -> None:
        ours, others = self.results.rows[size]
        rows = ours if job.precision else others
        few = self.finished(job, size, FEW_ROWS, expected, apart)
        origin_s = self.origin.processes.cpu_s()
        many = self.finished(job, size, FEW_ROWS + rows, expected, apart)
        origin_s = self.origin.processes.cpu_s() - origin_s
        self.results.runs.append(
            JobRun(
                side=job.name,
                size=size,
                rate=rows / (many.wall_s - few.wall_s),
                cpu_ms=1000 * (many.cpu_s - few.cpu_s) / rows,
                origin_cpu_ms=1000 * origin_s / (FEW_ROWS + rows),
                few_s=few.wall_s,
                peak_mb=many.peak_mb,
            )
        )
        if job.precision:
            bare = max(self._bare(job.precision, size, batch) for batch in self.plan.ceiling_batches)
            self.results.ceiling.setdefault(job.precision, {}).setdefault(size, []).append(bare)

    def _bare(self, precision: str, size: str, batch: int) -> tuple[float, float]:
        """Images per second, and processor time per image in ms."""
        rate, cpu_ms = ceiling.said(
            self.models[precision],
            precision,
            self.photos[size][0].parent,
            *("--processes", str(self.setting.workers), "--batch", str(batch)),
            *("--seconds", str(self.plan.seconds)),
        )
        return rate, cpu_ms

    def finished(self, job: Job, size: str, rows: int, expected: NDArray[np.float64], apart: str) -> Finished:
        """What it took, once its vectors were looked at."""
        folder = self.setting.folder / "job"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        catalogue, out = folder / "catalogue.csv", folder / "out"
        run = time.monotonic_ns()  # no URL was asked for before
        with catalogue.open("w") as file:
            file.write("id,url\n")
            for row in range(rows):
                url = f"{self.origin.prefix(size)}{row % len(self.photos[size])}.jpg?n={run}-{row}"
                file.write(f"{row},{url}\n")
        names = {
            "catalogue": str(catalogue),
            "out": str(out),
            "ports": str(self.origin.port),
            "apart": apart,
        }
        log_file = self.setting.folder / f"{job.name}.log"
        with log_file.open("wb") as log:
            processes = Processes(
                subprocess.Popen(
                    [sys.executable, *(part.format(**names) for part in job.command)],
                    cwd=ROOT,
                    env=self.setting.environ(job.environ, names),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
            try:
                finished = processes.finish()
            except BaseException:
                processes.stop()
                raise
        if finished.status != 0:
            raise RuntimeError(f"{job.label} ended with {finished.status}: see {log_file}")
        worst = self.results.min_cosine.get(job.name, 1.0)
        self.results.min_cosine[job.name] = min(worst, _min_cosine(job, out, rows, expected))
        return finished


def _min_cosine(job: Job, out: Path, rows: int, expected: NDArray[np.float64]) -> float:
    """The worst of the vectors in `out`; row n has the photo n of `expected`, and round again."""
    files = [pq.ParquetFile(file).read(["id", "embedding"]) for file in sorted(out.glob("*.parquet"))]
    ids = np.array([int(name) for table in files for name in table["id"].to_pylist()])
    if sorted(ids) != list(range(rows)) or any(table["embedding"].null_count for table in files):
        raise RuntimeError(f"{job.label} left rows out: {len(ids)} of {rows} are in {out}")
    flat = [pa.chunked_array(table["embedding"]).combine_chunks().flatten() for table in files]
    vectors = np.concatenate([array.to_numpy() for array in flat]).reshape(rows, -1)
    worst = float((vectors * expected[ids % len(expected)]).sum(axis=1).min())
    if not worst >= MIN_COSINE:
        raise RuntimeError(f"{job.label} gives wrong vectors: cosine {worst:.4f} to torchvision's")
    return worst


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)
