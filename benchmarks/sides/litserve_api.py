"""LitServe, in the shape of its guide "Speed up serving by 200x": batches, prepared by a pool of threads.

python -m benchmarks.sides.litserve_api --port 8000
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor

import litserve
import numpy as np
import requests
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.sides.recipe import download, embed, load_network, preprocess


class EmbedAPI(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.network = load_network()
        self.session = requests.Session()
        self.pool = ThreadPoolExecutor(16)

    def decode_request(self, request: dict[str, str]) -> str:
        return request["url"]

    def batch(self, inputs: list[str]) -> Tensor:
        return torch.stack(list(self.pool.map(self._pixels, inputs)))

    def predict(self, x: Tensor) -> NDArray[np.float32]:
        return embed(self.network, x)

    def unbatch(self, output: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return list(output)

    def encode_response(self, output: NDArray[np.float32]) -> dict[str, list[float]]:
        return {"embedding": output.tolist()}

    def _pixels(self, url: str) -> Tensor:
        return preprocess(download(url, self.session))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    api = EmbedAPI(max_batch_size=16, batch_timeout=0.005, api_path="/embed")
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=int(os.environ["BENCH_WORKERS"]), timeout=60
    )
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False)


if __name__ == "__main__":
    main()
