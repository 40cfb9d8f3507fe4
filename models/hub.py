"""Weights from the Hugging Face Hub, by its own library. The hash that it names them by is checked. No torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.error import HTTPError

from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

from models import DownloadFailed, Weights, WeightsError, read_weights_file
from models.download import NETWORK_TIMEOUT_S, wait_for_answer

NAMES = ("model.safetensors", "pytorch_model.bin")
"""What weights are called, the first that is there."""


def hub_file(
    repository: str, name: str | None, *, timeout_s: float = NETWORK_TIMEOUT_S
) -> tuple[Weights, Path, bytes]:
    """The weights in a repository of the Hub, where its library's cache keeps them, and the file itself.

    `name` is the file's, where it is none of `NAMES`. The Hub has `timeout_s` to answer.
    Raises `DownloadFailed` if the Hub does not give it, and `WeightsError` if it is damaged.
    """
    names = (name,) if name else NAMES
    path = next((Path(path) for path in map(partial(_cached, repository), names) if path), None)
    if path is None:
        path = _downloaded(repository, names, timeout_s)
    content = read_weights_file(path)
    sha256 = hashlib.sha256(content).hexdigest()
    # Large files are stored under their sha256, which the Hub gave when it was asked for them.
    named = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", named) and named != sha256:
        raise WeightsError(f"{path} is damaged, its sha256 is {sha256}: delete it and try again")
    return Weights("pretrained", f"{constants.ENDPOINT}/{repository}", sha256, trained=True), path, content


def _cached(repository: str, name: str) -> str | None:
    found = try_to_load_from_cache(repository, name)
    return found if isinstance(found, str) else None


def _downloaded(repository: str, names: Sequence[str], timeout_s: float) -> Path:
    """The first of them that is there."""
    try:  # its library tries for half a minute
        wait_for_answer(hf_hub_url(repository, names[0]), timeout_s)
    except DownloadFailed as exc:
        if not isinstance(exc.__cause__, HTTPError):  # which is an answer
            raise
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError as exc:
            raise _failed(repository, exc.__cause__ or exc) from exc
        except EntryNotFoundError as exc:
            missing = exc
        except (
            HFValidationError,
            OSError,
        ) as exc:  # HfHubHTTPError, OfflineModeIsEnabled and the disk's among them
            raise _failed(repository, exc) from exc
    raise _failed(repository, missing) from missing


def _failed(repository: str, error: BaseException) -> DownloadFailed:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DownloadFailed(f"{constants.ENDPOINT}/{repository} can't be downloaded: {reason}")
