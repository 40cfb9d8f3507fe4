"""torchvision's networks for classification, without their last layer.

`resnet50` is the network with the weights that torchvision has for it by default. `resnet50.imagenet1k_v1` names
others of its weights, which may have another preprocessing.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from embedder.model.spec import INTERPOLATIONS, Preprocessing
from models import ArchitectureError, Weights
from models.backbone import Backbone, untrained, untrained_weights
from models.weights import Layout, downloaded, read_state_dict

CLASSES = 1000
"""ImageNet-1K's: what the last layer of each of them gives."""
_ONLY_FOR_TRAINING = ("aux1.", "aux2.", "AuxLogits.")


def backbone(architecture: str, weights: str) -> Backbone:
    """With `pretrained`, `untrained` or the path of a `state_dict` for weights.

    Raises `ArchitectureError` for a name that torchvision has not, and `WeightsError`.
    """
    name, _, tag = architecture.partition(".")
    entry = _entry(name, tag)
    transform = entry.transforms()
    found, network = _network(name, entry, weights, transform)
    _without_last_layer(network)
    network.eval()
    return Backbone(
        architecture=architecture,
        weights=found,
        preprocessing=preprocessing(architecture, transform),
        transform=transform,
        network=network,
        judge=network,
        licence=str(entry.meta.get("license", "")) if weights == "pretrained" else "",
    )


def preprocessing(architecture: str, preset: Any) -> Preprocessing:  # Any: torchvision's own, untyped
    """What torchvision's preset for classification does. Raises `ArchitectureError` if the service can't."""
    interpolation = preset.interpolation.value
    if interpolation not in INTERPOLATIONS or not preset.antialias:
        how = interpolation if preset.antialias else f"{interpolation} without antialiasing"
        raise ArchitectureError(f"{architecture} resizes by {how}, which the service can't do")
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    return Preprocessing(
        resize=resize,
        crop=crop,
        interpolation=interpolation,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _entry(name: str, tag: str) -> Any:  # Any: a member of the network's own enumeration
    known = models.list_models(module=models)
    if name not in known:
        near = get_close_matches(name, known, n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise ArchitectureError(f"torchvision has no network {name!r}{hint} (timm's begin with timm/)")
    entries = {entry.name.lower(): entry for entry in models.get_model_weights(name)}
    if tag and tag not in entries:
        raise ArchitectureError(f"torchvision has no weights {tag!r} for {name}, but {', '.join(entries)}")
    return entries[tag] if tag else models.get_model_weights(name).DEFAULT


def _network(
    name: str, entry: Any, weights: str, transform: Any
) -> tuple[Weights, nn.Module]:  # Any: as above
    def made() -> nn.Module:
        network: nn.Module = models.get_model(name, weights=None)
        if hasattr(network, "transform_input"):  # as torchvision makes those with its weights
            setattr(network, "transform_input", True)  # noqa: B010 - nn.Module's attributes are typed as modules
        return network

    if weights == "untrained":
        network = untrained(made, transform)
        return untrained_weights(network, "torchvision", _floats(network)), network
    if weights == "pretrained":
        found, _, _ = downloaded(entry.url, "pretrained")
        return found, models.get_model(name, weights=entry)  # by torch's cache; it may rename tensors
    layout = Layout(name, made, head=last_layer(made()), unused=_ONLY_FOR_TRAINING)
    found, state_dict = read_state_dict(Path(weights), layout)
    network = made()
    network.load_state_dict(state_dict, strict=False)  # `read_state_dict` was as strict
    return found, network


def last_layer(network: nn.Module) -> str:
    """The name of what gives the classes. Raises `ArchitectureError` if there is none."""
    found: list[str] = [
        name
        for name, module in network.named_modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == CLASSES
    ]
    if not found:
        raise ArchitectureError(f"{type(network).__name__} has no last layer with {CLASSES} outputs")
    return found[-1]


def _without_last_layer(network: nn.Module) -> None:
    parent, _, child = last_layer(network).rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())


def _floats(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if torch.is_floating_point(tensor)}
