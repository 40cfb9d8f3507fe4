"""The network in ONNX Runtime: fp32 and int8, on a CPU or a GPU. The only file that knows it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# A GPU where the installed onnxruntime has one, the CPU otherwise.
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
# ONNX Runtime has no exception of its own for this.
_NO_MEMORY = "Failed to allocate memory"


class Network:
    """Whose `run` any number of threads may call; the calling thread computes, with `threads` - 1 others."""

    def __init__(self, file: Path, *, threads: int) -> None:
        """Raises onnxruntime's exceptions when `file` is missing or damaged."""
        # From 1.29 on, ONNX Runtime reports its use to Microsoft unless this is set before it is imported.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1  # the network is one chain: nothing runs side by side
        # Several threads wait for each other at every layer, too shortly to sleep; but not between images.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        available = onnxruntime.get_available_providers()
        self._session = onnxruntime.InferenceSession(
            str(file), options, providers=[name for name in _PROVIDERS if name in available]
        )
        self.on_cpu: bool = self._session.get_providers()[0] == "CPUExecutionProvider"

    def run(self, pixels: Any) -> Any:  # Any: onnxruntime ships no types; arrays as `Encoder.encode` has them
        """Raises MemoryError where there is too little, and onnxruntime's exceptions."""
        try:
            return self._session.run(None, {"pixels": pixels})[0]
        except Exception as error:
            if _NO_MEMORY in str(error):
                raise MemoryError(f"there is no memory to encode {len(pixels)} images") from error
            raise
