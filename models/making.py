"""A backbone, or somebody's own ONNX file → the files and the metadata of a stored model."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedder.model.spec import Preprocessing
from models import MIN_INT8_COSINE, QuantizationError, Weights, calibration, quantize
from models.calibration import Collection, Images
from models.photos import SAMPLE_PHOTOS

if TYPE_CHECKING:
    from models.backbone import Backbone

FP32_FILE = "fp32.onnx"
INT8_FILE = "int8.onnx"
LICENCE_FILE = "LICENCE"

Progress = Callable[[str], None]
"""Takes what begins now."""
Made = tuple[dict[str, bytes], dict[str, Any]]
"""A model's files by name, and its metadata, which are JSON."""


@dataclass(frozen=True)
class Network:
    """An fp32 file, and what is said of it."""

    onnx: bytes = field(repr=False)
    architecture: str
    weights: Weights
    preprocessing: Preprocessing
    dimension: int
    libraries: tuple[str, ...]
    """The packages that made it, beside onnx and onnxruntime."""
    licence: str = ""
    """Of the weights; empty where none is stated."""
    licence_text: bytes = b""
    min_cosine_to_torch: float | None = None
    """Of the sample photos' embeddings; None where the file did not come from torch."""


def of_backbone(backbone: Backbone, progress: Progress) -> Network:
    """Exports it. Raises `ArchitectureError` or `WeightsError`."""
    from models import export  # here: an ONNX file takes no torch

    dimension = export.dimension(backbone)
    progress("exporting to ONNX")
    onnx = export.export_onnx(backbone)
    progress(f"comparing with torch on {len(SAMPLE_PHOTOS)} photos")
    return Network(
        onnx=onnx,
        architecture=backbone.architecture,
        weights=backbone.weights,
        preprocessing=backbone.preprocessing,
        dimension=dimension,
        libraries=backbone.libraries,
        licence=backbone.licence,
        min_cosine_to_torch=export.check_export(onnx, backbone),
    )


def of_onnx(
    path: Path,
    name: str,
    preprocessing: Preprocessing,
    *,
    output: str | None,
    l2: bool,
    licence: Path | None,
    progress: Progress,
) -> Network:
    """The ONNX file `path` as a model called `name`.

    `output` is the one to take, where it has several; `l2` says that its vectors are to be made of length 1;
    `licence` is a file with its licence. Raises `ArchitectureError` or `WeightsError`.
    """
    from models import own_onnx, read_weights_file

    progress(f"reading {path}")
    model, weights = own_onnx.read(path)
    onnx = own_onnx.prepared(model, preprocessing, output=output, l2=l2)
    progress("comparing with the file as it was")
    return Network(
        onnx=onnx,
        # Another output of the same file gives other vectors.
        architecture=f"{name}/{output}" if output and own_onnx.several_outputs(model) else name,
        weights=weights,
        preprocessing=preprocessing,
        dimension=own_onnx.check(onnx, model, preprocessing, output),
        libraries=(),
        licence=licence.name if licence else "",
        licence_text=read_weights_file(licence) if licence else b"",
    )


def made(network: Network, images: Images | None, *, force: bool, progress: Progress) -> Made:
    """What to store of a network: with `images` int8 beside fp32; with `force` also one that is far from fp32.

    Raises `QuantizationError`.
    """
    files = {FP32_FILE: network.onnx}
    fp32: dict[str, Any] = {"file": FP32_FILE, "sha256": _sha256(network.onnx)}
    if network.min_cosine_to_torch is not None:
        fp32["min_cosine_to_torch"] = network.min_cosine_to_torch
    precisions = {"fp32": fp32}
    if images is not None:
        files[INT8_FILE], measured = _quantized(network.onnx, images, force, progress)
        precisions["int8"] = {**measured, "calibration": images.description}
    if network.licence_text:
        files[LICENCE_FILE] = network.licence_text
    preprocessing = network.preprocessing
    return files, {
        "architecture": network.architecture,
        "weights": network.weights.name,
        "weights_source": network.weights.source,
        "weights_sha256": network.weights.sha256,
        "trained": network.weights.trained,
        **({"licence": network.licence} if network.licence else {}),
        "dimension": network.dimension,
        # BentoML keeps lists, not tuples.
        "preprocessing": {
            **asdict(preprocessing),
            "mean": [*preprocessing.mean],
            "std": [*preprocessing.std],
        },
        "precisions": precisions,
        "libraries": {
            **{library: version(library) for library in (*network.libraries, "onnx", "onnxruntime")},
            "python": platform.python_version(),
        },
    }


def images_for(preprocessing: Preprocessing, collection: Collection | None, progress: Progress) -> Images:
    """What int8 is calibrated and measured on: `collection`, or the sample photos. Raises `QuantizationError`."""
    progress("decoding calibration images")
    images = (
        calibration.own_images(collection, preprocessing)
        if collection
        else calibration.sample_images(preprocessing)
    )
    if images.skipped:
        progress(f"{images.skipped} files are skipped: they are no images, or can't be read")
    return images


def _quantized(fp32: bytes, images: Images, force: bool, progress: Progress) -> tuple[bytes, dict[str, Any]]:
    """The int8 file, and what the metadata say of it.

    Raises `QuantizationError` if a cosine is below `MIN_INT8_COSINE`, unless `force`.
    """
    progress(f"making int8 with {len(images.calibration)} images")
    int8 = quantize.quantize(fp32, images.calibration)
    progress(f"comparing int8 with fp32 on {len(images.held_out)} other images")
    fidelity = quantize.fidelity(fp32, int8, images.held_out)
    measured = (
        f"cosine with fp32 {fidelity.mean_cosine:.5f} on average and {fidelity.min_cosine:.5f} at least, "
        f"{fidelity.neighbours_kept:.1%} of the {quantize.NEIGHBOURS} nearest neighbours kept"
    )
    progress(f"int8: {measured}")
    if not fidelity.min_cosine >= MIN_INT8_COSINE and not force:  # not "<": a NaN is refused
        raise QuantizationError(
            f"int8 is too far from fp32: {measured}; at least {MIN_INT8_COSINE} is wanted: calibrate it "
            "on images like those to embed (--calibration-images), serve it in fp32, which is exact "
            "(--precision fp32), or save it all the same (--force)"
        )
    return int8, {
        "file": INT8_FILE,
        "sha256": _sha256(int8),
        "mean_cosine_to_fp32": fidelity.mean_cosine,
        "min_cosine_to_fp32": fidelity.min_cosine,
        "neighbours_kept_of_10": fidelity.neighbours_kept,
        "calibration_images": len(images.calibration),
        "fidelity_images": fidelity.images,
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
