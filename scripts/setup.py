"""Make `.venv`, with everything in it that serving, saving a model, testing and building need.

Runs on a bare Python: the standard library only. Does nothing, in milliseconds, when nothing has changed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "complete"
OLDEST = (3, 11)


def main() -> None:
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"setup: Python {found} is too old, this needs 3.11 or newer: make PYTHON=python3.11 ...")
    wanted = _fingerprint()
    if _is_complete(wanted):
        return
    started = time.monotonic()
    if VENV.exists() and not _works():
        print("setup: .venv is half-made: making it anew", flush=True)
        shutil.rmtree(VENV)
    if not VENV.exists():
        print(f"setup: making .venv with {sys.executable}", flush=True)
        _run("make .venv", sys.executable, "-m", "venv", str(VENV))
    pip = (str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    print("setup: installing what serves (requirements.lock)", flush=True)
    _run("install requirements.lock", *pip, "-r", "requirements.lock")
    print("setup: installing what exports and tests: torch alone takes minutes and gigabytes", flush=True)
    _run("install the extras", *pip, "--editable", ".[export,dev]")
    STAMP.write_text(wanted)
    print(f"setup: .venv is ready, {time.monotonic() - started:.0f} s", flush=True)


def _fingerprint() -> str:
    """Changes when what should be in `.venv` changes, or when `.venv` was copied elsewhere."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in ("requirements.lock", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def _is_complete(wanted: str) -> bool:
    return STAMP.is_file() and STAMP.read_text() == wanted and PYTHON.exists()


def _works() -> bool:
    try:
        return subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def _run(what: str, *command: str) -> None:
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        sys.exit(f"setup: could not {what}: see above; run it again when that is mended")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; run it again to go on")
