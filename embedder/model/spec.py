"""What a stored model says about itself, and everything that depends on the network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from embedder.settings import ROWS

PREPROCESSING_VERSION = 1
"""How this code makes pixels. It goes up when they change: vectors of two versions must not be compared."""

RENDITIONS_VERSION = 1
"""Which smaller pictures are asked for, where some are (`fetch/renditions.py`). It goes up as PREPROCESSING_VERSION."""

SAVED_AS = {"bf16": "fp32"}
"""In which precision the file was saved that is computed in another one."""

INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")
MODES = ("shorter_side", "squash")


def save_command(architecture: object) -> str:
    """What a person types to save a model of that architecture."""
    default = ROWS["EMBEDDER_MODEL"].default.partition(":")[0]
    named = "" if architecture == default else f" --architecture {architecture}"
    return f"python scripts/save_model.py{named}"


class SpecError(ValueError):
    """Metadata that this code can't serve; the message is one clause that says why."""


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input."""

    resize: int
    """The size that `mode` gives the picture, in pixels."""
    crop: int
    """Both sides of the square that is cut from its middle, in pixels; at most `resize`."""
    interpolation: str = "bilinear"
    """One of INTERPOLATIONS, as Pillow's, which antialiases when it shrinks."""
    mode: str = "shorter_side"
    """One of MODES. shorter_side: the shorter side becomes `resize`, the other one keeps the proportions.
    squash: both sides become `resize`."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """`mean` and `std` are inside the network's file; they are here because vectors depend on them."""
    version: int = PREPROCESSING_VERSION

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Preprocessing:  # Any: JSON
        """Raises SpecError for what this code does not know, or what can't be."""
        version = metadata.get("version")
        if version != PREPROCESSING_VERSION:
            raise SpecError(
                f"its preprocessing has version {version!r}, this code knows version {PREPROCESSING_VERSION}"
            )
        interpolation = str(metadata.get("interpolation")).removesuffix(", antialiased")
        mode = metadata.get("mode", "shorter_side")  # models saved before there was a choice have none
        if interpolation not in INTERPOLATIONS:
            raise SpecError(f"its interpolation is {interpolation!r}; known are {', '.join(INTERPOLATIONS)}")
        if mode not in MODES:
            raise SpecError(f"its resize mode is {mode!r}; known are {', '.join(MODES)}")
        resize, crop = metadata.get("resize"), metadata.get("crop")
        if not (isinstance(resize, int) and isinstance(crop, int) and 1 <= crop <= resize <= 4096):
            raise SpecError(
                f"its resize is {resize!r} and its crop {crop!r}; 1 to 4096 pixels, crop the smaller"
            )
        return cls(
            *(resize, crop, interpolation, mode),
            mean=_three_numbers("mean", metadata),
            std=_three_numbers("std", metadata),
            version=version,
        )


def _three_numbers(name: str, metadata: Mapping[str, Any]) -> tuple[float, ...]:  # Any: JSON
    values = metadata.get(name)
    if not (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(isinstance(v, int | float) for v in values)
    ):
        raise SpecError(f"its {name} is {values!r}, not three numbers")
    return tuple(values)


@dataclass(frozen=True)
class ModelSpec:
    """A stored model: everything that depends on the network is read from here."""

    tag: str
    """In the model store, with its version: `resnet18:7wzl...`."""
    architecture: str
    dimension: int
    """Numbers in an embedding."""
    preprocessing: Preprocessing
    precision: str
    """fp32, int8, or bf16, which is computed from fp32's file."""
    trained: bool
    weights_sha256: str
    file: str
    """The network's, in the model's folder."""
    file_sha256: str | None
    """None for models saved before it was kept."""
    renditions: tuple[str, ...] = ()
    """The CDNs that are asked for smaller pictures: a setting of who serves the model, not saved with it."""

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits, equal exactly when embeddings may be compared."""
        renditions = f"{RENDITIONS_VERSION} {','.join(sorted(self.renditions))}" if self.renditions else ""
        parts = {
            "architecture": self.architecture,
            "weights": self.weights_sha256,
            "preprocessing": asdict(self.preprocessing),
            "precision": self.precision,
            # Quantising with other images gives another network of the same weights.
            "quantised": self.file_sha256 if self.precision == "int8" else None,
            "renditions": renditions,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_metadata(cls, tag: str, metadata: Mapping[str, Any], *, precision: str) -> ModelSpec:
        """The spec of the model `tag` in `precision`, from the `metadata` that it was saved with.

        Raises SpecError when something is missing, unknown, or can't be.
        """
        precisions = metadata.get("precisions")
        if not (isinstance(precisions, Mapping) and isinstance(metadata.get("preprocessing"), Mapping)):
            raise SpecError("it was not saved by scripts/save_model.py")
        architecture, weights_sha256 = metadata.get("architecture"), metadata.get("weights_sha256")
        saved_as = SAVED_AS.get(precision, precision)
        if saved_as not in precisions:
            raise SpecError(
                f"it was saved in {', '.join(precisions)}, not in {precision}; "
                f"save it again: {save_command(architecture)} --precision {precision}"
            )
        dimension = metadata.get("dimension")
        if not (isinstance(dimension, int) and dimension >= 1):
            raise SpecError(f"its dimension is {dimension!r}")
        network = precisions[saved_as]
        if not (isinstance(network, Mapping) and isinstance(network.get("file"), str)):
            raise SpecError("it was not saved by scripts/save_model.py")
        if not (isinstance(architecture, str) and isinstance(weights_sha256, str)):
            # Without them two networks would have one fingerprint.
            raise SpecError(
                f"its architecture is {architecture!r} and its weights' sha256 {weights_sha256!r}"
            )
        return cls(
            tag=tag,
            architecture=architecture,
            dimension=dimension,
            preprocessing=Preprocessing.from_metadata(metadata["preprocessing"]),
            precision=precision,
            trained=bool(metadata.get("trained")),
            weights_sha256=weights_sha256,
            file=network["file"],
            file_sha256=network.get("sha256"),
        )
