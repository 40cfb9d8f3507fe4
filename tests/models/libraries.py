"""What torchvision and timm themselves make of a picture: the reference for every backbone, with nothing of ours."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchvision import models

from embedder.images.decode import decode
from embedder.images.formats import ON
from models import architectures, export
from models.backbone import Backbone
from models.photos import photo
from tests.weights import discriminate

Transform = Callable[[Image.Image], Tensor]

# By the pages of torchvision's documentation: where its networks have their last layer.
HEADS = {
    "resnet50": "fc",
    "convnext_tiny": "classifier.2",
    "efficientnet_v2_s": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "shufflenet_v2_x0_5": "fc",
    "swin_t": "head",
    "vit_b_16": "heads.head",
}
PHOTOS = ("astronaut.png", "coffee.png", "rocket.jpg")


class Library:
    """A network as its library has it, with weights that tell photos apart, and the same as a file and as ONNX."""

    def __init__(self, architecture: str, folder: Path) -> None:
        self.architecture = architecture
        self.network, self.transform = _made(architecture)
        discriminate(self.network, self.transform)
        self.file = folder / f"{architecture.replace('/', '-')}.safetensors"
        save_file(
            {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}, self.file
        )
        _behead(architecture, self.network)
        self.backbone: Backbone = architectures.maker(architecture).backbone(architecture, str(self.file))
        self.onnx = export.export_onnx(self.backbone)

    def cosines(self, files: Sequence[bytes]) -> list[float]:
        """Between the service's embedding of each file and the library's."""
        return [
            float(ours @ self.embedding(file)) for file, ours in zip(files, self.served(files), strict=True)
        ]

    def embedding(self, file: bytes) -> NDArray[np.float64]:
        """The library's, float64 (dimension,), of length 1."""
        with torch.no_grad():
            features = self.network(self.transform(opened(file)).unsqueeze(0))[0].double().numpy()
        return np.asarray(features / np.linalg.norm(features))

    def served(self, files: Sequence[bytes]) -> NDArray[np.float32]:
        """By the service's decoder and the exported file, float32 (n, dimension)."""
        import onnxruntime

        session = onnxruntime.InferenceSession(self.onnx, providers=["CPUExecutionProvider"])
        crop = self.backbone.preprocessing.crop
        made = []
        for file in files:
            picture = decode(file, self.backbone.preprocessing, formats=ON, max_pixels=50_000_000)
            pixels = np.frombuffer(picture.pixels, np.uint8).reshape(1, crop, crop, 3)
            made.append(session.run(None, {"pixels": pixels})[0][0])
        return np.stack(made)


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


def pictures(format: str, sizes: Sequence[tuple[int, int]]) -> list[bytes]:
    """The photos, each resized to each of the sizes and encoded."""
    files = []
    for name in PHOTOS:
        for size in sizes:
            file = io.BytesIO()
            resized = photo(name).resize(size, Image.Resampling.LANCZOS)
            resized.save(file, format, quality=90, compress_level=1)  # the one for JPEG, the other for PNG
            files.append(file.getvalue())
    return files


def _made(architecture: str) -> tuple[nn.Module, Transform]:
    torch.manual_seed(0)
    if architecture.startswith("timm/"):
        network: nn.Module = timm.create_model(architecture.removeprefix("timm/"), pretrained=False)
        data: dict[str, Any] = resolve_model_data_config(network)
        return network, cast(Transform, create_transform(**data, is_training=False))
    entry = models.get_model_weights(architecture).DEFAULT
    return models.get_model(architecture, weights=None), entry.transforms()


def _behead(architecture: str, network: nn.Module) -> None:
    if architecture.startswith("timm/"):
        cast(Any, network).reset_classifier(0)  # Any: timm's networks have no class in common
    else:
        parent, _, child = HEADS[architecture].rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
    network.eval()
