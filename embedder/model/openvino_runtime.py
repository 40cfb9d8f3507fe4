"""The network in OpenVINO, which computes fp32's file in bfloat16. The only file that knows it, as in 2026.4.

ONNX Runtime has no bfloat16 for x86. Where the processor has it, it takes half of fp32's time.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
# What OpenVINO's package imports only to have it at hand, and tells Google when it is imported.
_CONVERTER, _TELEMETRY = "openvino.tools.ovc", "openvino_telemetry"


def unusable(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Why bfloat16 can't be had here, in one clause, or None. Other processors emulate it, or compute in fp32."""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), flags=re.MULTILINE)
    if not (flags and _FLAGS & set(flags[1].split())):
        return "bf16 takes a processor with AVX-512 BF16 or AMX: this one has neither"
    try:
        _imported()
    except ModuleNotFoundError:
        return "bf16 takes a package that is not installed: pip install openvino"
    except ImportError as error:
        return str(error)
    return None


class Network:
    """Whose `run` any number of threads may call; `batches` of them compute at once, with `threads` each."""

    on_cpu = True

    def __init__(self, file: Path, *, threads: int, batches: int) -> None:
        """Raises OpenVINO's exceptions when `file` is missing or damaged."""
        options = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": threads * batches,
            "NUM_STREAMS": batches,
            "ENABLE_CPU_PINNING": False,  # each worker would bind its threads to the same cores
        }
        self._compiled = _imported().Core().compile_model(file, "CPU", options)
        # One computes for one thread at a time. There are as many as threads have called at once.
        self._idle: SimpleQueue[Any] = SimpleQueue()  # Any: OpenVINO ships no types

    def run(self, pixels: Any) -> Any:  # Any: as above; arrays as `Encoder.encode` has them
        """Raises OpenVINO's exceptions. Memory for it is there since the network was loaded."""
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        try:
            request.infer({0: pixels}, share_inputs=True)
            return request.get_output_tensor(0).data.copy()
        finally:
            self._idle.put(request)


def _imported() -> Any:  # Any: as above
    """The package, without what reports its use. Raises ImportError."""
    sys.modules.setdefault(_CONVERTER, None)  # type: ignore[arg-type]  # so that importing it raises ImportError
    import openvino

    if _TELEMETRY in sys.modules:
        raise ImportError(
            "this OpenVINO is not as embedder/model/openvino_runtime.py knows it: it reports its use"
        )
    return openvino
