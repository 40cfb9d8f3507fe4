"""`make serve`: saves the model if it is not in the store, then becomes `bentoml serve`.

If EMBEDDER_MODEL is set, that model is served and none is saved.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models.architectures import store_name  # noqa: E402 - found through the line above
from scripts.ensure_model import add_model_options, ensure_model  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    add_model_options(parser, precision=os.environ.get("EMBEDDER_PRECISION") or "fp32")
    arguments = parser.parse_args()
    _check_port(arguments.port)
    model = os.environ.get("EMBEDDER_MODEL")
    if not model:
        wanted = (arguments.architecture, arguments.weights, arguments.precision)
        status = ensure_model(*wanted, fallback_untrained=True)
        if status != 0:
            sys.exit(status)
    name = store_name(arguments.architecture)
    which = f"{model}, as EMBEDDER_MODEL says" if model else f"the latest {name}"
    print(f"serve: serving {which}, in {arguments.precision}, on port {arguments.port}", flush=True)
    os.chdir(ROOT)
    environ = {
        **os.environ,
        "EMBEDDER_MODEL": model or f"{name}:latest",
        "EMBEDDER_PORT": str(arguments.port),
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
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
