"""`make container`: makes an image of the built Bento: `bentoml containerize` with docker, podman or buildah.

The build reaches the package index as this machine does: it gets the variables in `PASSED_ON`, and trusts the
certificates of `--certificates`. Neither is in the image.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ("docker", "podman", "buildah")
PASSED_ON = (
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bento", nargs="?", default="image_embedder:latest", help="its tag (%(default)s)")
    parser.add_argument("--image", default="image-embedder:latest", help="the image's name (%(default)s)")
    parser.add_argument("--engine", default="", help="docker, podman or buildah (the first that works)")
    parser.add_argument("--base-image", default="", help="a slim Python 3.11 (python:3.11-slim)")
    parser.add_argument("--certificates", default="", help="a bundle that the build trusts, in PEM")
    parser.add_argument(
        "--extras", default="", help="extras of pyproject.toml to install as well, like 'bf16 heic'"
    )
    parser.add_argument(
        "--options", default="", help="more for the engine's build command, like 'no-cache network=host'"
    )
    arguments = parser.parse_args()
    engine = arguments.engine or find_engine()
    options = shlex.split(arguments.options)
    if arguments.base_image:
        options.append(f"build-arg=BASE_IMAGE={arguments.base_image}")
    if arguments.certificates:
        bundle = Path(arguments.certificates).absolute()
        if not bundle.is_file():
            sys.exit(f"container: there is no bundle of certificates {bundle}: set CERTIFICATES")
        options.append(f"secret=id=certificates,src={bundle}")
    if arguments.extras:
        options.append(f"build-arg=EXTRAS={' '.join(_requirements(arguments.extras.split()))}")
    options += [f"build-arg={name}={os.environ[name]}" for name in PASSED_ON if name in os.environ]
    containerized = subprocess.run(
        [
            *(Path(sys.executable).with_name("bentoml"), "containerize", arguments.bento),
            *("--backend", engine, "--image-tag", arguments.image),
            *(part for option in options for part in ("--opt", option)),
        ],
        # BentoML looks for the Bento's own template below this folder alone (BentoML#5566).
        cwd=tempfile.gettempdir(),
        # podman's and buildah's own format, OCI's, can't hold a HEALTHCHECK.
        env={"BUILDAH_FORMAT": "docker", **os.environ},
    )
    if containerized.returncode != 0:
        sys.exit(f"container: {engine} could not build it: see above")
    runner = "docker" if engine == "docker" else "podman"  # buildah runs nothing
    print(f"container: {engine} has built {arguments.image}; to run it:")
    hardened = "--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --stop-timeout 75"
    print(f"    {runner} run {hardened} --publish 8000:8000 {arguments.image}")


def _requirements(extras: Sequence[str]) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = project["optional-dependencies"]
    for extra in extras:
        if extra not in known:
            sys.exit(f"container: there is no extra {extra!r}; there are {', '.join(known)}")
    return [requirement for extra in extras for requirement in known[extra]]


def find_engine(engines: Sequence[str] = ENGINES) -> str:
    """The first of them that works: there are docker clients without a server."""
    for engine in engines:
        if shutil.which(engine) and subprocess.run([engine, "version"], capture_output=True).returncode == 0:
            return engine
    sys.exit(f"container: none of {', '.join(engines)} works here: install one, or start docker's service")


if __name__ == "__main__":
    main()
