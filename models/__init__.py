"""The networks behind the service, and where their weights come from.

`architectures.py` says which file makes a network: `resnet18.py`, `efficientnet_lite0.py`,
`torchvision_networks.py` or `timm_networks.py`. Each gives a `backbone.py`; `export.py` makes a file of it,
`quantize.py` an int8 file of that, with the images of `calibration.py`; `making.py` does it all, and
`store.py` keeps what came out. What can be said without torch is said without it, so that a command with
nothing to do answers in a second.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

# From 1.29, ONNX Runtime reports its use to Microsoft unless this is set before it is imported; the Hub's
# library tells the Hub.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

MIN_INT8_COSINE = 0.99
"""Below this, between int8 and fp32, on any held-out image, int8 is refused."""


@dataclass(frozen=True)
class Weights:
    """Where a network's parameters come from."""

    name: str
    """`imagenet`, `pretrained`, `untrained`, or the file's base name."""
    source: str
    """The URL, the file's base name, or a sentence on how they were made."""
    sha256: str
    """Of the file; of the names and bytes of all tensors where there is no file."""
    trained: bool


class ArchitectureError(Exception):
    """There is no such network, or none that can be exported and served; one line that says why."""


class WeightsError(Exception):
    """No model can be made from these weights; the message is one line that says why."""


class DownloadFailed(WeightsError):
    """The weights' server can't be reached, or did not give the file. Trying later may work."""


class QuantizationError(Exception):
    """No int8 model is made; the message is one line that says why."""


def read_weights_file(path: Path) -> bytes:
    """The whole file. Raises `WeightsError` if it is missing, unreadable or no regular file."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.read_bytes()
    except OSError as exc:
        raise WeightsError(f"{path} can't be read: {exc.strerror}") from exc
    kind = "a directory" if stat.S_ISDIR(mode) else "a device or pipe"
    raise WeightsError(f"{path} is {kind}; a file with a state_dict is wanted")
