"""Makes `.venv` and installs into it what the levels take that are named: `setup.py serve export dev`.

`serve` is requirements.lock, which serves a model that is saved already. Each other level is an extra of
pyproject.toml: `export` makes models, with torch; `dev` tests and lints; `bench`, `soak` and `fuzz` are for
their targets. A level adds to what is there and removes nothing. A complete level takes milliseconds.

On x86-64 `export` takes torch's CPU build from PyTorch's own index when that answers: its download is a tenth
of the CUDA build's in the package index. It does not ask there when pip is configured with an index, or with
none. TORCH_INDEX_URL names another index with CPU builds.

It runs on a bare Python: the standard library only.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMPS = VENV / "levels"
OLDEST = (3, 11)
LOCK = "requirements.lock"
TORCH_INDEX_URL = "https://download.pytorch.org/whl/cpu"
TORCH_TIMEOUT_S = 5.0
PIP = (str(PYTHON), "-m", "pip", "--disable-pip-version-check")


@dataclass(frozen=True)
class TorchBuild:
    """CPU builds that an index has for this Python."""

    index_url: str
    pins: tuple[str, ...]
    """Like torch==2.14.1+cpu."""
    bytes: int


class NoTorchBuildError(Exception):
    """There is no CPU build to be had. The message is one line that says why."""


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
        print(f"setup: installing what serves, {LOCK}: a download of 0.1 GB", flush=True)
    elif not any(requirement.startswith("torch==") for requirement in wanted) or _has_torch():
        print(f"setup: installing the level {level}", flush=True)
    else:
        _install_torch(wanted)
    _run(f"install the level {level}", *PIP, "install", "--quiet", *wanted)


def _has_torch() -> bool:
    return any(VENV.glob("lib/python*/site-packages/torch-*.dist-info"))


def _install_torch(wanted: list[str]) -> None:
    """Says which torch comes, and its size. Installs the CPU build; pip installs another with the rest."""
    try:
        build = _cpu_build(wanted)
    except NoTorchBuildError as reason:
        size = "a download of 3 GB, 6 GB on disk" if platform.machine() == "x86_64" else "size unknown"
        print(f"setup: installing torch from the package index, {size} ({reason})", flush=True)
        return
    size = f"a download of {build.bytes / 1e6:.0f} MB"
    print(f"setup: installing {' '.join(build.pins)} from {build.index_url}, {size}", flush=True)
    # Without their dependencies: those come from the package index, with the rest.
    options = ("--quiet", "--no-deps", "--index-url", build.index_url)
    _run("install torch", *PIP, "install", *options, *build.pins)


def _cpu_build(wanted: list[str]) -> TorchBuild:
    index_url = os.environ.get("TORCH_INDEX_URL")
    if platform.machine() != "x86_64":
        raise NoTorchBuildError(f"its build for {platform.machine()} needs no other index")
    if not index_url and (own := _own_index()):
        raise NoTorchBuildError(f"pip is configured with {own}; TORCH_INDEX_URL may name one with CPU builds")
    index_url = (index_url or TORCH_INDEX_URL).rstrip("/")
    pins, size = [], 0
    for requirement in wanted:
        if found := re.match(r"(torch|torchvision)==([0-9.]+)", requirement):
            package, version = found[1], f"{found[2]}+cpu"
            size += _wheel_bytes(f"{index_url}/{package}/", package, version)
            pins.append(f"{package}=={version}")
    return TorchBuild(index_url, tuple(pins), size)


def _own_index() -> str | None:
    """The setting of pip that says that packages come from one index, or from none."""
    configured = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True).stdout
    found = re.search(r"^\S+\.(index-url|no-index)=", configured, re.MULTILINE)
    return found[1] if found else None


def _wheel_bytes(page_url: str, package: str, version: str) -> int:
    """The size of the wheel for this Python that the page of an index links to."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    name = re.escape(f"{package}-{version}-{tag}-{tag}-").replace(r"\+", r"(?:\+|%2B)")
    try:
        with urllib.request.urlopen(page_url, timeout=TORCH_TIMEOUT_S) as page:  # noqa: S310 - a constant, or a setting
            link = re.search(rf'href="([^"#]*{name}[^"#/]*x86_64\.whl)', page.read().decode())
        if link is None:
            raise NoTorchBuildError(f"{page_url} has no {package} {version} for Python {tag}")
        head = urllib.request.Request(urljoin(page_url, link[1]), method="HEAD")  # noqa: S310
        with urllib.request.urlopen(head, timeout=TORCH_TIMEOUT_S) as answer:  # noqa: S310
            return int(answer.headers["Content-Length"] or 0)
    except urllib.error.HTTPError as error:
        raise NoTorchBuildError(f"{error.url} answers {error.code}") from error
    except OSError as error:  # URLError, TimeoutError and a reset connection among them
        raise NoTorchBuildError(f"{page_url} does not answer: {getattr(error, 'reason', error)}") from error


def _run(what: str, *command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        sys.stderr.write(done.stderr)
    elif re.search("NewConnectionError|NameResolutionError|ProxyError|ConnectTimeoutError", done.stderr):
        sys.exit(f"setup: could not {what}: the package index does not answer; run it again when it does")
    else:
        sys.stderr.write(done.stderr)
        sys.exit(f"setup: could not {what}: see above; run it again when that is mended")


if __name__ == "__main__":
    try:
        main(sys.argv[1:] or ["export", "dev"])
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; run it again to go on")
