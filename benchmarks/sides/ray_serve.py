"""Ray Serve, as its guides "Dynamic Request Batching" and "Performance Tuning" advise: a replica for each core.

python -m benchmarks.sides.ray_serve --port 8000

Requests come through HAProxy, and replicas run their batches on threads of their own: both are switched on by variables
of the environment (`servers.py`). Slower behind Ray's own proxy: pixels joined in batches instead of URLs, a deployment
that decodes in front of one that infers, batches up to 16.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import ray
import requests
import torch
from numpy.typing import NDArray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import JSONResponse
from torch import Tensor

from benchmarks.processes import free_port
from benchmarks.sides.recipe import download, embed, load_network, preprocess

CORES = int(os.environ["BENCH_WORKERS"])
QUIET = LoggingConfig(enable_access_log=False)


@serve.deployment(
    num_replicas=CORES, max_ongoing_requests=128, logging_config=QUIET, ray_actor_options={"num_cpus": 1}
)
class Embedder:
    def __init__(self) -> None:
        self.network = load_network()
        self.session = requests.Session()
        self.pool = ThreadPoolExecutor(16)

    async def __call__(self, request: Request) -> JSONResponse:
        embedding: NDArray[np.float32] = await self.infer((await request.json())["url"])
        return JSONResponse({"embedding": embedding.tolist()})

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.005)
    async def infer(self, urls: list[str]) -> list[NDArray[np.float32]]:
        return await asyncio.to_thread(self._embed, urls)

    def _embed(self, urls: list[str]) -> list[NDArray[np.float32]]:
        return list(embed(self.network, torch.stack(list(self.pool.map(self._pixels, urls)))))

    def _pixels(self, url: str) -> Tensor:
        return preprocess(download(url, self.session))


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that Ray ends what it has started
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        os.environ.update(_of_its_own(Path(folder)))  # read by Serve's own processes, which ray.init starts
        # No URL and no vector goes through the store of objects, which else takes a third of memory.
        ray.init(
            address="local",
            num_cpus=CORES,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100_000_000,
            _temp_dir=folder,
        )
        try:
            serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port), logging_config=QUIET)
            app = Embedder.bind()  # type: ignore[attr-defined]  # the decorator, which makes a Deployment of it, has no types
            serve.run(app, route_prefix="/embed", blocking=True)
        finally:
            ray.shutdown()


def _of_its_own(folder: Path) -> dict[str, str]:
    """Ports and paths that HAProxy has on each machine only once, unless told otherwise."""
    return {
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
    }


if __name__ == "__main__":
    main()
