"""The sides: how each is started, and what is posted to it."""

from __future__ import annotations

import secrets
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import requests
from numpy.typing import NDArray

from benchmarks import apart
from benchmarks.load import Shape, Target
from benchmarks.processes import Processes, free_port
from embedder.model import openvino_runtime
from tests.server import plain_environ

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Side:
    """One way to serve embeddings. In `command`, {port} stands for the port."""

    name: str
    label: str
    package: str
    """Without this package it can't run."""
    command: tuple[str, ...]
    ready: str = "/health"
    environ: Mapping[str, str] = field(default_factory=dict)
    """Beside what all sides get; {port} and {ports}, those of the origin, are filled in."""
    path: str = "/embed"
    shape: Shape = "url"
    """Of its request. The answer of "url" is {"embedding": [...]}, of "list" [[...]]."""
    apart: str = ""
    """What is installed into a virtual environment of its own, as it can't be beside the rest."""

    @property
    def installed(self) -> bool:
        if self.name == "bf16" and openvino_runtime.unusable() is not None:
            return False
        return find_spec(self.package) is not None


OURS = {
    "EMBEDDER_CACHE_ENTRIES": "0",
    "EMBEDDER_ALLOWED_NETWORKS": "127.0.0.0/8",
    "EMBEDDER_ALLOWED_PORTS": "{ports}",
}


def _ours(precision: str, package: str = "bentoml") -> Side:
    return Side(
        precision,
        f"this service, {precision}",
        package,
        ("-m", "bentoml", "serve", "."),
        ready="/readyz",
        environ={**OURS, "EMBEDDER_PORT": "{port}", "EMBEDDER_PRECISION": precision},
    )


SIDES = (
    _ours("fp32"),
    _ours("bf16", "openvino"),
    _ours("int8"),
    Side(
        "replaced",
        "the replaced service",
        "fastapi",
        (
            *("-m", "uvicorn", "benchmarks.sides.replaced:app", "--host", "127.0.0.1"),
            *("--port", "{port}", "--workers", "{workers}"),
        ),
    ),
    Side(
        "bentoml",
        "plain BentoML",
        "bentoml",
        (
            *("-m", "bentoml", "serve", "benchmarks.sides.plain_bentoml:PlainEmbedder"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        ready="/readyz",
        shape="list",
    ),
    Side(
        "litserve",
        "LitServe",
        "litserve",
        ("-m", "benchmarks.sides.litserve_api", "--port", "{port}"),
    ),
    Side(
        "mosec",
        "mosec",
        "mosec",
        (
            *("-m", "benchmarks.sides.mosec_server", "--address", "127.0.0.1"),
            *("--port", "{port}", "--timeout", "60000"),
        ),
        ready="/metrics",
    ),
    Side(
        "ray",
        "Ray Serve",
        "ray.serve",
        ("-m", "benchmarks.sides.ray_serve", "--port", "{port}"),
        ready="/-/healthz",
        environ={
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            # By default it takes 20,000 connections, and more file descriptors than a shell may have.
            "RAY_SERVE_HAPROXY_MAXCONN": "1000",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Else Ray writes a token into the home directory.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        },
    ),
    Side(
        "triton",
        "Triton (pytriton)",
        "torch",
        ("-m", "benchmarks.sides.triton_server", "--port", "{port}"),
        ready="/v2/health/ready",
        # Else Triton's interpreter, which runs in a process of its own, may load another Python's library.
        environ={"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")},
        path="/v2/models/embed/infer",
        shape="kserve",
        apart="nvidia-pytriton==0.7.0",
    ),
)


@dataclass(frozen=True)
class Setting:
    """What all sides have in common in a run."""

    weights: Path
    store: Path
    """The BENTOML_HOME with the model that was made from `weights`."""
    folder: Path
    """For logs."""
    workers: int
    origin_ports: tuple[int, ...]

    def environ(self, more: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
        """A side's, with `names` filled in where `more` has them in braces."""
        return {
            **plain_environ(),
            "PYTHONPATH": str(ROOT),
            "BENTOML_HOST": "127.0.0.1",
            "BENTOML_HOME": str(self.store),
            "BENCH_WEIGHTS": str(self.weights),
            "BENCH_WORKERS": str(self.workers),
            "BENCH_TORCH_THREADS": "1",
            **{name: value.format(**names) for name, value in more.items()},
        }


class Server:
    """`side`, while the `with` block runs."""

    def __init__(self, side: Side, setting: Setting) -> None:
        self.side = side
        self._setting = setting
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._endpoint = self.url + side.path
        self.log = setting.folder / f"{side.name}.log"

    def __enter__(self) -> Server:
        names = {
            "port": str(self._port),
            "ports": ",".join(map(str, self._setting.origin_ports)),
            "workers": str(self._setting.workers),
        }
        python = sys.executable
        if self.side.apart:
            python = str(apart.commands(self.side.apart, self._setting.folder, with_ours=True) / "python")
        start_s = time.perf_counter()
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [python, *(part.format(**names) for part in self.side.command)],
                cwd=ROOT,
                env=self._setting.environ(self.side.environ, names),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes = Processes(process)
        try:
            self._wait_until_ready()
        except BaseException:
            self.processes.stop()
            raise
        self.start_s = time.perf_counter() - start_s
        """From the start of the process until it was ready."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.processes.stop()

    def target(self, prefix: str, files: int, *, pace_ms: float = 0) -> Target:
        """Single images for wrk to post."""
        return Target(self._endpoint, prefix, files, self.side.shape, pace_ms=pace_ms)

    def embed(self, url: str) -> NDArray[np.float32]:
        """The vector of one image. Raises requests' exceptions when the answer is not 200."""
        response = requests.post(self._endpoint, json=_body(self.side.shape, url), timeout=60)
        response.raise_for_status()
        return np.array(_embedding(self.side.shape, response.json()), dtype=np.float32)

    def embed_batch(self, urls: list[str]) -> int:
        """How many vectors came back. Raises requests' exceptions when the answer is not 200 or not whole."""
        response = requests.post(f"{self.url}/embed_batch", json={"urls": urls}, timeout=120)
        response.raise_for_status()
        answer = response.json()
        if answer["errors"]:
            raise requests.RequestException(f"a batch has errors: {answer['errors'][0]}")
        return len(answer["embeddings"])

    def wait_for_an_answer(self, url: str) -> None:
        """Not every side says truly when it is ready."""
        deadline = time.perf_counter() + START_TIMEOUT_S
        while True:
            try:
                self.embed(url)
                return
            except requests.RequestException:
                if time.perf_counter() > deadline:
                    raise
                time.sleep(0.2)

    def _wait_until_ready(self) -> None:
        deadline = time.perf_counter() + START_TIMEOUT_S
        while time.perf_counter() < deadline:
            if self.processes.process.poll() is not None:
                break
            try:
                if requests.get(self.url + self.side.ready, timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.02)
        raise RuntimeError(f"{self.side.label} did not start: see {self.log}")


def _body(shape: Shape, url: str) -> dict[str, Any]:  # Any: JSON
    """As post.lua writes it."""
    if shape == "kserve":
        tensor = {"name": "url", "shape": [1, 1], "datatype": "BYTES", "data": [url]}
        return {"inputs": [tensor]}
    return {"urls": [url]} if shape == "list" else {"url": url}


def _embedding(shape: Shape, answer: Any) -> list[float]:  # Any: JSON
    embedding: list[float]
    if shape == "kserve":
        embedding = answer["outputs"][0]["data"]
    else:
        embedding = answer[0] if shape == "list" else answer["embedding"]
    return embedding
