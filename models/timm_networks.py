"""timm's networks without their last layer: `timm/vit_small_patch14_dinov2.lvd142m`.

What stands behind the dot names the weights, and with them the preprocessing: timm has several for most networks.
A CLIP tower keeps its last layer, which is what makes its embeddings of its features.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import timm
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from timm.models import clean_state_dict
from torch import Tensor, nn

from embedder.model.spec import INTERPOLATIONS, Preprocessing
from models import ArchitectureError, Weights, WeightsError
from models.backbone import Backbone, untrained, untrained_weights
from models.hub import hub_file
from models.weights import downloaded, loaded, quoted, read_tensors

Config = Mapping[str, Any]
"""timm's description of a network with certain weights: JSON."""

_CROP_MODES = {"center": "shorter_side", "squash": "squash"}
_PROJECTS = re.compile(r"clip|_pe_core_")
"""Towers of CLIP's kind, whose last layer leads into the space that they share with texts."""
_CLASSIFIES = re.compile(r"_ft_in\d")
"""Unless they were trained further, to tell classes apart."""


def backbone(architecture: str, weights: str) -> Backbone:
    """With `pretrained`, `untrained` or the path of a `state_dict` for weights.

    Raises `ArchitectureError` for a name that timm has not, and `WeightsError`.
    """
    name = architecture.removeprefix("timm/")
    preprocessing(architecture, _data(name))  # whether it can be served is seen before weights are loaded
    found, network = _network(name, weights)
    made = headless(architecture, found, network)
    return replace(made, licence=_config(name).get("license") or "") if weights == "pretrained" else made


def headless(architecture: str, weights: Weights, network: nn.Module) -> Backbone:
    """timm's `network`, which loses its last layer. Raises `ArchitectureError`."""
    name = architecture.removeprefix("timm/")
    data = _data(name)
    prepared = preprocessing(architecture, data)
    if not keeps_last_layer(name):
        cast(Any, network).reset_classifier(0)  # Any: timm's networks have no class in common
    network.eval()
    return Backbone(
        architecture=architecture,
        weights=weights,
        preprocessing=prepared,
        transform=create_transform(**data, is_training=False),
        network=network,
        judge=network,
        libraries=("torch", "torchvision", "timm"),
    )


def preprocessing(architecture: str, data: Config) -> Preprocessing:
    """What timm's data config says. Raises `ArchitectureError` if the service can't do it."""
    _, height, width = data["input_size"]
    if height != width:
        raise ArchitectureError(f"{architecture} takes {width} x {height} pixels; the service makes squares")
    if data["interpolation"] not in INTERPOLATIONS:
        raise ArchitectureError(
            f"{architecture} resizes by {data['interpolation']}, which the service can't do"
        )
    mode = _CROP_MODES.get(data["crop_mode"])
    if mode is None:
        raise ArchitectureError(
            f"{architecture} crops by {data['crop_mode']!r}, which the service can't do: it knows "
            f"{', '.join(_CROP_MODES)}"
        )
    return Preprocessing(
        resize=math.floor(height / data["crop_pct"]),
        crop=height,
        interpolation=data["interpolation"],
        mode=mode,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )


def keeps_last_layer(name: str) -> bool:
    """Whether the network's last layer makes its embedding, and tells no classes apart."""
    return bool(_PROJECTS.search(name)) and not _CLASSIFIES.search(name)


def full_network(name: str, state_dict: object, path: Path) -> nn.Module:
    """timm's network with its last layer, with what was in the file `path`.

    Checkpoints in other layouts that timm knows are taken too. Raises `WeightsError`.
    """
    if not isinstance(state_dict, dict) or not all(isinstance(key, str) for key in state_dict):
        raise WeightsError(f"{path} holds a {type(state_dict).__name__}, not a state_dict")
    tensors = clean_state_dict(state_dict)
    config = _config(name)
    classes = _classes(tensors, config)
    try:
        network: nn.Module = timm.create_model(
            name,
            pretrained=True,
            num_classes=classes,
            # As many classes as the network has: otherwise timm does not mind what is missing.
            pretrained_cfg_overlay={"state_dict": tensors, "num_classes": classes, "label_offset": 0},
        )
    except (RuntimeError, KeyError, AttributeError, TypeError, ValueError) as exc:
        # It sets tensors before it knows whether they are the right ones, and says so in many lines.
        reason = " ".join(str(exc).split())[:300]
        raise WeightsError(f"{path} is not for timm's {name}: {reason}") from exc
    unsound = [key for key, value in network.state_dict().items() if not _is_finite(value)]
    if unsound:
        raise WeightsError(f"{path}: {quoted(unsound)} has NaN or infinite values")
    return network


def _data(name: str) -> Config:
    data: Config = resolve_data_config(pretrained_cfg=_config(name))
    return data


def _config(name: str) -> Config:
    """timm's description of the network `name`. Raises `ArchitectureError`."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise ArchitectureError(f"timm has no network {architecture!r}{hint}")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(architecture)]
    if tags != [] and tag not in tags:
        several = ", ".join(f"timm/{architecture}.{each}" for each in tags)
        raise ArchitectureError(f"timm has {len(tags)} kinds of weights for {architecture}: name {several}")
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise ArchitectureError(f"timm says nothing of the preprocessing of {name}")
    found: Config = config.to_dict()
    return found


def _network(name: str, weights: str) -> tuple[Weights, nn.Module]:
    config = _config(name)
    if weights == "untrained":
        transform = create_transform(**_data(name), is_training=False)
        network = untrained(lambda: timm.create_model(name, pretrained=False), transform)
        return untrained_weights(network, "timm", _floats(network)), network
    if weights != "pretrained":
        found, content = read_tensors(Path(weights))
        return found, full_network(name, content, Path(weights))
    if config.get("hf_hub_id"):
        found, path, file = hub_file(config["hf_hub_id"], config.get("hf_hub_filename"))
        content = loaded(file, path)
    elif config.get("url"):
        found, path, content = downloaded(config["url"], "pretrained")
    else:
        raise WeightsError(f"timm has no trained weights for {name}: name a file (--weights)")
    return found, full_network(name, content, path)


def _classes(tensors: Mapping[str, Tensor], config: Config) -> int:
    """How many outputs the last layer of a state_dict has; 0 if it has none, as timm's own without classes."""
    if not config.get("num_classes"):
        return 0
    names = config.get("classifier") or ()
    first = names if isinstance(names, str) else next(iter(names), "")
    weight = tensors.get(f"{first}.weight")
    return len(weight) if isinstance(weight, Tensor) else int(config["num_classes"])


def _floats(network: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in network.state_dict().items() if value.is_floating_point()}


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())
