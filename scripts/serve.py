"""`make serve`: save the model if that is still to be done, then become `bentoml serve`."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--weights", default="imagenet", help="imagenet, untrained, or a .pth file")
    precision = os.environ.get("EMBEDDER_PRECISION") or "fp32"
    parser.add_argument("--precision", default=precision, help="fp32, or int8, which is faster")
    arguments = parser.parse_args()
    _check_port(arguments.port)
    saved = subprocess.run(
        [
            sys.executable,
            str(ROOT / "scripts" / "save_model.py"),
            *("--weights", arguments.weights, "--precision", arguments.precision),
            *("--if-missing", "--fallback-untrained"),
        ]
    )
    if saved.returncode != 0:
        sys.exit(saved.returncode)
    os.chdir(ROOT)
    environ = {
        **os.environ,
        "EMBEDDER_PORT": str(arguments.port),
        "EMBEDDER_MODEL": "resnet18:latest",
        "EMBEDDER_PRECISION": arguments.precision,
    }
    bentoml = str(Path(sys.executable).with_name("bentoml"))
    os.execve(bentoml, [bentoml, "serve"], environ)


def _check_port(port: int) -> None:
    if not 1 <= port <= 65535:
        sys.exit(f"serve: port {port} is not between 1 and 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104 - where BentoML will listen
        except OSError as error:
            sys.exit(
                f"serve: port {port} can't be used: {error.strerror}; choose another: make serve PORT=8001"
            )


if __name__ == "__main__":
    main()
