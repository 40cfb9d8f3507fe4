"""`make release-check`: says whether this version may be released, and stops at the first reason against it.

Everything must be committed, because what is committed is what is released. The version must be the newest in
the changelog and must have no tag. The audit of the lock, lint, tests and the container must pass. Where the
audit's source of advisories can't be reached, the last line says that the lock was not audited.
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
from scripts.audit import NOT_AUDITED  # noqa: E402 - likewise


class NotReadyError(Exception):
    """Something forbids the release. The message is one line, or a command's output."""


def main() -> int:
    checks: list[tuple[str, Callable[[], str]]] = [
        ("everything is committed", committed),
        (f"the changelog ends with {__version__}", in_changelog),
        (f"v{__version__} has not been released", not_released),
        ("no locked package has a known vulnerability", audited),
        ("make lint", lambda: make("lint")),
        ("make test", lambda: make("test")),
        ("make test-container", lambda: make("test-container")),
    ]
    unknown = []
    for name, check in checks:
        started_s = time.monotonic()
        print(f"release-check: {name} ...", flush=True)
        try:
            answer = check()
        except NotReadyError as error:
            print(f"release-check: not ready: {name}: {error}", file=sys.stderr)
            return 1
        print(f"release-check: {name}: {answer}, {time.monotonic() - started_s:.0f} s", flush=True)
        if answer != "yes":
            unknown.append(answer)
    print(f"release-check: {' and '.join(['ready', *unknown])}: git tag v{__version__}")
    return 0


def committed() -> str:
    changed = git("status", "--porcelain")
    if changed:
        raise NotReadyError(f"not committed:\n{changed}")
    return "yes"


def in_changelog() -> str:
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
        return "yes"
    raise NotReadyError("it has no version")


def not_released() -> str:
    if git("tag", "--list", f"v{__version__}"):
        raise NotReadyError("there is a tag: set the next version in embedder/__init__.py and bentofile.yaml")
    return "yes"


def audited() -> str:
    status = subprocess.run([sys.executable, "scripts/audit.py"], cwd=ROOT).returncode
    if status not in (0, NOT_AUDITED):
        raise NotReadyError("see above")
    return "not audited" if status == NOT_AUDITED else "yes"


def make(target: str) -> str:
    if subprocess.run(["make", target], cwd=ROOT).returncode != 0:
        raise NotReadyError("see above")
    return "yes"


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise NotReadyError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
