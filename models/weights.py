"""A network's parameters: from a file, without executing anything in it, or by a download whose hash is checked."""

from __future__ import annotations

import hashlib
import io
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from models import Weights, WeightsError, architectures, read_weights_file
from models.download import NETWORK_ERRORS, NETWORK_TIMEOUT_S, cached_file, download_failed, wait_for_answer


@dataclass(frozen=True)
class Layout:
    """The names and shapes that a state_dict must have."""

    network: str
    """What messages call it."""
    make: Callable[[], nn.Module]
    head: str
    """The layer that is left out: a state_dict may have another one there, or none."""
    unused: tuple[str, ...] = ()
    """Prefixes of what only training uses."""

    def used(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Without what is left out, and the batch counter, which older files lack."""
        return {
            name: value
            for name, value in state_dict.items()
            if name not in (f"{self.head}.weight", f"{self.head}.bias")
            and not name.endswith(".num_batches_tracked")
            and not name.startswith(self.unused)
        }


def read_state_dict(path: Path, layout: Layout) -> tuple[Weights, dict[str, Tensor]]:
    """A file with a `state_dict` in that layout: what it is, and its float32 tensors, without the head.

    Nothing in the file is executed. It counts as trained: whether it is can't be seen.
    Raises `WeightsError` if it is anything else than that network's finite float tensors.
    """
    weights, loaded = read_tensors(path)
    return weights, checked(loaded, path, layout)


def read_tensors(path: Path) -> tuple[Weights, object]:
    """What a file is, and what is in it: a `.safetensors`, or one that `torch.save` wrote. Raises `WeightsError`."""
    content = read_weights_file(path)
    if path.name in architectures.WEIGHTS or not path.name.isprintable():
        raise WeightsError(f"{str(path)!r} is no name for weights: rename the file")
    sha256 = hashlib.sha256(content).hexdigest()
    return Weights(path.name, path.name, sha256, trained=True), loaded(content, path)


def downloaded(url: str, name: str, *, timeout_s: float = NETWORK_TIMEOUT_S) -> tuple[Weights, Path, object]:
    """The file at `url` as weights of that name, where torch's cache keeps it from then on, and what is in it.

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
    return Weights(name, url, sha256, trained=True), cached, loaded(content, cached)


def sha256_of(state_dict: Mapping[str, Tensor]) -> str:
    """Of the names and bytes of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


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


def loaded(content: bytes, path: Path) -> object:
    """What is in the file `path`, without executing anything of it. Raises `WeightsError`."""
    if path.suffix == ".safetensors":
        return _safely_loaded(content, path)
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as exc:  # torch has no error of its own for bytes that it can't read
        wants_to_run = re.search(r"GLOBAL (\S+)", str(exc))
        if wants_to_run is not None:
            raise WeightsError(
                f"{path} holds more than tensors and was not loaded (it calls {quoted([wants_to_run[1]])}): "
                "save model.state_dict(), not the model"
            ) from exc
        raise WeightsError(f"{path} is not a file that torch.save wrote, or is damaged") from exc


def _safely_loaded(content: bytes, path: Path) -> dict[str, Tensor]:
    """The format has no code in it."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
    except SafetensorError as exc:
        raise WeightsError(f"{path} is not a .safetensors file, or is damaged") from exc
    return tensors


def checked(loaded: object, path: Path, layout: Layout) -> dict[str, Tensor]:
    """`loaded` as float32 tensors in that layout, or the first thing that is wrong with it.

    Raises `WeightsError`.
    """
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not a state_dict")
    parts = [name for name, value in loaded.items() if isinstance(value, Mapping)]
    if parts:
        raise WeightsError(f"{path} is a whole checkpoint, with {quoted(parts)}: save its state_dict alone")
    if any(name.startswith("module.") for name in loaded):
        raise WeightsError(
            f"{path} has names that start with 'module.', as DataParallel makes them: "
            "save model.module.state_dict()"
        )

    given = layout.used(loaded)
    with torch.device("meta"):  # names and shapes, without memory
        wanted = layout.used(layout.make().state_dict())
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    if missing or unexpected:
        problems = [f"lacks {quoted(missing)}"] if missing else []
        problems += [f"has {quoted(unexpected)}, which {layout.network} has not"] if unexpected else []
        raise WeightsError(f"{path} {' and '.join(problems)}")

    state_dict = {}
    for name, pattern in wanted.items():
        if not pattern.is_floating_point():  # a table of indices, which the network makes itself
            continue
        tensor = given[name]
        if not _is_plain(tensor):
            raise WeightsError(f"{path}: {name} is not a dense tensor of floats")
        if tensor.shape != pattern.shape:
            raise WeightsError(
                f"{path}: {name} has the shape {tuple(tensor.shape)}; "
                f"{layout.network} wants {tuple(pattern.shape)}"
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


def quoted(names: Sequence[str]) -> str:
    """Up to three of the names, on one line whatever they hold, and how many more there are."""
    shown = ", ".join(repr(name[:80]) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
