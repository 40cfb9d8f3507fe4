"""wrk, the load generator: C, so that it leaves the cores to the services."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SCRIPT = Path(__file__).with_name("post.lua")
TIMEOUT_S = 60

Shape = Literal["url", "list", "kserve"]
"""Of a request: {"url": ...}, {"urls": [...]}, or one image in the KServe protocol, version 2."""


@dataclass(frozen=True)
class Load:
    """What wrk saw in one run."""

    requests: int
    duration_s: float
    errors: int
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.duration_s


class LoadError(Exception):
    """Requests failed, so that nothing that was measured means anything."""


@dataclass(frozen=True)
class Target:
    """Where to post, and what: photos under `prefix`, one a request, or `urls` of them in a list."""

    endpoint: str
    prefix: str
    files: int
    shape: Shape = "url"
    urls: int = 1
    pace_ms: float = 0
    """How long each connection waits before a request, on average."""


def start(target: Target, *, connections: int, seconds: float) -> subprocess.Popen[str]:
    """wrk, under way; `finish` gives what it saw."""
    return subprocess.Popen(
        [
            *(
                "wrk",
                "-t",
                "1",
                "-c",
                str(connections),
                "-d",
                f"{seconds:.0f}s",
                "--timeout",
                f"{TIMEOUT_S}s",
            ),
            *("-s", str(SCRIPT), target.endpoint, "--"),
            *(target.prefix, str(target.files), target.shape, str(target.urls), f"{target.pace_ms:.1f}"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(wrk: subprocess.Popen[str]) -> Load:
    """Raises LoadError when any request failed."""
    output, _ = wrk.communicate(timeout=TIMEOUT_S * 4)
    try:
        load = Load(**json.loads(output.splitlines()[-1]))
    except (IndexError, TypeError, ValueError):
        raise LoadError(f"wrk ended with {wrk.returncode}: {output}") from None
    if load.errors:
        raise LoadError(f"{load.errors} of {load.requests} requests failed: {output}")
    return load


def run(target: Target, *, connections: int, seconds: float) -> Load:
    """Longer than `seconds` where that is too short for a fair number of answers. Raises LoadError."""
    while True:
        load = finish(start(target, connections=connections, seconds=seconds))
        if load.requests >= 2 * connections or seconds >= TIMEOUT_S:
            return load
        seconds *= 2


def warm(target: Target, *, connections: int, seconds: float) -> None:
    """Load that nobody looks at: it may be too short for an answer."""
    start(target, connections=connections, seconds=seconds).communicate(timeout=TIMEOUT_S * 4)
