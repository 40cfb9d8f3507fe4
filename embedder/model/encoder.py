"""Pixels → embeddings. The only file that knows ONNX Runtime."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]
"""uint8 (n, 224, 224, 3), RGB; n may be 0."""

Embeddings: TypeAlias = NDArray[np.float32]
"""float32 (n, 512), each row of norm 1."""

DIMENSION = 512
# A GPU where the installed onnxruntime has one, the CPU otherwise.
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
# Rows that go through the network together on a CPU. More are no faster there, and take 4 MB each.
_CPU_ROWS = 8
# ONNX Runtime has no exception of its own for this.
_NO_MEMORY = "Failed to allocate memory"


class Encoder:
    """The network in one ONNX file: ImageNet normalisation, ResNet18 without its last layer, L2."""

    def __init__(self, *, threads: int, threads_alone: int) -> None:
        """`threads` compute threads serve one `encode`, `threads_alone` one that is alone."""
        self._threads = threads
        self._threads_alone = threads_alone
        self._session: onnxruntime.InferenceSession
        self._session_alone: onnxruntime.InferenceSession
        self._rows = _CPU_ROWS
        self.healthy = True
        """False from a failed `encode` until one works again."""

    def load(self, path: Path) -> None:
        """Read the network from `path` and run it once, so that the first request does not pay for that.

        Raises onnxruntime's exceptions, or ValueError, when `path` is missing, damaged, or not this kind of
        network.
        """
        self._session = self._session_alone = _session(path, self._threads)
        if self._session.get_providers()[0] != "CPUExecutionProvider":
            self._rows = sys.maxsize
        elif self._threads_alone > self._threads:
            # Not one session for both: its threads would get into each other's way.
            self._session_alone = _session(path, self._threads_alone)
        for alone in (False, True):
            shape = self.encode(np.zeros((1, 224, 224, 3), dtype=np.uint8), alone=alone).shape
            if shape != (1, DIMENSION):
                raise ValueError(f"the network gives {shape} for an image, not {(1, DIMENSION)}")
        _give_memory_back()

    def encode(self, pixels: Pixels, *, alone: bool = False) -> Embeddings:
        """The embeddings of `pixels`: uint8 (n, 224, 224, 3), RGB → float32 (n, 512), each row of norm 1.

        `n` may be 0. Blocking: call it off the event loop, from any number of threads. `alone` says that
        nothing else computes now: with one row it then takes half the time on two cores.

        Raises MemoryError where there is too little for so many rows, and onnxruntime's exceptions.
        """
        if len(pixels) == 0:
            return np.empty((0, DIMENSION), dtype=np.float32)
        session = self._session_alone if alone else self._session
        try:
            parts = [
                session.run(None, {"pixels": pixels[start : start + self._rows]})[0]
                for start in range(0, len(pixels), self._rows)
            ]
        except Exception as error:
            self.healthy = False
            if _NO_MEMORY in str(error):
                raise MemoryError(f"there is no memory to encode {len(pixels)} images") from error
            raise
        self.healthy = True
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def try_again(self) -> None:
        """Run a blank image, to see whether it works again. Blocking; never raises."""
        with suppress(Exception):
            self.encode(np.zeros((1, 224, 224, 3), dtype=np.uint8))


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1  # the network is one chain: nothing runs side by side
    # Several threads wait for each other at every layer, too shortly to sleep; but not between images.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    available = onnxruntime.get_available_providers()
    return onnxruntime.InferenceSession(
        str(path), options, providers=[name for name in _PROVIDERS if name in available]
    )


def _give_memory_back() -> None:
    """What loading left over: half of what a worker would have resident. Only glibc keeps it, and can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
