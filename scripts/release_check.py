"""`make release-check`: whether this version may be released. Stops at the first thing that forbids it.

What is committed is what is released, so nothing may be uncommitted. Then the version must be the changelog's
and not have been released, and lint, tests and the container must pass.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from embedder import __version__  # noqa: E402 - found through the line above


class NotReadyError(Exception):
    """What stands against the release. The message is one line, or what a command said."""


def main() -> int:
    checks: list[tuple[str, Callable[[], None]]] = [
        ("everything is committed", committed),
        (f"the changelog ends with {__version__}", in_changelog),
        (f"v{__version__} has not been released", not_released),
        ("make lint", lambda: make("lint")),
        ("make test", lambda: make("test")),
        ("make test-container", lambda: make("test-container")),
    ]
    for name, check in checks:
        started_s = time.monotonic()
        print(f"release-check: {name} ...", flush=True)
        try:
            check()
        except NotReadyError as error:
            print(f"release-check: not ready: {name}: {error}", file=sys.stderr)
            return 1
        print(f"release-check: {name}: yes, {time.monotonic() - started_s:.0f} s", flush=True)
    print(f"release-check: ready: git tag v{__version__}")
    return 0


def committed() -> None:
    changed = git("status", "--porcelain")
    if changed:
        raise NotReadyError(f"not committed:\n{changed}")


def in_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    sections = re.findall(r"^## \[(.+?)\](.*)\n([^#]*)", text, re.MULTILINE)
    for name, date, entries in sections:
        if name == "Unreleased":
            if entries.strip():
                raise NotReadyError("there are entries under Unreleased: put them under the version")
            continue
        if name != __version__:
            raise NotReadyError(f"its newest version is {name}")
        if not re.fullmatch(r" - \d{4}-\d\d-\d\d", date):
            raise NotReadyError(f"the version has no date: {name}{date}")
        return
    raise NotReadyError("it has no version")


def not_released() -> None:
    if git("tag", "--list", f"v{__version__}"):
        raise NotReadyError("there is a tag: set the next version in embedder/__init__.py and bentofile.yaml")


def make(target: str) -> None:
    if subprocess.run(["make", target], cwd=ROOT).returncode != 0:
        raise NotReadyError("see above")


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise NotReadyError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
