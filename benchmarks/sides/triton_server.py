"""Triton, bound to Python by pytriton: batches, an infer function for each core, downloads in a pool of threads.

python -m benchmarks.sides.triton_server --port 8000

A request is one URL as a tensor of bytes in the KServe protocol: POST /v2/models/embed/infer. The package on the index
has Triton's Python backend and no other. Batches up to 16 that wait for company were half as fast: 16 requests are one
batch then, and one core rests.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import requests
import torch
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.sides.recipe import download, embed, load_network, preprocess


class Embedder:
    def __init__(self) -> None:
        self.network = load_network()
        self.session = requests.Session()
        self.pool = ThreadPoolExecutor(16)

    @batch
    def __call__(self, url: NDArray[np.bytes_]) -> dict[str, NDArray[np.float32]]:
        pixels = torch.stack(list(self.pool.map(self._pixels, url[:, 0])))
        return {"embedding": embed(self.network, pixels)}

    def _pixels(self, url: bytes) -> torch.Tensor:
        return preprocess(download(url.decode(), self.session))


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that Triton ends with it
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    config = TritonConfig(http_address="127.0.0.1", http_port=port, allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="embed",
            infer_func=[Embedder() for _ in range(int(os.environ["BENCH_WORKERS"]))],
            inputs=[Tensor(name="url", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="embedding", dtype=np.float32, shape=(512,))],
            config=ModelConfig(max_batch_size=8, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    main()
