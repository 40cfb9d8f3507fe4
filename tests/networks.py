"""A network that is not ResNet18, saved as scripts/save_model.py saves one, and the reference for what it gives."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image

from embedder.model.spec import ModelSpec, Preprocessing
from tests.server import ROOT, plain_environ

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
_SAVE = """
import json, sys
from pathlib import Path
import bentoml

metadata = json.loads(sys.stdin.read())
with bentoml.models.create("tiny:1", metadata=metadata) as model:
    for file in sys.argv[1:]:
        Path(model.path_of(Path(file).name)).write_bytes(Path(file).read_bytes())
"""


def metadata(**changes: object) -> dict[str, Any]:  # Any: JSON
    """What is stored beside a network of dimension 7 for crops of 64 pixels; with `changes` of its preprocessing."""
    return {
        "architecture": "tiny",
        "weights": "random",
        "weights_source": "tests/networks.py",
        "weights_sha256": "5" * 64,
        "trained": True,
        "dimension": 7,
        "preprocessing": {
            "version": 1,
            "resize": 72,
            "crop": 64,
            "interpolation": "bicubic",
            "mode": "shorter_side",
            "mean": list(MEAN),
            "std": list(STD),
            **changes,
        },
        "precisions": {"fp32": {"file": "fp32.onnx"}},
        "libraries": {},
    }


def spec(dimension: int = 512, *, resize: int = 256, crop: int = 224, file: str = "fp32.onnx") -> ModelSpec:
    """Of a network with that geometry, which need not be in any store."""
    return ModelSpec(
        tag="made:1",
        architecture="made",
        dimension=dimension,
        preprocessing=Preprocessing(resize, crop),
        precision="fp32",
        trained=True,
        weights_sha256="5" * 64,
        file=file,
        file_sha256=None,
    )


def weights(dimension: int = 7, crop: int = 64) -> NDArray[np.float32]:
    """float32 (3 * crop * crop, dimension). They see edges and no plain surfaces.

    With plain surfaces in it any two photos, and any two crops of one, would be near each other.
    """
    made = np.random.default_rng(7).normal(size=(3, crop // 8, 8, crop // 8, 8, dimension))
    made -= made.mean(axis=(2, 4), keepdims=True)
    return made.reshape(-1, dimension).astype(np.float32)


def network(dimension: int = 7, crop: int = 64) -> bytes:
    """ONNX: uint8 (n, crop, crop, 3) → float32 (n, dimension): normalised, times `weights`, of norm 1."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", ["floats", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normalised"]),
        helper.make_node("Transpose", ["normalised"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Flatten", ["planes"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["features"]),
        helper.make_node("LpNormalization", ["features"], ["embeddings"], axis=1, p=2),
    ]
    constants = {
        "mean": 255 * np.array(MEAN, np.float32),
        "std": 255 * np.array(STD, np.float32),
        "weights": weights(dimension, crop),
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["n", crop, crop, 3])],
        [helper.make_tensor_value_info("embeddings", onnx.TensorProto.FLOAT, ["n", dimension])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def save(home: Path, metadata: Mapping[str, Any], onnx_file: bytes | None = None) -> Path:  # Any: JSON
    """Makes `home` a BENTOML_HOME that has `onnx_file`, or `network()`, as `tiny:1` with `metadata`; gives `home`."""
    home.mkdir(exist_ok=True)
    file = home / "fp32.onnx"
    file.write_bytes(onnx_file or network())
    told = {**metadata, "precisions": {"fp32": {"file": file.name, "sha256": _sha256(file)}}}
    subprocess.run(
        [sys.executable, "-c", _SAVE, str(file)],
        cwd=ROOT,
        env={**plain_environ(), "BENTOML_HOME": str(home)},
        input=json.dumps(told),
        text=True,
        check=True,
    )
    (home / "bentos").mkdir(exist_ok=True)
    return home


def reference(
    data: bytes, *, resize: int = 72, crop: int = 64, interpolation: str = "bicubic"
) -> NDArray[np.float32]:
    """What `network()` gives for the image file `data`: torchvision's geometry, and numpy."""
    from torchvision import transforms  # here: it loads torch, which takes seconds and hundreds of MB

    picture = transforms.Compose(
        [
            transforms.Resize(resize, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(crop),
        ]
    )(Image.open(io.BytesIO(data)).convert("RGB"))
    pixels = np.asarray(picture, dtype=np.float32) / 255
    planes = ((pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(2, 0, 1)
    features = planes.reshape(-1) @ weights(crop=crop)
    return np.asarray(features / np.linalg.norm(features), dtype=np.float32)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
