"""The network behind the service, and where its weights come from.

`resnet18.py` makes the model file and is the only code that imports torch; `quantize.py` makes an
int8 file of it, with the images of `calibration.py`. What can be said about weights without torch is
here, so that a command with nothing to do answers in a second.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from embedder.model.spec import Preprocessing

# From 1.29, ONNX Runtime reports its use to Microsoft unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

PREPROCESSING = Preprocessing(
    resize=256,
    crop=224,
    interpolation="bilinear",
    mode="shorter_side",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
"""ResNet18's, as torchvision's `ResNet18_Weights.IMAGENET1K_V1.transforms()` has it: a test compares them."""


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
