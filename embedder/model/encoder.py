"""Pixels → embeddings, by the network in one ONNX file."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedder.model import onnx_runtime, openvino_runtime
from embedder.model.spec import ModelSpec

Pixels: TypeAlias = NDArray[np.uint8]
"""uint8 (n, crop, crop, 3), RGB; n may be 0."""

Embeddings: TypeAlias = NDArray[np.float32]
"""float32 (n, dimension), each row of norm 1."""

_Network: TypeAlias = onnx_runtime.Network | openvino_runtime.Network

# Rows that go through the network together on a CPU. More are no faster there, and take 4 MB each.
_CPU_ROWS = 8


class Encoder:
    """The network in one ONNX file, with its normalisation before and L2 behind it."""

    def __init__(self, spec: ModelSpec, *, threads: int, threads_alone: int, batches: int = 1) -> None:
        """`threads` compute threads serve one `encode`, of `batches` at once; `threads_alone` one that is alone."""
        self._crop = spec.preprocessing.crop
        self._dimension = spec.dimension
        self._precision = spec.precision
        self._threads = threads
        self._threads_alone = threads_alone
        self._batches = batches
        self._network: _Network
        self._network_alone: _Network
        self._rows = _CPU_ROWS
        self.healthy = True
        """False from an `encode` that failed for another reason than memory, until one works again."""

    def no_pixels(self) -> Pixels:
        """uint8 (0, crop, crop, 3)."""
        return np.empty((0, self._crop, self._crop, 3), dtype=np.uint8)

    def load(self, path: Path) -> None:
        """Read the network from `path` and run it, so that the first requests do not pay for that.

        Raises the runtime's exceptions, or ValueError, when `path` is missing, damaged, or another network than
        the spec's.
        """
        self._network = self._network_alone = self._loaded(path, self._threads, self._batches)
        if not self._network.on_cpu:
            self._rows = sys.maxsize
        elif self._threads_alone > self._threads:
            # Not one network for both: its threads would get into each other's way.
            self._network_alone = self._loaded(path, self._threads_alone, 1)
        for alone in (False, True):
            shape = self.encode(self._blank(), alone=alone).shape
            if shape != (1, self._dimension):
                raise ValueError(f"the network gives {shape} for an image, not {(1, self._dimension)}")
        _give_memory_back()

    def _loaded(self, path: Path, threads: int, batches: int) -> _Network:
        if self._precision == "bf16":
            return openvino_runtime.Network(path, threads=threads, batches=batches)
        return onnx_runtime.Network(path, threads=threads)

    def encode(self, pixels: Pixels, *, alone: bool = False) -> Embeddings:
        """The embeddings of `pixels`: uint8 (n, crop, crop, 3), RGB → float32 (n, dimension), rows of norm 1.

        `n` may be 0. Blocking: call it off the event loop, from any number of threads. `alone` says that
        nothing else computes now: with one row it then takes half the time on two cores.

        Raises MemoryError where there is too little for so many rows, and the runtime's exceptions.
        """
        if len(pixels) == 0:
            return np.empty((0, self._dimension), dtype=np.float32)
        network = self._network_alone if alone else self._network
        try:
            parts: list[Embeddings] = [
                network.run(pixels[start : start + self._rows]) for start in range(0, len(pixels), self._rows)
            ]
        except MemoryError:
            raise
        except Exception:
            self.healthy = False
            raise
        self.healthy = True
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def try_again(self) -> None:
        """Run a blank image, to see whether the network works again. Blocking; never raises."""
        with suppress(Exception):
            self.encode(self._blank())

    def _blank(self) -> Pixels:
        return np.zeros((1, self._crop, self._crop, 3), dtype=np.uint8)


def _give_memory_back() -> None:
    """What loading left over: half of what a worker would have resident. Only glibc keeps it, and can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
