"""BentoML as its documentation shows batching, with the download inside the batchable method.

bentoml serve benchmarks.sides.plain_bentoml:PlainEmbedder

A batchable method takes a list: a request is {"urls": ["..."]}, its answer [[512 floats]].
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import bentoml
import numpy as np
import requests
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.sides.recipe import download, embed, load_network, preprocess


@bentoml.service(workers=int(os.environ["BENCH_WORKERS"]), traffic={"timeout": 60})
class PlainEmbedder:
    def __init__(self) -> None:
        self.network = load_network()
        self.session = requests.Session()
        self.pool = ThreadPoolExecutor(16)

    # The limit is above BentoML's own 60 s: a request that waits is answered late, not refused.
    @bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=60_000)
    def embed(self, urls: list[str]) -> NDArray[np.float32]:
        pixels = torch.stack(list(self.pool.map(self._pixels, urls)))
        return embed(self.network, pixels)

    def _pixels(self, url: str) -> Tensor:
        return preprocess(download(url, self.session))
