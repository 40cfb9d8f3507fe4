"""What all the other sides share: the replaced service's download, pixels and network, in torch."""

from __future__ import annotations

import io
import os

import numpy as np
import requests
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision import models, transforms

TRANSFORM = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ]
)
DOWNLOAD_TIMEOUT_S = 30
BATCH = 16
"""Images that the network gets at once, from a catalogue."""

# There are as many processes as cores; with more threads they would get into each other's way.
torch.set_num_threads(int(os.environ["BENCH_TORCH_THREADS"]))


def load_network() -> nn.Module:
    """torchvision's ResNet18 without its last layer, with the weights in the file `BENCH_WEIGHTS`."""
    network = models.resnet18()
    network.load_state_dict(torch.load(os.environ["BENCH_WEIGHTS"], weights_only=True))
    return nn.Sequential(*list(network.children())[:-1], nn.Flatten()).eval()


def download(url: str, session: requests.Session | None = None) -> bytes:
    """The body behind `url`, on a kept connection where there is a `session`."""
    response = (session or requests).get(url, timeout=DOWNLOAD_TIMEOUT_S)
    response.raise_for_status()
    return response.content


def preprocess(data: bytes) -> Tensor:
    """An image file as float32 (3, 224, 224)."""
    pixels: Tensor = TRANSFORM(Image.open(io.BytesIO(data)).convert("RGB"))
    return pixels


def embed(network: nn.Module, batch: Tensor) -> NDArray[np.float32]:
    """float32 (n, 3, 224, 224) → float32 (n, 512), each row of norm 1."""
    with torch.inference_mode():
        embeddings: NDArray[np.float32] = network(batch).numpy()
    unit: NDArray[np.float32] = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return unit
