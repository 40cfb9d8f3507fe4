"""Virtual environments for what can't be installed beside the rest, made the first time that they are asked for."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


def commands(requirement: str, folder: Path, *, with_ours: bool = False) -> Path:
    """The commands of a virtual environment in `folder` that has `requirement`.

    `with_ours`: what it lacks is imported from the environment that runs this. torch is 6 GB.
    Raises RuntimeError where it can't be installed.
    """
    home = folder / requirement
    stamp = home / "complete"
    if not stamp.exists():
        print(f"bench: installing {requirement} into {home}", file=sys.stderr, flush=True)
        venv.create(home, clear=True, with_pip=True)
        pip = (str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        done = subprocess.run([*pip, requirement], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{requirement} can't be installed: {done.stderr.strip()}")
        if with_ours:
            # A .pth file appends to the path, so what pip has just installed comes first.
            (site_packages,) = home.glob("lib/python*/site-packages")
            (site_packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
        stamp.touch()
    return home / "bin"
