"""torchvision's ResNet18 without its last layer, as the service has had it from the beginning.

Its file must not change for other backbones' sake: so its pooling is written as a mean, and its weights are
called `imagenet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torchvision import models

from models import Weights, architectures, torchvision_networks
from models.backbone import Backbone, untrained, untrained_weights
from models.weights import Layout, checked, downloaded, read_state_dict

PRESET = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
"""torchvision's preprocessing for these weights: PIL image → float32 (3, 224, 224)."""

PREPROCESSING = torchvision_networks.preprocessing("resnet18", PRESET)

LAYOUT = Layout("ResNet18", models.resnet18, head="fc")


def backbone(architecture: str, weights: str) -> Backbone:
    """With `imagenet`, `untrained` or the path of a `state_dict` for weights. Raises `WeightsError`."""
    found, state_dict = _found(weights)
    judge = headless(state_dict)
    return Backbone(
        architecture=architecture,
        weights=found,
        preprocessing=PREPROCESSING,
        transform=PRESET,
        network=body(judge),
        judge=judge,
    )


def body(headless: nn.Module) -> nn.Module:
    """The same tensors up to the average pooling: float32 (n, 3, 224, 224) → (n, 512)."""
    return nn.Sequential(*list(headless.children())[:-2], _Mean())


class _Mean(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))  # (n, 512, 7, 7) → (n, 512)


def _found(weights: str) -> tuple[Weights, dict[str, Tensor]]:
    if weights == "untrained":
        made = untrained(models.resnet18, PRESET)
        state_dict = LAYOUT.used(made.state_dict())
        return untrained_weights(made, "torchvision", state_dict), state_dict
    if weights == "imagenet":
        found, cached, content = downloaded(architectures.OWN["resnet18"].url, weights)
        return found, checked(content, cached, LAYOUT)
    return read_state_dict(Path(weights), LAYOUT)


def headless(state_dict: Mapping[str, Tensor]) -> nn.Module:
    """torchvision's ResNet18 that ends with its pooling: float32 (n, 3, 224, 224) → (n, 512)."""
    network: nn.Module = models.resnet18()
    network.fc = nn.Identity()
    network.load_state_dict(dict(state_dict))
    return network.eval()
