"""mosec, in the shape of its ResNet example: a stage of processes that download and decode, one that infers.

python -m benchmarks.sides.mosec_server --address 127.0.0.1 --port 8000
"""

from __future__ import annotations

import os

import requests
from mosec import Server, Worker
from torch import Tensor, stack

from benchmarks.sides.recipe import download, embed, load_network, preprocess

# Twice the cores: a download waits.
DECODERS = 2 * int(os.environ["BENCH_WORKERS"])


class Preprocess(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.session = requests.Session()

    def forward(self, data: dict[str, str]) -> Tensor:
        return preprocess(download(data["url"], self.session))


class Inference(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.network = load_network()

    def forward(self, data: list[Tensor]) -> list[dict[str, list[float]]]:
        return [{"embedding": embedding.tolist()} for embedding in embed(self.network, stack(data))]


if __name__ == "__main__":
    server = Server()
    # What is batched waits at most so long (ms) for company.
    server.append_worker(Preprocess, num=DECODERS, route="/embed", timeout=60)
    server.append_worker(
        Inference,
        num=int(os.environ["BENCH_WORKERS"]),
        max_batch_size=16,
        max_wait_time=5,
        route="/embed",
        timeout=60,
    )
    server.run()
