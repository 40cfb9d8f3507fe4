"""The version is the same everywhere, and `make release-check` refuses what must not be released."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from embedder import __version__
from tests.server import ROOT

MAKEFILE = 'lint test test-container:\n\t@echo $@ >> made\n\t@test $@ != "$(FAILS)"\n'
CHANGELOG = f"# Changelog\n\n## [Unreleased]\n\n## [{__version__}] - 2026-01-31\n\n### Added\n\n- All.\n"


def test_the_bento_and_the_changelog_have_the_version_of_the_package() -> None:
    assert yaml.safe_load((ROOT / "bentofile.yaml").read_text())["labels"]["version"] == __version__
    versions = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == __version__


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One of its own, in which everything is ready."""
    folder = tmp_path / "repository"
    for name in ("scripts/release_check.py", "embedder/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text((ROOT / name).read_text())
    (folder / "Makefile").write_text(MAKEFILE)
    (folder / "CHANGELOG.md").write_text(CHANGELOG)
    (folder / ".gitignore").write_text("/made\n__pycache__/\n")
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "change")


def check(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/release_check.py"]
    environ = {"PATH": "/usr/bin:/bin:/usr/local/bin", **environ}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)


def test_what_is_ready_passes_when_everything_was_made(repository: Path) -> None:
    done = check(repository)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"ready: git tag v{__version__}\n")
    assert (repository / "made").read_text().split() == ["lint", "test", "test-container"]


def test_what_is_not_committed_is_refused(repository: Path) -> None:
    (repository / "new").touch()
    done = check(repository)
    assert done.returncode == 1
    assert "?? new" in done.stderr
    assert not (repository / "made").exists()


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (f"[{__version__}]", "[0.0.9]", "its newest version is 0.0.9"),
        (" - 2026-01-31", "", "the version has no date"),
        ("[Unreleased]\n", "[Unreleased]\n\n- Something.\n", "there are entries under Unreleased"),
        ("## ", "", "it has no version"),
    ],
)
def test_a_changelog_that_says_something_else_is_refused(
    repository: Path, old: str, new: str, why: str
) -> None:
    (repository / "CHANGELOG.md").write_text(CHANGELOG.replace(old, new))
    commit(repository)
    done = check(repository)
    assert done.returncode == 1
    assert why in done.stderr


def test_a_version_is_not_released_twice(repository: Path) -> None:
    git(repository, "tag", f"v{__version__}")
    done = check(repository)
    assert done.returncode == 1
    assert "there is a tag" in done.stderr


@pytest.mark.parametrize("target", ["lint", "test", "test-container"])
def test_a_target_that_fails_stops_it(repository: Path, target: str) -> None:
    done = check(repository, FAILS=target)
    assert done.returncode == 1
    assert f"not ready: make {target}" in done.stderr
    assert (repository / "made").read_text().split()[-1] == target
