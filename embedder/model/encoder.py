"""Pixels → embeddings. The only file that knows ONNX Runtime."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedder.model.spec import ModelSpec

Pixels: TypeAlias = NDArray[np.uint8]
"""uint8 (n, crop, crop, 3), RGB; n may be 0."""

Embeddings: TypeAlias = NDArray[np.float32]
"""float32 (n, dimension), each row of norm 1."""

# A GPU where the installed onnxruntime has one, the CPU otherwise.
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
# Rows that go through the network together on a CPU. More are no faster there, and take 4 MB each.
_CPU_ROWS = 8
# ONNX Runtime has no exception of its own for this.
_NO_MEMORY = "Failed to allocate memory"


class Encoder:
    """The network in one ONNX file, with its normalisation before and L2 behind it."""

    def __init__(self, spec: ModelSpec, *, threads: int, threads_alone: int) -> None:
        """`threads` compute threads serve one `encode`, `threads_alone` one that is alone."""
        self._crop = spec.preprocessing.crop
        self._dimension = spec.dimension
        self._threads = threads
        self._threads_alone = threads_alone
        # Any: onnxruntime is imported when it is used, and ships no types.
        self._session: Any
        self._session_alone: Any
        self._rows = _CPU_ROWS
        self.healthy = True
        """False from an `encode` that failed for another reason than memory, until one works again."""

    def no_pixels(self) -> Pixels:
        """uint8 (0, crop, crop, 3)."""
        return np.empty((0, self._crop, self._crop, 3), dtype=np.uint8)

    def load(self, path: Path) -> None:
        """Read the network from `path` and run it once, so that the first request does not pay for that.

        Raises onnxruntime's exceptions, or ValueError, when `path` is missing, damaged, or another network than
        the spec's.
        """
        self._session = self._session_alone = _session(path, self._threads)
        if self._session.get_providers()[0] != "CPUExecutionProvider":
            self._rows = sys.maxsize
        elif self._threads_alone > self._threads:
            # Not one session for both: its threads would get into each other's way.
            self._session_alone = _session(path, self._threads_alone)
        for alone in (False, True):
            shape = self.encode(self._blank(), alone=alone).shape
            if shape != (1, self._dimension):
                raise ValueError(f"the network gives {shape} for an image, not {(1, self._dimension)}")
        _give_memory_back()

    def encode(self, pixels: Pixels, *, alone: bool = False) -> Embeddings:
        """The embeddings of `pixels`: uint8 (n, crop, crop, 3), RGB → float32 (n, dimension), rows of norm 1.

        `n` may be 0. Blocking: call it off the event loop, from any number of threads. `alone` says that
        nothing else computes now: with one row it then takes half the time on two cores.

        Raises MemoryError where there is too little for so many rows, and onnxruntime's exceptions.
        """
        if len(pixels) == 0:
            return np.empty((0, self._dimension), dtype=np.float32)
        session = self._session_alone if alone else self._session
        try:
            parts = [
                session.run(None, {"pixels": pixels[start : start + self._rows]})[0]
                for start in range(0, len(pixels), self._rows)
            ]
        except Exception as error:
            if _NO_MEMORY in str(error):
                raise MemoryError(f"there is no memory to encode {len(pixels)} images") from error
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


def _session(path: Path, threads: int) -> Any:  # Any: untyped
    # From 1.29 on, ONNX Runtime reports its use to Microsoft unless this is set before it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

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
