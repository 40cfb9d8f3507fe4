"""Weights that tell photos apart, what torchvision makes of them, and a server that gives files."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18

from models.backbone import Transform, settle
from models.photos import sample_photos
from tests.server import ROOT, plain_environ

PRESET = ResNet18_Weights.IMAGENET1K_V1.transforms()


@cache
def discriminating_state_dict(seed: int = 0) -> dict[str, Tensor]:
    """A state_dict in torchvision's layout, with `fc.*`, that can see what was done to a photo.

    A fresh initialisation gives any two photos a cosine above 0.98, so that a wrong crop passes for
    a right one. Here BatchNorm has a random scale (0.5-1.5) and shift (sigma 0.3), and the
    statistics of the sample photos: two photos are at 0.90 on average.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = resnet18()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                module.momentum = None  # a plain average: of one batch, here
    network.train()
    with torch.no_grad():
        network(torch.stack([PRESET(photo) for photo in sample_photos()]))
    return dict(network.state_dict())


def discriminate(network: nn.Module, transform: Transform, seed: int = 0) -> None:
    """Gives any network weights that tell photos apart, and a photo from the same moved by two pixels.

    As made, one with LayerNorm and small steps adds next to nothing to what it is given. Here norms have a random
    scale and shift, linear layers keep the size of what goes through them, and each step counts. BatchNorm's shift
    is about 1, so that most of what comes behind it passes: with 0, 40 layers make chaos of a grey level's difference.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.LayerNorm | nn.GroupNorm):
                batch_norm = isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, mean=1.0 if batch_norm else 0.0, std=0.3)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for name, parameter in network.named_parameters():
            if re.search(r"gamma|layer_scale|pos_embed|class_token|cls_token|pos_embedding", name):
                nn.init.normal_(parameter, std=0.5)
    settle(network, transform)


def save_pth(path: Path, seed: int = 0) -> Path:
    """`discriminating_state_dict(seed)` as a file; gives `path`."""
    torch.save(discriminating_state_dict(seed), path)
    return path


def save_model(
    home: Path, pth: Path, precision: str = "fp32", **environ: str
) -> subprocess.CompletedProcess[str]:
    """Makes `home` a BENTOML_HOME whose model is saved from `pth` by users' own command."""
    save = (sys.executable, ROOT / "scripts" / "save_model.py", "--weights", pth, "--precision", precision)
    environ = {**plain_environ(), "BENTOML_HOME": str(home), **environ}
    done = subprocess.run(save, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def saved_model(home: Path, pth: Path) -> Path:
    """The same, in fp32; gives `home`."""
    save_model(home, pth)
    return home


def onnx_embeddings(onnx_file: bytes, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """By the one output of `onnx_file`: float32 (n, 512)."""
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    embeddings: npt.NDArray[np.float32]
    (embeddings,) = session.run(None, {"pixels": pixels})
    return embeddings


def torchvision_embeddings(
    state_dict: Mapping[str, Tensor], photos: Sequence[Image.Image]
) -> npt.NDArray[np.float64]:
    """The reference, with nothing of ours: torchvision's preprocessing and ResNet18, numpy's norm."""
    network = resnet18()
    network.load_state_dict(dict(state_dict))
    network.fc = nn.Identity()
    network.eval()
    with torch.no_grad():
        features = network(torch.stack([PRESET(photo) for photo in photos])).double().numpy()
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True))


@contextmanager
def serve_files(
    files: Mapping[str, bytes], *, declared_bytes: int | None = None, silent: bool = False
) -> Iterator[str]:
    """An HTTP server on a free port of 127.0.0.1 that gives `files`, 404 for others; yields its URL.

    With `declared_bytes`, every answer claims that length. A `silent` one never answers.
    """
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if silent:
                closing.wait()
                return
            body = files.get(self.path.lstrip("/"))
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(declared_bytes or len(body or b"")))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(files.get(self.path.lstrip("/"), b""))

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            closing.set()
            server.shutdown()
            thread.join()
