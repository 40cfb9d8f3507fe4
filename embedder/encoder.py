"""Pixels → embeddings. The only file that knows ONNX Runtime."""

from __future__ import annotations

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


class Encoder:
    """The network in one ONNX file: ImageNet normalisation, ResNet18 without its last layer, L2."""

    def __init__(self, *, threads: int) -> None:
        """`threads` compute threads serve one `encode`."""
        self._threads = threads
        self._session: onnxruntime.InferenceSession
        self.healthy = True
        """False from a failed `encode` until one works again."""

    def load(self, path: Path) -> None:
        """Read the network from `path` and run it once, so that the first request does not pay for that.

        Raises onnxruntime's exceptions when `path` is missing, damaged, or not this kind of network.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1  # the network is one chain: nothing runs side by side
        available = onnxruntime.get_available_providers()
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=[name for name in _PROVIDERS if name in available]
        )
        self.encode(np.zeros((1, 224, 224, 3), dtype=np.uint8))

    def encode(self, pixels: Pixels) -> Embeddings:
        """The embeddings of `pixels`: uint8 (n, 224, 224, 3), RGB → float32 (n, 512), each row of norm 1.

        `n` may be 0. Blocking: call it off the event loop.
        """
        if len(pixels) == 0:
            return np.empty((0, DIMENSION), dtype=np.float32)
        try:
            embeddings: Embeddings = self._session.run(None, {"pixels": pixels})[0]
        except Exception:
            self.healthy = False
            raise
        self.healthy = True
        return embeddings
