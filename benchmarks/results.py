"""What was measured, and on what."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MIN_COSINE = 0.99
"""Of each side's vectors to torchvision's."""
PACKAGES = (
    *("bentoml", "onnxruntime", "openvino", "pillow", "aiohttp", "uvloop", "numpy", "torch", "torchvision"),
    *("fastapi", "uvicorn", "requests", "litserve", "mosec", "ray", "pyarrow", "daft"),
)


@dataclass(frozen=True)
class Run:
    """One side under load for some seconds."""

    side: str
    size: str
    connections: int
    rate: float
    """Images per second."""
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """Processor time per image, all of the side's processes."""
    origin_cpu_ms: float


@dataclass(frozen=True)
class Lone:
    """Medians of requests that are alone, one after the other."""

    idle_ms: float
    """After two seconds without any."""
    after_burst_ms: float
    """Within a second after many at once."""


@dataclass(frozen=True)
class Slow:
    """The other 90 %, in milliseconds, while 10 % of the URLs are on a fast origin or on a slow one."""

    rate: float
    """Of the other 90 %, aimed at; requests per second."""
    p50_fast_ms: float
    p99_fast_ms: float
    p50_slow_ms: float
    p99_slow_ms: float


@dataclass(frozen=True)
class JobRun:
    """One side with a catalogue: what many rows take beyond few, for an image."""

    side: str
    size: str
    rate: float
    """Images per second."""
    cpu_ms: float
    """Processor time per image, all of the side's processes."""
    origin_cpu_ms: float
    few_s: float
    """The job with few rows, from its start to its end."""
    peak_mb: float
    """Of memory, of all of the side's processes, with the many rows."""


@dataclass
class Measured:
    """What is said of any measurement."""

    machine: dict[str, str]
    workers: int
    sides: dict[str, str]
    """Labels by name."""
    photo_kb: dict[str, float]
    """Mean size of a file, by size."""
    minutes: float = 0
    min_cosine: dict[str, float] = field(default_factory=dict)


@dataclass
class Results(Measured):
    """Of the services."""

    start_s: dict[str, list[float]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    ceiling: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Images per second by precision and size."""
    bare_ms: dict[str, list[float]] = field(default_factory=dict)
    """One image alone, decoded and encoded, by precision."""
    lone: dict[str, list[Lone]] = field(default_factory=dict)
    batches: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Images per second: `/embed_batch`, and `/embed` right after it."""
    slow: dict[str, list[Slow]] = field(default_factory=dict)

    def cells(self) -> list[tuple[str, int]]:
        """The sizes and connections that were measured, in order."""
        return list(dict.fromkeys((run.size, run.connections) for run in self.runs))

    def of(self, side: str, size: str, connections: int) -> list[Run]:
        key = (side, size, connections)
        return [run for run in self.runs if (run.side, run.size, run.connections) == key]

    def rate(self, side: str, size: str, connections: int) -> float | None:
        """The median over rounds; None where it was not measured."""
        runs = self.of(side, size, connections)
        return statistics.median(run.rate for run in runs) if runs else None

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Results:  # Any: JSON
        return cls(
            **{
                **said,
                "runs": [Run(**run) for run in said["runs"]],
                "lone": {side: [Lone(**lone) for lone in lones] for side, lones in said["lone"].items()},
                "slow": {side: [Slow(**slow) for slow in slows] for side, slows in said["slow"].items()},
            }
        )


@dataclass
class Catalogue(Measured):
    """Of the jobs that embed a catalogue."""

    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By size: ours, and the others'."""
    runs: list[JobRun] = field(default_factory=list)
    ceiling: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    """Images per second and processor time per image in ms, by precision and size."""

    def of(self, side: str, size: str) -> list[JobRun]:
        return [run for run in self.runs if (run.side, run.size) == (side, size)]

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Catalogue:  # Any: JSON
        return cls(**{**said, "runs": [JobRun(**run) for run in said["runs"]]})


@dataclass
class Report:
    """All there is: each half is of the last run that measured it."""

    services: Results | None = None
    catalogue: Catalogue | None = None

    def write(self, file: Path) -> None:
        said = asdict(self)
        file.write_text(
            json.dumps({**(said["services"] or {}), "catalogue": said["catalogue"]}, indent=1) + "\n"
        )

    @classmethod
    def read(cls, file: Path) -> Report:
        said = json.loads(file.read_text()) if file.exists() else {}
        catalogue = said.pop("catalogue", None)
        return cls(
            Results.from_json(said) if said else None,
            Catalogue.from_json(catalogue) if catalogue else None,
        )


def spread(values: Sequence[float]) -> str:
    """The median and, in brackets, the extremes."""
    median = statistics.median(values)
    digits = 1 if median < 100 else 0
    return f"{median:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def describe_machine() -> dict[str, str]:
    """The commit, processor, memory, system, and the version of everything that took part."""
    cpuinfo = Path("/proc/cpuinfo")
    vnni = "with" if "vnni" in cpuinfo.read_text() else "without"
    facts = {
        "commit": _first_line("git", "describe", "--always", "--dirty", "--exclude=*"),
        "processor": f"{_field(cpuinfo, 'model name') or platform.processor()}, {vnni} VNNI",
        "memory": f"{int(_field(Path('/proc/meminfo'), 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "nginx": _first_line("nginx", "-v").rpartition("/")[2],
        "wrk": _first_line("wrk", "-v").partition(" [")[0].removeprefix("wrk "),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def _field(file: Path, name: str) -> str:
    for line in file.read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return ""


def _first_line(*command: str) -> str:
    shown = subprocess.run(command, capture_output=True, text=True)  # wrk -v ends with 1
    return (shown.stdout or shown.stderr).partition("\n")[0].strip()
