"""Daft alone: it downloads, and a class that decodes, with ResNet18 in torch, gets the files in batches.

python -m benchmarks.sides.daft_job CATALOGUE.csv OUT
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import daft
import numpy as np
import torch
from daft import DataType, Series, col
from daft.io import HTTPConfig, IOConfig

from benchmarks.sides.recipe import BATCH, embed, load_network, preprocess

# A download waits while pictures are computed: with Daft's own 30 s, large ones failed on a busy machine.
READ_TIMEOUT_MS = 300_000


# Daft calls it from as many threads as there are cores, which torch and Pillow let run side by side.
@daft.cls(use_process=False)
class Embedder:
    def __init__(self) -> None:
        self.network = load_network().to(memory_format=torch.channels_last)

    @daft.method.batch(return_dtype=DataType.fixed_size_list(DataType.float32(), 512), batch_size=BATCH)
    def vectors(self, files: Any) -> Any:  # Any: an expression where it is planned, a Series where it runs
        if not len(files):  # Daft asks for none, too
            return Series.from_numpy(np.empty((0, 512), np.float32))
        # Not Daft's own `decode_image`: it is as fast with small photos, and with those of 12 megapixels, which it
        # hands over whole, an image takes 1.6 times the processor time.
        return Series.from_numpy(
            embed(self.network, torch.stack([preprocess(data) for data in files.to_pylist()]))
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    rows = daft.read_csv(str(options.catalogue)).into_batches(BATCH)
    files = col("url").download(io_config=IOConfig(http=HTTPConfig(read_timeout_ms=READ_TIMEOUT_MS)))
    vectors = Embedder().vectors(files)
    rows.select("id", vectors.alias("embedding")).write_parquet(str(options.out))


if __name__ == "__main__":
    main()
