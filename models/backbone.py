"""What every family of networks gives, whatever it is made with: a network without its last layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor, nn

from embedder.model.spec import Preprocessing
from models import Weights
from models.photos import SAMPLE_PHOTOS, sample_photos
from models.weights import sha256_of

SEED = 0

Transform = Callable[[Image.Image], Tensor]
"""A library's own preprocessing: an RGB picture → float32 (3, crop, crop), normalised."""


@dataclass(frozen=True)
class Backbone:
    """A network that can be exported, and what a stored model says of it."""

    architecture: str
    weights: Weights
    preprocessing: Preprocessing
    transform: Transform
    """What `preprocessing` must be the same as."""
    network: nn.Module = field(repr=False)
    """What is exported: float32 (n, 3, crop, crop), normalised → (n, dimension)."""
    judge: nn.Module = field(repr=False)
    """The library's own network, without its last layer: what the exported file must be the same as."""
    libraries: tuple[str, ...] = ("torch", "torchvision")
    """The packages that made it."""
    licence: str = ""
    """Of the weights, as the library has it; empty where it states none."""


def untrained(make: Callable[[], nn.Module], transform: Transform) -> nn.Module:
    """A seeded initialisation whose BatchNorm statistics are those of the sample photos.

    Without the statistics the features of all photos would be nearly the same. The same on every
    call; another version of torch may give other values.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = make()
    settle(network, transform)
    return network


def settle(network: nn.Module, transform: Transform) -> None:
    """Give each BatchNorm of `network` the statistics of the sample photos."""
    network.eval()  # nothing is left out at random
    norms = _batch_norms(network)
    for norm in norms:
        norm.momentum = None  # a plain average: after one batch, that batch's statistics
        norm.train()
    if norms:
        with torch.no_grad():
            network(torch.stack([transform(photo) for photo in sample_photos()]))
    network.eval()


def untrained_weights(network: nn.Module, library: str, used: dict[str, Tensor]) -> Weights:
    """What is said of a network of `untrained`, whose tensors are `used`."""
    source = f"{library}'s initialisation with seed {SEED}"
    if _batch_norms(network):
        source += f", BatchNorm statistics from {len(SAMPLE_PHOTOS)} photos of scikit-image"
    return Weights("untrained", source, sha256_of(used), trained=False)


def _batch_norms(network: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
