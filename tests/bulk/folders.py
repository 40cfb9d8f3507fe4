"""Folders as a catalogue's job writes them, of vectors that a test has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bulk.folder import FAILED, RESULTS, SUCCESS, Folder, schema
from tests.origin import Origin
from tests.server import ROOT, plain_environ

Vectors = NDArray[np.float32]
SAID = {
    "embedder.model": "resnet18:made",
    "embedder.fingerprint": "0123456789ab",
    "embedder.precision": "fp32",
}


def clustered(rows: int, dimension: int, *, clusters: int, spread: float, seed: int = 0) -> Vectors:
    """Vectors of norm 1 around some directions, as pictures' are."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((clusters, dimension))
    vectors = centres[random.integers(0, clusters, rows)] + spread * random.standard_normal((rows, dimension))
    return normalised(vectors)


def normalised(vectors: NDArray[Any]) -> Vectors:
    divided: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return divided


def row(number: int, vector: Vectors | None, **values: object) -> dict[str, object]:
    """A row of RESULTS; without a vector it failed."""
    empty: dict[str, object] = {field.name: None for field in RESULTS}
    said = {
        "id": f"{number:05d}",
        "url": f"https://shop.example/{number}.jpg",
        "model": SAID["embedder.model"],
    }
    if vector is None:
        failed = {"status": FAILED, "error_code": "fetch_failed", "error": "no such host"}
        return {**empty, **said, **failed, **values}
    return {**empty, **said, "status": SUCCESS, "embedding": vector.tolist(), **values}


def write(
    path: Path,
    rows: Sequence[Mapping[str, object]],
    *,
    dimension: int,
    per_part: int = 10_000,
    first_part: int = 0,
    said: Mapping[str, str] | None = None,
) -> Path:
    """Writes parts of so many rows. `said` replaces what SAID says."""
    path.mkdir(exist_ok=True)
    folder = Folder(path)
    metadata = {**SAID, "embedder.dimension": str(dimension), **(said or {})}
    form = schema([], metadata)
    for number, start in enumerate(range(0, max(1, len(rows)), per_part), first_part):
        folder.write(number, pa.Table.from_pylist(list(rows[start : start + per_part]), form))
    return path


def environ(store: Path, origin: Origin) -> dict[str, str]:
    return {
        **plain_environ(),
        "BENTOML_HOME": str(store),
        "EMBEDDER_ALLOWED_NETWORKS": "127.0.0.0/8",
        "EMBEDDER_ALLOWED_PORTS": str(origin.port),
    }


def command(
    script: str, *arguments: str | Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command as a person types it."""
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", f"scripts/{script}.py", *map(str, arguments)],
        cwd=ROOT,
        env=env or plain_environ(),
        capture_output=True,
        text=True,
    )


def assert_refused(done: subprocess.CompletedProcess[str], script: str, *words: str) -> None:
    """It ended with 2 and one line, which has these words."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{script}: ")
    for word in words:
        assert word in line


def interrupted(script: str, *arguments: str | Path, env: Mapping[str, str], when: int) -> tuple[int, str]:
    """The exit status and stderr after Ctrl-C, which comes when there is something to read at `when`."""
    with subprocess.Popen(
        [sys.executable, f"scripts/{script}.py", *map(str, arguments)],
        cwd=ROOT,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        os.read(when, 1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    return process.returncode, stderr
