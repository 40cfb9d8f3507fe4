"""ResNet18 without its last layer, as one ONNX file: uint8 pixels in, unit vectors out.

    pixels                    ImageNet          ResNet18 up to                  embeddings
    uint8 (n, 224, 224, 3) ─► normalisation ─► its average pooling ─► L2 norm ─► float32 (n, 512)

Weights ─► `export_onnx` ─► `check_export` ─► a file that the service runs without torch.
The weights are `imagenet_weights()`, `file_weights(path)` or `untrained_weights()`.
"""

from __future__ import annotations

import hashlib
import io
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from PIL import Image
from skimage import data_dir  # type: ignore[attr-defined]  # exported lazily, which mypy can't see
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import functional

from models import WeightsError, read_weights_file
from models.download import (
    IMAGENET_URL,
    NETWORK_ERRORS,
    NETWORK_TIMEOUT_S,
    cached_file,
    download_failed,
    wait_for_answer,
)

DIMENSION = 512
MIN_COSINE = 0.99999
"""Below this, between the exported file and torch, on any sample photo, an export is refused."""

PRESET = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
"""torchvision's preprocessing for these weights: PIL image → float32 (3, 224, 224)."""

SAMPLE_PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
"""The colour photos inside scikit-image's package: no network needed."""

# Opset 18 is the lowest that torch's exporter writes without a conversion, and ONNX Runtime has
# read it since 1.14.
_OPSET = 18
_SEED = 0


@dataclass(frozen=True)
class Weights:
    """A network's parameters, and where they come from."""

    name: str
    """`imagenet`, `untrained`, or the file's base name."""
    source: str
    """The URL, the file's base name, or a sentence on how they were made."""
    sha256: str
    """Of the file; of the names and bytes of all tensors where there is no file."""
    trained: bool
    state_dict: Mapping[str, Tensor] = field(repr=False)
    """float32, in torchvision's layout, without `fc.*` and `*.num_batches_tracked`."""


class Embedder(nn.Module):
    """The exported network: uint8 (n, 224, 224, 3) RGB → float32 (n, 512) of length 1.

    A photo whose features are all zero gives the zero vector, not NaN.
    """

    def __init__(self, state_dict: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(_headless_resnet18(state_dict).children())[:-2])
        # (x / 255 - mean) / std, as one multiplication and one addition.
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PRESET.mean, PRESET.std))
        self.scale = nn.Buffer(1 / (255 * std))
        self.shift = nn.Buffer(-mean / std)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        normalised = pixels.permute(0, 3, 1, 2).float() * self.scale + self.shift  # (n, 3, 224, 224)
        features: Tensor = self.features(normalised).mean((2, 3))  # (n, 512, 7, 7) → (n, 512)
        lengths: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        return features / lengths.clamp_min(1e-12)


# Weights


def imagenet_weights(url: str = IMAGENET_URL, *, timeout_s: float = NETWORK_TIMEOUT_S) -> Weights:
    """torchvision's `ResNet18_Weights.IMAGENET1K_V1`, downloaded once into torch's cache.

    `url` names a file the way torch does, `<name>-<start of its sha256>.pth`; that hash is checked
    on every call. `timeout_s` bounds finding and reaching the server, and then each silence in the
    download, during which it is the default timeout of all new sockets.
    The download's progress goes to stderr.

    Raises `DownloadFailed` if the server does not give the file, and `WeightsError` if it can't be
    kept, or is not the file that its name promises.
    """
    file_name = url.rpartition("/")[2]
    named_hash = re.fullmatch(r".+-([0-9a-f]{8,64})\.pth", file_name)
    if named_hash is None:
        raise WeightsError(f"{url} does not end in the start of a sha256, as in name-01234567.pth")
    cached = cached_file(url)
    if not cached.exists():
        _download(url, cached, named_hash[1], timeout_s)
    content = read_weights_file(cached)
    sha256 = hashlib.sha256(content).hexdigest()
    if not sha256.startswith(named_hash[1]):
        raise WeightsError(f"{cached} is damaged, its sha256 is {sha256}: delete it and try again")
    state_dict = _checked(_loaded(content, cached), cached)
    return Weights("imagenet", url, sha256, trained=True, state_dict=state_dict)


def file_weights(path: Path) -> Weights:
    """A `state_dict` in torchvision's layout, with or without its last layer.

    Nothing in the file is executed. It counts as trained: whether it is can't be seen.
    Raises `WeightsError` if it is anything else than ResNet18's finite float tensors.
    """
    content = read_weights_file(path)
    if path.name in ("imagenet", "untrained") or not path.name.isprintable():
        raise WeightsError(f"{str(path)!r} is no name for weights: rename the file")
    state_dict = _checked(_loaded(content, path), path)
    sha256 = hashlib.sha256(content).hexdigest()
    return Weights(path.name, path.name, sha256, trained=True, state_dict=state_dict)


def untrained_weights() -> Weights:
    """A seeded initialisation whose BatchNorm statistics are those of the sample photos.

    Without the statistics the features of all photos would be nearly the same. The same on every
    call; another version of torch may give other values.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        network = models.resnet18()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average: after one batch, that batch's statistics
    network.train()
    with torch.no_grad():
        network(torch.stack([PRESET(photo) for photo in sample_photos()]))
    state_dict = _without_unused(network.state_dict())
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return Weights(
        "untrained",
        f"torchvision's initialisation with seed {_SEED}, BatchNorm statistics from "
        f"{len(SAMPLE_PHOTOS)} photos of scikit-image",
        digest.hexdigest(),
        trained=False,
        state_dict=state_dict,
    )


def _download(url: str, path: Path, named_hash: str, timeout_s: float) -> None:
    """`url` at `path`, whole and with the sha256 that starts with `named_hash`, or not at all."""
    wait_for_answer(url, timeout_s)
    default_timeout_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_s)  # torch sets none: it would wait for a silent server forever
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), named_hash)
    except NETWORK_ERRORS as exc:
        raise download_failed(url, exc) from exc
    except OSError as exc:  # what is left of it: the disk's
        raise WeightsError(
            f"the download can't be kept in {path.parent}: {exc.strerror} "
            "(TORCH_HOME says where torch keeps them)"
        ) from exc
    except RuntimeError as exc:  # the hash, by torch.hub.download_url_to_file
        raise WeightsError(f"{url} was cut short or is not the right file: {exc}") from exc
    finally:
        socket.setdefaulttimeout(default_timeout_s)


def _loaded(content: bytes, path: Path) -> object:
    """What `torch.save` put into the file, without executing anything of it."""
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as exc:  # torch has no error of its own for bytes that it can't read
        wants_to_run = re.search(r"GLOBAL (\S+)", str(exc))
        if wants_to_run is not None:
            raise WeightsError(
                f"{path} holds more than tensors and was not loaded (it calls {_quoted([wants_to_run[1]])}): "
                "save model.state_dict(), not the model"
            ) from exc
        raise WeightsError(f"{path} is not a file that torch.save wrote, or is damaged") from exc


def _checked(loaded: object, path: Path) -> dict[str, Tensor]:
    """`loaded` as float32 tensors in ResNet18's layout, or the first thing that is wrong with it."""
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not a state_dict")
    parts = [name for name, value in loaded.items() if isinstance(value, Mapping)]
    if parts:
        raise WeightsError(f"{path} is a whole checkpoint, with {_quoted(parts)}: save its state_dict alone")
    if any(name.startswith("module.") for name in loaded):
        raise WeightsError(
            f"{path} has names that start with 'module.', as DataParallel makes them: "
            "save model.module.state_dict()"
        )

    given = _without_unused(loaded)
    with torch.device("meta"):  # names and shapes, without memory
        wanted = _without_unused(models.resnet18().state_dict())
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    if missing or unexpected:
        problems = [f"lacks {_quoted(missing)}"] if missing else []
        problems += [f"has {_quoted(unexpected)}, which ResNet18 has not"] if unexpected else []
        raise WeightsError(f"{path} {' and '.join(problems)}")

    state_dict = {}
    for name, pattern in wanted.items():
        tensor = given[name]
        if not _is_plain(tensor):
            raise WeightsError(f"{path}: {name} is not a dense tensor of floats")
        if tensor.shape != pattern.shape:
            raise WeightsError(
                f"{path}: {name} has the shape {tuple(tensor.shape)}; ResNet18 wants {tuple(pattern.shape)}"
            )
        state_dict[name] = tensor.detach().float().contiguous()
        not_finite = int((~state_dict[name].isfinite()).sum())
        if not_finite:
            raise WeightsError(f"{path}: {name} has {not_finite} NaN or infinite values")
        if name.endswith("running_var") and bool((state_dict[name] < 0).any()):
            raise WeightsError(f"{path}: {name} has negative variances")
    return state_dict


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.device.type == "cpu"  # one saved from the meta device has no values
    )


def _without_unused(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Without the last layer, which is not used, and the batch counter, which older files lack."""
    return {
        name: value
        for name, value in state_dict.items()
        if name not in ("fc.weight", "fc.bias") and not name.endswith(".num_batches_tracked")
    }


def _quoted(names: Sequence[str]) -> str:
    """Up to three of the names, on one line whatever they hold, and how many more there are."""
    shown = ", ".join(repr(name[:80]) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


# The network, its export, and the photos to check it on


def export_onnx(weights: Weights) -> bytes:
    """One self-contained ONNX file: `pixels` uint8 (n, 224, 224, 3) → `embeddings` float32 (n, 512).

    n is free, from 1. Convolutions hold their BatchNorm. About 45 MB; takes seconds.
    """
    program = torch.onnx.export(
        Embedder(weights.state_dict),
        (torch.zeros(2, 224, 224, 3, dtype=torch.uint8),),  # 2: with 1, n would be fixed
        input_names=["pixels"],
        output_names=["embeddings"],
        dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
        opset_version=_OPSET,
        dynamo=True,
        optimize=True,
        verbose=False,
    )
    # None is for the older exporter, which `dynamo` rules out.
    model = cast(torch.onnx.ONNXProgram, program).model_proto
    # The exporter notes a stack trace at each node, with the paths of this machine.
    graph = model.graph
    noted = (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for part in noted:
        part.ClearField("metadata_props")
    onnx: bytes = model.SerializeToString()
    return onnx


def check_export(onnx: bytes, weights: Weights) -> float:
    """The smallest cosine, over the sample photos, between the file and torchvision's own ResNet18.

    Raises `WeightsError` if it is below `MIN_COSINE`, or not a number.
    """
    photos = sample_photos()
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    (embeddings,) = session.run(["embeddings"], {"pixels": np.stack([*map(_pixels, photos)])})
    # torchvision's preprocessing and network as they are, so that nothing above is its own judge.
    with torch.no_grad():
        network = _headless_resnet18(weights.state_dict)
        features = network(torch.stack([PRESET(photo) for photo in photos]))
        expected = nn.functional.normalize(features.double()).numpy()
    # 1 - |a - b|² / 2: the cosine of unit vectors, and less if the file's are not of length 1.
    cosines = 1 - ((embeddings - expected) ** 2).sum(axis=1) / 2
    worst = int(cosines.argmin())  # a NaN, if there is one
    if not cosines[worst] >= MIN_COSINE:
        raise WeightsError(
            f"the model made from {weights.name} differs from torch: cosine {cosines[worst]:.6f} "
            f"for {SAMPLE_PHOTOS[worst]}; at least {MIN_COSINE} is wanted"
        )
    return float(cosines[worst])


def sample_photos() -> list[Image.Image]:
    """The sample photos, RGB, in the order of `SAMPLE_PHOTOS`."""
    photos = []
    for name in SAMPLE_PHOTOS:
        with Image.open(Path(data_dir, name)) as photo:
            photos.append(photo.convert("RGB"))
    return photos


def _pixels(photo: Image.Image) -> npt.NDArray[np.uint8]:
    """The first half of `PRESET`: the part before the network. (224, 224, 3)"""
    resized = functional.resize(
        photo, PRESET.resize_size, interpolation=PRESET.interpolation, antialias=PRESET.antialias
    )
    return np.asarray(functional.center_crop(resized, PRESET.crop_size))


def _headless_resnet18(state_dict: Mapping[str, Tensor]) -> nn.Module:
    """torchvision's ResNet18 that ends with its pooling: float32 (n, 3, 224, 224) → (n, 512)."""
    network: nn.Module = models.resnet18()
    network.fc = nn.Identity()
    network.load_state_dict(dict(state_dict))
    return network.eval()
