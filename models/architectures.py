"""Which file makes a network, and what its names are. No torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from models.download import IMAGENET_URL

if TYPE_CHECKING:
    from models.backbone import Backbone

DEFAULT = "resnet18"
FROM_THE_PACKAGE_INDEX = "efficientnet_lite0"
"""A network whose trained weights take no other download."""

WEIGHTS = ("imagenet", "pretrained", "untrained")
"""The words for weights; what is none of them is a path. `imagenet` is what ResNet18's trained ones were called."""


class Maker(Protocol):
    """A module of this folder that makes networks."""

    def backbone(self, architecture: str, weights: str) -> Backbone:
        """With `pretrained`, or what stands for it, `untrained` or the path of a file for weights.

        Raises `ArchitectureError` or `WeightsError`.
        """


@dataclass(frozen=True)
class Own:
    """A network with a file of its own in this folder."""

    module: str
    pretrained: str = "pretrained"
    """What its trained weights are called."""
    url: str = ""
    """Where they are downloaded from, if it is known without torch."""


OWN = {
    "resnet18": Own("models.resnet18", pretrained="imagenet", url=IMAGENET_URL),
    "efficientnet_lite0": Own("models.efficientnet_lite0"),
}


def maker(architecture: str) -> Maker:
    """Imports torch. Whether its library has that network is seen when it is made."""
    if architecture in OWN:
        module = OWN[architecture].module
    elif architecture.startswith("timm/"):
        module = "models.timm_networks"
    else:
        module = "models.torchvision_networks"
    return cast(Maker, importlib.import_module(module))


def store_name(architecture: str) -> str:
    """Its name in BentoML's store, which has no slashes and no capitals."""
    return architecture.replace("/", "-").lower()


def weights_name(architecture: str, asked: str) -> str:
    """What the weights are called that are asked for: `pretrained` and `imagenet` are the network's trained ones."""
    if asked not in ("pretrained", "imagenet"):
        return asked
    return OWN[architecture].pretrained if architecture in OWN else "pretrained"


def download_url(architecture: str, weights: str) -> str:
    """Where they would be downloaded from; empty if that is not known without torch."""
    own = OWN.get(architecture)
    return own.url if own and weights == own.pretrained else ""


def restricted(licence: str) -> bool:
    """Whether a licence, by the name that timm has for it, is none of those that let everybody do everything."""
    return licence != "" and licence not in _FREE


_FREE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
