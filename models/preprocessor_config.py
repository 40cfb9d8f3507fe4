"""Hugging Face's `preprocessor_config.json` → what the service does to a picture. No torch, no network.

What the file asks for and the service can't do is refused, in one line that names it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedder.model.spec import Preprocessing, SpecError
from models import ArchitectureError

_RESAMPLES = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, which the file has."""
_KINDS = ("BitImage", "CLIPImage", "ConvNextImage", "DeiTImage", "SiglipImage", "ViTImage")
"""Processors that resize, crop, rescale and normalise, and nothing else."""
_SHORTER_SIDE = ("BitImage", "CLIPImage", "ConvNextImage")
"""Those for which a size that is one number is the shorter side's; for the others it is both sides'."""
_DONE = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
_CONVNEXT_SQUASHES_FROM = 384


def read_preprocessor_config(path: Path) -> Preprocessing:
    """Raises `ArchitectureError` if the file is none, or asks for what the service can't do."""
    try:
        config = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as exc:
        raise ArchitectureError(f"{path} can't be read: {getattr(exc, 'strerror', None) or exc}") from exc
    except ValueError as exc:
        raise ArchitectureError(f"{path} is no JSON: {exc}") from exc
    if not isinstance(config, dict):
        raise ArchitectureError(f"{path} holds a {type(config).__name__}, not a preprocessor_config")
    try:
        return _preprocessing(config)
    except (_Unknown, SpecError) as exc:
        raise ArchitectureError(f"{path} can't be followed: {exc}") from exc


class _Unknown(Exception):
    """What the service can't do; the message is one clause."""


def _preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    kind = _kind(config)
    unknown = [key for key, value in config.items() if key.startswith("do_") and value and key not in _DONE]
    left_out = [key for key in ("do_resize", "do_rescale") if not config.get(key, True)]
    if unknown or left_out:
        raise _Unknown(f"{unknown[0]} is on" if unknown else f"{left_out[0]} is off")
    if not math.isclose(config.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise _Unknown(f"its rescale_factor is {config['rescale_factor']!r}, not 1/255")
    if config.get("resample") not in _RESAMPLES:
        raise _Unknown(f"its resample is {config.get('resample')!r}; known are 1, 2 and 3")
    mode, resize, crop = _sizes(config, kind)
    normalised = config.get("do_normalize", True)
    # As the service itself will read it.
    return Preprocessing.from_metadata(
        {
            "version": Preprocessing.version,
            "resize": resize,
            "crop": crop,
            "interpolation": _RESAMPLES[config["resample"]],
            "mode": mode,
            "mean": config.get("image_mean") if normalised else [0.0, 0.0, 0.0],
            "std": config.get("image_std") if normalised else [1.0, 1.0, 1.0],
        }
    )


def _kind(config: Mapping[str, Any]) -> str:
    named = str(config.get("image_processor_type", config.get("feature_extractor_type")))
    for kind in _KINDS:
        family = kind.removesuffix("Image")
        if named in (f"{kind}Processor", f"{kind}ProcessorFast", f"{family}FeatureExtractor"):
            return kind
    raise _Unknown(
        f"its image_processor_type is {named!r}; known are {', '.join(f'{k}Processor' for k in _KINDS)}"
    )


def _sizes(config: Mapping[str, Any], kind: str) -> tuple[str, int, int]:
    """The resize mode, the size it gives, and that of the crop."""
    size = config.get("size")
    if isinstance(size, int):
        size = {"shortest_edge": size} if kind in _SHORTER_SIDE else {"height": size, "width": size}
    shorter, both = (size.get("shortest_edge"), _square(size)) if isinstance(size, dict) else (None, None)
    if kind == "ConvNextImage" and isinstance(shorter, int):
        if shorter >= _CONVNEXT_SQUASHES_FROM:
            return "squash", shorter, shorter
        return "shorter_side", int(shorter / config.get("crop_pct", 224 / 256)), shorter
    cropped = config.get("crop_size") if config.get("do_center_crop") else None
    crop = _square(cropped) if isinstance(cropped, dict) else cropped
    if isinstance(both, int) and (crop is None or isinstance(crop, int)):
        return "squash", both, both if crop is None else crop
    if isinstance(shorter, int) and isinstance(crop, int):
        return "shorter_side", shorter, crop
    raise _Unknown(f"its size is {config.get('size')!r} and its crop_size {cropped!r}, which gives no square")


def _square(size: Mapping[str, Any]) -> int | None:
    height = size.get("height")
    return height if isinstance(height, int) and height == size.get("width") else None
