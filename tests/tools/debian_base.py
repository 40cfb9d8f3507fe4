"""A base image made from Debian's archive, for `make test-container` on a machine that reaches no registry.

DEBIAN_MIRROR names another archive. It takes root, debootstrap, a minute of processor time and 0.3 GB. The
image stays for the next run, and for `make container BASE_IMAGE=...`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

IMAGE = "localhost/image-embedder-base:bookworm"
RELEASE = "bookworm"  # its Python is 3.11, bentofile.yaml's
PACKAGES = ("ca-certificates", "python-is-python3", "python3", "python3-pip", "python3-venv")
MIRROR = "http://deb.debian.org/debian"
NOT_OF_THE_IMAGE = ("./dev/*", "./proc/*", "./sys/*", "./var/cache/apt/*", "./var/lib/apt/lists/*")


class DebianBaseError(Exception):
    """It can't be made. The message is one line that says why."""


def make_debian_base(engine: str, folder: Path) -> None:
    """Gives `engine` the image `IMAGE`. What it takes on the way there is in `folder`."""
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        raise DebianBaseError(
            "a base image from Debian's archive takes root, and: apt-get install debootstrap"
        )
    root = folder / "debian"
    made = subprocess.run(
        [
            # Mounts of its own, which end with it: /proc is mounted below `root` meanwhile.
            *("unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
            *(RELEASE, str(root), os.environ.get("DEBIAN_MIRROR") or MIRROR),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if made.returncode != 0:
        raise DebianBaseError(
            f"debootstrap ended with {made.returncode}: {made.stdout.strip().splitlines()[-1]}"
        )
    exclude = [f"--exclude={path}" for path in NOT_OF_THE_IMAGE]
    packed = ["tar", "--create", f"--directory={root}", *exclude, "."]
    with subprocess.Popen(packed, stdout=subprocess.PIPE) as tar:
        imported = subprocess.run(
            [engine, "import", "-", IMAGE], stdin=tar.stdout, capture_output=True, text=True
        )
    shutil.rmtree(root)
    if tar.returncode != 0 or imported.returncode != 0:
        raise DebianBaseError(f"{engine} could not import the base image: {imported.stderr.strip()}")
