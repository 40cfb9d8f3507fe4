"""Image URLs in, ResNet18 embeddings out: everything that serves. Start reading at `intake.py`."""

import os

__version__ = "0.1.0"

# From 1.29 on, ONNX Runtime reports its use to Microsoft unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
