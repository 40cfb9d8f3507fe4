"""`make container`: the built Bento as an image, by `bentoml containerize` and the engine that is here."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ENGINES = ("docker", "podman", "buildah")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bento", nargs="?", default="image_embedder:latest", help="its tag (%(default)s)")
    parser.add_argument("--image", default="image-embedder:latest", help="the image's name (%(default)s)")
    parser.add_argument("--engine", default="", help="docker, podman or buildah (the first that works)")
    parser.add_argument("--base-image", default="", help="a slim Python 3.11 (python:3.11-slim)")
    parser.add_argument(
        "--options", default="", help="more for the engine's build command, like 'no-cache network=host'"
    )
    arguments = parser.parse_args()
    engine = arguments.engine or find_engine()
    options = shlex.split(arguments.options)
    if arguments.base_image:
        options.append(f"build-arg=BASE_IMAGE={arguments.base_image}")
    containerized = subprocess.run(
        [
            *(Path(sys.executable).with_name("bentoml"), "containerize", arguments.bento),
            *("--backend", engine, "--image-tag", arguments.image),
            *(part for option in options for part in ("--opt", option)),
        ],
        # BentoML looks for the Bento's own template below this folder alone (BentoML#5566).
        cwd=tempfile.gettempdir(),
        # podman's and buildah's own format has no place for a HEALTHCHECK.
        env={"BUILDAH_FORMAT": "docker", **os.environ},
    )
    if containerized.returncode != 0:
        sys.exit(f"container: {engine} could not build it: see above")
    runner = "docker" if engine == "docker" else "podman"  # which runs what buildah builds
    print(f"container: {engine} has built {arguments.image}; to run it:")
    hardened = "--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --stop-timeout 75"
    print(f"    {runner} run {hardened} --publish 8000:8000 {arguments.image}")


def find_engine() -> str:
    """The first of ENGINES that works: there are docker clients without a server."""
    for engine in ENGINES:
        if shutil.which(engine) and subprocess.run([engine, "version"], capture_output=True).returncode == 0:
            return engine
    sys.exit(f"container: none of {', '.join(ENGINES)} works here: install one, and start docker's service")


if __name__ == "__main__":
    main()
