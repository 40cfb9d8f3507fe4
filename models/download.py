"""Where torchvision's weights come from, without torch: a try that fails need not wait for torch to load."""

from __future__ import annotations

import http.client
import os
import queue
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path

from models import DownloadFailed

IMAGENET_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
"""torchvision's `ResNet18_Weights.IMAGENET1K_V1.url`."""

NETWORK_TIMEOUT_S = 10.0
NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)


def cached_file(url: str) -> Path:
    """Where torch keeps what it downloaded from `url` (documented at torch.hub.get_dir)."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser()
    return home / "hub" / "checkpoints" / url.rpartition("/")[2]


def wait_for_answer(url: str, timeout_s: float) -> None:
    """Return once the server has answered for `url`; raise `DownloadFailed` after `timeout_s`.

    A socket's timeout alone is no bound: it starts again with each address of a name, and does not
    cover looking the name up. So a thread asks, and is left behind when it takes too long.
    """
    outcomes: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            # S310: torchvision's constant, or a URL of the calling code; never a request's.
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310
            urllib.request.urlopen(request, timeout=timeout_s).close()  # noqa: S310
        except Exception as exc:  # handed over: in a thread it would be lost
            outcomes.put(exc)
        else:
            outcomes.put(None)

    threading.Thread(target=ask, daemon=True).start()
    try:
        error = outcomes.get(timeout=timeout_s)
    except queue.Empty:
        error = TimeoutError(f"no answer within {timeout_s:g} s")
    if error is not None:
        raise download_failed(url, error) from error


def download_failed(url: str, error: Exception) -> DownloadFailed:
    reason: object = error
    if isinstance(error, urllib.error.HTTPError):
        error.close()  # it holds the connection
        reason = f"HTTP {error.code} {error.reason}"
    elif isinstance(error, urllib.error.URLError):
        reason = error.reason
    return DownloadFailed(f"{url} can't be downloaded: {reason}")
