"""Makes `.venv` and installs into it what the levels take that are named: `setup.py serve export dev`.

`serve` is requirements.lock, which serves a model that is saved already. Each other level is an extra of
pyproject.toml: `export` makes models, with torch; `dev` tests and lints; `bench`, `soak` and `fuzz` are for
their targets. A level adds to what is there and removes nothing: what serves keeps the versions of the lock. A
complete level takes milliseconds.

`export` takes torch's CPU build where there is one (`torch_build.py`). This runs on the standard library.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMPS = VENV / "levels"
OLDEST = (3, 11)
LOCK = "requirements.lock"
PIP = (str(PYTHON), "-m", "pip", "--disable-pip-version-check")


def main(levels: list[str]) -> None:
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"setup: Python {found} is too old, this needs 3.11 or newer: make PYTHON=python3.11 ...")
    requirements = _requirements(levels)
    stamps = _stamps(requirements)
    missing = {level: stamp for level, stamp in stamps.items() if not _is_complete(level, stamp)}
    if not missing:
        return
    started_s = time.monotonic()
    if VENV.exists() and not _works():
        print("setup: .venv is half-made, or was made elsewhere: making it anew", flush=True)
        shutil.rmtree(VENV)
        missing = stamps
    if not VENV.exists():
        print(f"setup: making .venv with {sys.executable}", flush=True)
        _run("make .venv", sys.executable, "-m", "venv", str(VENV))
    for level, stamp in missing.items():
        _install(level, requirements[level])
        STAMPS.mkdir(exist_ok=True)
        (STAMPS / level).write_text(stamp)
    print(f"setup: .venv is ready for {', '.join(levels)}, {time.monotonic() - started_s:.0f} s", flush=True)


def _requirements(levels: list[str]) -> dict[str, list[str]]:
    """What pip is told to install, by level. `serve` comes first, because each other level needs it."""
    import tomllib  # there is none before OLDEST, which has its own message

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        name: project["dependencies"] + extra for name, extra in project["optional-dependencies"].items()
    }
    known = {"serve": ["--requirement", LOCK], **extras}
    if unknown := set(levels) - known.keys():
        sys.exit(f"setup: no such level: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return {level: known[level] for level in dict.fromkeys(("serve", *levels))}


def _stamps(requirements: dict[str, list[str]]) -> dict[str, str]:
    """One for each level, which changes when its requirements do, or when `.venv` was copied elsewhere."""
    stamps = {}
    for level, wanted in requirements.items():
        digest = hashlib.sha256("\n".join((str(ROOT), *wanted)).encode())
        if level == "serve":
            digest.update((ROOT / LOCK).read_bytes())
        stamps[level] = digest.hexdigest()
    return stamps


def _is_complete(level: str, stamp: str) -> bool:
    file = STAMPS / level
    return PYTHON.exists() and file.is_file() and file.read_text() == stamp


def _works() -> bool:
    """The interpreter starts, and the commands in `.venv` are for it: they hold its path."""
    try:
        if str(VENV) not in (VENV / "bin" / "pip").read_text():
            return False
        return subprocess.run([*PIP, "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def _install(level: str, wanted: list[str]) -> None:
    if level == "serve":
        print(f"setup: installing what serves, {LOCK}: 0.3 GB on disk", flush=True)
    elif not any(requirement.startswith("torch==") for requirement in wanted) or _has_torch():
        print(f"setup: installing the level {level}", flush=True)
    else:
        _install_torch(wanted)
    if level != "serve":
        constraints = VENV / "constraints.txt"
        constraints.write_text("\n".join(pins((ROOT / LOCK).read_text())))
        wanted = ["--constraint", str(constraints), *wanted]
    _run(f"install the level {level}", *PIP, "install", "--quiet", *wanted)


def pins(lock: str) -> list[str]:
    """The versions in `lock` without their hashes, which pip would then ask of all other packages too."""
    return re.findall(r"^(\S+==[^\\\n]*[^\\\s])", lock, flags=re.MULTILINE)


def _has_torch() -> bool:
    return any(VENV.glob("lib/python*/site-packages/torch-*.dist-info"))


def _install_torch(wanted: list[str]) -> None:
    """Says which torch comes, and its size. Installs the CPU build; pip installs another with the rest."""
    sys.path.insert(0, str(ROOT))
    from scripts.torch_build import NoTorchBuildError, cpu_build  # loads TLS, so only when it is needed

    try:
        build = cpu_build(wanted, [*PIP, "config", "list"])
    except NoTorchBuildError as reason:
        size = "a download of 3 GB, 6 GB on disk" if platform.machine() == "x86_64" else "size unknown"
        print(f"setup: installing torch from the package index, {size} ({reason})", flush=True)
        return
    size = f"a download of {build.bytes / 1e6:.0f} MB"
    print(f"setup: installing {' '.join(build.pins)} from {build.index_url}, {size}", flush=True)
    # Without their dependencies: those come from the package index, with the rest.
    options = ("--quiet", "--no-deps", "--index-url", build.index_url)
    _run("install torch", *PIP, "install", *options, *build.pins)


def _run(what: str, *command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return  # what pip warned of came to nothing
    if re.search("NewConnectionError|NameResolutionError|ProxyError|ConnectTimeoutError", done.stderr):
        sys.exit(f"setup: could not {what}: the package index does not answer; run it again when it does")
    sys.stderr.write(done.stderr)
    sys.exit(f"setup: could not {what}: see above; run it again when that is mended")


if __name__ == "__main__":
    try:
        main(sys.argv[1:] or ["export", "dev"])
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; run it again to go on")
