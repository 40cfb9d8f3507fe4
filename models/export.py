"""A backbone as one ONNX file: uint8 pixels in, unit vectors out; and whether it is what it should be.

pixels                                          the backbone,                embeddings
uint8 (n, crop, crop, 3) ─► its normalisation ─► without its last layer ─► L2 norm ─► float32 (n, dimension)
"""

from __future__ import annotations

import io
from typing import cast

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from PIL import Image
from torch import Tensor, nn

from embedder.images.decode import decode
from embedder.images.formats import ON
from embedder.model.spec import Preprocessing
from models import ArchitectureError, WeightsError
from models.backbone import Backbone
from models.photos import SAMPLE_PHOTOS, sample_photos

MIN_COSINE = 0.99999
"""Below this, between the exported file and torch, on any sample photo, an export is refused."""
MAX_LEVELS = 0.02, 3
"""The service's pixels and the library's differ by as many levels of 255 at most: on average, and anywhere.

Seen: 0.01 and 2, because Pillow takes boxes as 32-bit floats.
"""

# Opset 18 is the lowest that torch's exporter writes without a conversion, and ONNX Runtime has
# read it since 1.14.
_OPSET = 18

_Pixels = npt.NDArray[np.uint8]


class Embedder(nn.Module):
    """The exported network: uint8 (n, crop, crop, 3) RGB → float32 (n, dimension) of length 1.

    A photo whose features are all zero gives the zero vector, not NaN.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.features = network
        # (x / 255 - mean) / std, as one multiplication and one addition.
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        self.scale = nn.Buffer(1 / (255 * std))
        self.shift = nn.Buffer(-mean / std)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        normalised = pixels.permute(0, 3, 1, 2).float() * self.scale + self.shift  # (n, 3, crop, crop)
        features: Tensor = self.features(normalised)  # (n, dimension)
        lengths: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        return features / lengths.clamp_min(1e-12)


def dimension(backbone: Backbone) -> int:
    """How many numbers it gives: what libraries say of it is not always so. Raises `ArchitectureError`."""
    crop = backbone.preprocessing.crop
    with torch.no_grad():
        given = backbone.network(torch.zeros(1, 3, crop, crop))
    if not isinstance(given, Tensor) or given.ndim != 2:
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ArchitectureError(f"{backbone.architecture} gives {shape} for an image, and no one vector")
    return given.shape[1]


def export_onnx(backbone: Backbone) -> bytes:
    """One self-contained ONNX file: `pixels` uint8 (n, crop, crop, 3) → `embeddings` float32 (n, dimension).

    n is free, from 1. Convolutions hold their BatchNorm. Takes seconds to minutes.
    Raises `ArchitectureError` where torch's exporter fails.
    """
    crop = backbone.preprocessing.crop
    try:
        program = torch.onnx.export(
            Embedder(backbone.network, backbone.preprocessing),
            (torch.zeros(2, crop, crop, 3, dtype=torch.uint8),),  # 2: with 1, n would be fixed
            input_names=["pixels"],
            output_names=["embeddings"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            opset_version=_OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
        # None is for the older exporter, which `dynamo` rules out.
        model = cast(torch.onnx.ONNXProgram, program).model_proto
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as exc:
        cause = exc.__cause__ or exc
        reason = " ".join(str(cause).split())[:200]
        raise ArchitectureError(
            f"torch's exporter can't write {backbone.architecture} as ONNX with any number of images: "
            f"{type(cause).__name__}: {reason}"
        ) from exc
    # The exporter notes a stack trace at each node, with the paths of this machine.
    graph = model.graph
    noted = (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for part in noted:
        part.ClearField("metadata_props")
    onnx: bytes = model.SerializeToString()
    return onnx


def check_export(onnx: bytes, backbone: Backbone) -> float:
    """The smallest cosine, over the sample photos, between the file and the library's own network.

    Raises `WeightsError` if it is below `MIN_COSINE`, or not a number, and `ArchitectureError` where the
    service would not make the pixels that the library makes of the photos.
    """
    inputs = torch.stack([backbone.transform(photo) for photo in sample_photos()])
    pixels = _pixels(inputs, backbone)
    check_pixels(pixels, backbone)
    # The library's preprocessing and network as they are, so that nothing above is its own judge.
    with torch.no_grad():
        features = torch.cat([backbone.judge(one) for one in torch.split(inputs, 1)])
        expected = nn.functional.normalize(features.double()).numpy()
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    (embeddings,) = session.run(["embeddings"], {"pixels": pixels})
    # 1 - |a - b|² / 2: the cosine of unit vectors, and less if the file's are not of length 1.
    cosines = 1 - ((embeddings - expected) ** 2).sum(axis=1) / 2
    worst = int(cosines.argmin())  # a NaN, if there is one
    if not cosines[worst] >= MIN_COSINE:
        raise WeightsError(
            f"the model made from {backbone.weights.name} differs from torch: cosine {cosines[worst]:.6f} "
            f"for {SAMPLE_PHOTOS[worst]}; at least {MIN_COSINE} is wanted"
        )
    return float(cosines[worst])


def check_pixels(pixels: _Pixels, backbone: Backbone) -> None:
    """Raises `ArchitectureError` where the service makes other pixels than `pixels` of the sample photos.

    So what a library declares of its preprocessing is not merely believed.
    """
    served = np.stack([_served(photo, backbone.preprocessing) for photo in sample_photos()])
    levels = np.abs(served.astype(np.int16) - pixels)
    for photo, each in zip(SAMPLE_PHOTOS, levels, strict=True):
        if (each.mean(), each.max()) > MAX_LEVELS or each.max() > MAX_LEVELS[1]:
            raise ArchitectureError(
                f"the preprocessing of {backbone.architecture} can't be done as its library does it: "
                f"{photo} is {each.mean():.2f} levels of 255 off on average, {each.max()} at most"
            )


def _pixels(inputs: Tensor, backbone: Backbone) -> _Pixels:
    """What the library normalised, (n, crop, crop, 3): the part of its preprocessing before the network."""
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
        for values in (backbone.preprocessing.mean, backbone.preprocessing.std)
    )
    levels = 255 * (inputs.double() * std + mean)
    crop = backbone.preprocessing.crop
    if levels.shape[1:] != (3, crop, crop) or bool((levels - levels.round()).abs().max() > 0.01):
        raise ArchitectureError(
            f"the preprocessing of {backbone.architecture} is more than resizing, cropping and normalising: "
            f"its library gives {tuple(inputs.shape[1:])}, or pixels between the levels of 255"
        )
    return levels.round().permute(0, 2, 3, 1).contiguous().numpy().astype(np.uint8)


def _served(photo: Image.Image, preprocessing: Preprocessing) -> _Pixels:
    """As the service makes them of a file without loss, (crop, crop, 3)."""
    png = io.BytesIO()
    photo.save(png, "PNG", compress_level=0)
    picture = decode(png.getvalue(), preprocessing, formats=ON, max_pixels=photo.width * photo.height)
    return np.frombuffer(picture.pixels, np.uint8).reshape(preprocessing.crop, preprocessing.crop, 3)
