"""How long the service may take, as `service.py` works it out."""

from __future__ import annotations

import subprocess
import sys

from tests.server import ROOT, plain_environ

_PROGRAM = """
import service
from embedder.runtime.shutdown import GRACE_S
print(service.REQUEST_TIMEOUT_S, GRACE_S)
"""


def deadlines_s(**settings: str) -> tuple[float, float]:
    """A request's, and the grace between SIGTERM and the end of accepting, with these EMBEDDER_ variables."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM],
        cwd=ROOT,
        env={**plain_environ(), **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    request_s, grace_s = map(float, done.stdout.split())
    return request_s, grace_s
