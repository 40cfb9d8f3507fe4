"""Where there is a CPU build of torch: a tenth of the download of the CUDA build in the package index.

On x86-64 that is PyTorch's own index, if it answers. It is not asked where pip is configured with an index or
with none. TORCH_INDEX_URL names another index with CPU builds. The standard library only.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urljoin

TORCH_INDEX_URL = "https://download.pytorch.org/whl/cpu"
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class TorchBuild:
    """CPU builds that an index has for this Python."""

    index_url: str
    pins: tuple[str, ...]
    """Like torch==2.14.1+cpu."""
    bytes: int
    """Of all their wheels; 0 if the index does not say."""


class NoTorchBuildError(Exception):
    """There is no CPU build to be had. The message is one line that says why."""


def cpu_build(requirements: Sequence[str], pip_config_list: Sequence[str]) -> TorchBuild:
    """The builds of the torch and torchvision that `requirements` pin. Waits up to `TIMEOUT_S` for an answer.

    `pip_config_list` is the command that prints pip's configuration. Raises `NoTorchBuildError`.
    """
    index_url = os.environ.get("TORCH_INDEX_URL")
    if platform.machine() != "x86_64":
        raise NoTorchBuildError(f"its build for {platform.machine()} needs no other index")
    if not index_url and (setting := _own_index(pip_config_list)):
        raise NoTorchBuildError(f"pip is configured with {setting}; TORCH_INDEX_URL may name CPU builds")
    index_url = (index_url or TORCH_INDEX_URL).rstrip("/")
    pins, size = [], 0
    for requirement in requirements:
        if found := re.match(r"(torch|torchvision)==([0-9.]+)", requirement):
            package, version = found[1], f"{found[2]}+cpu"
            size += _wheel_bytes(f"{index_url}/{package}/", package, version)
            pins.append(f"{package}=={version}")
    return TorchBuild(index_url, tuple(pins), size)


def _own_index(pip_config_list: Sequence[str]) -> str | None:
    """The setting of pip that says that packages come from one index, or from none."""
    configured = subprocess.run(pip_config_list, capture_output=True, text=True).stdout
    found = re.search(r"^\S+\.(index-url|no-index)=", configured, re.MULTILINE)
    return found[1] if found else None


def _wheel_bytes(page_url: str, package: str, version: str) -> int:
    """The size of the wheel for this Python that the page of an index links to."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    name = re.escape(f"{package}-{version}-{tag}-{tag}-").replace(r"\+", r"(?:\+|%2B)")
    try:
        # S310: the constant above, or a setting of the person at the keyboard.
        with urllib.request.urlopen(page_url, timeout=TIMEOUT_S) as page:  # noqa: S310
            link = re.search(rf'href="([^"#]*{name}[^"#/]*x86_64\.whl)', page.read().decode())
        if link is None:
            raise NoTorchBuildError(f"{page_url} has no {package} {version} for Python {tag}")
        head = urllib.request.Request(urljoin(page_url, link[1]), method="HEAD")  # noqa: S310
        with urllib.request.urlopen(head, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return int(answer.headers["Content-Length"] or 0)
    except urllib.error.HTTPError as error:
        raise NoTorchBuildError(f"{error.url} answers {error.code}") from error
    except OSError as error:  # URLError, TimeoutError and a reset connection among them
        raise NoTorchBuildError(f"{page_url} does not answer: {getattr(error, 'reason', error)}") from error
