"""Puts the wanted model into BentoML's store if it is not there, and installs what makes it only then.

`make serve`, `make bulk` and `make bento` begin with it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent


def ensure_model(architecture: str, weights: str, precision: str, *, fallback_untrained: bool) -> int:
    """The exit status of `save_model.py --if-missing`, which takes no torch if there is nothing to save."""
    command = [
        *(sys.executable, str(SCRIPTS / "save_model.py"), "--if-missing"),
        *("--architecture", architecture, "--weights", weights, "--precision", precision),
        *(["--fallback-untrained"] if fallback_untrained else []),
    ]
    # Where torch is not installed, save_model.py says so and ends with 1, having changed nothing.
    if (status := _status(command, but="is not installed")) is not None:
        return status
    installed = subprocess.run([sys.executable, str(SCRIPTS / "setup.py"), "export"])
    return installed.returncode or subprocess.run(command).returncode


def _status(command: list[str], *, but: str) -> int | None:
    """The exit status; None if it was an error with these words, which is not shown."""
    said = False
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            if but in line:
                said = True
            else:
                print(line, end="", file=sys.stderr, flush=True)
    return None if said and process.returncode else process.returncode


def add_model_options(parser: argparse.ArgumentParser, *, precision: str = "fp32") -> None:
    parser.add_argument("--architecture", default="resnet18", help="the network (%(default)s)")
    parser.add_argument(
        "--weights", default="pretrained", help="pretrained, untrained, or a .pth or .safetensors file"
    )
    parser.add_argument("--precision", default=precision, help="fp32; bf16 or int8, which are faster")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_options(parser)
    parser.add_argument(
        "--fallback-untrained", action="store_true", help="where pretrained weights can't be downloaded"
    )
    arguments = parser.parse_args()
    return ensure_model(
        *(arguments.architecture, arguments.weights, arguments.precision),
        fallback_untrained=arguments.fallback_untrained,
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
