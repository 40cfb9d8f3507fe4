"""`make audit` tells three answers of its source apart; `make release-check` refuses what is not ready."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from embedder import __version__
from tests.server import ROOT, free_port

MAKEFILE = 'lint test test-container:\n\t@echo $@ >> made\n\t@test $@ != "$(FAILS)"\n'
CHANGELOG = f"# Changelog\n\n## [Unreleased]\n\n## [{__version__}] - 2026-01-31\n\n### Added\n\n- All.\n"
LOCK = "".join(f"{package} --hash=sha256:{'0' * 64}\n" for package in ("pillow==12.2.0", "numpy==2.4.6"))
FINDING = {
    "id": "PYSEC-2026-1",
    "details": "JPEG writes past its buffer",
    "affected": [
        {
            "package": {"name": "pillow", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "13.0.0"}]}],
        }
    ],
}

Answer = Callable[[str], tuple[int, object]]
"""The name of a package → the status and body that OSV answers with."""


def test_the_bento_and_the_changelog_have_the_version_of_the_package() -> None:
    assert yaml.safe_load((ROOT / "bentofile.yaml").read_text())["labels"]["version"] == __version__
    versions = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == __version__


@contextmanager
def osv(answer: Answer) -> Iterator[str]:
    """A server with OSV's API, and its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = answer(query["package"]["name"])
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


@pytest.fixture
def safe() -> Iterator[str]:
    with osv(lambda package: (200, {})) as url:
        yield url


@pytest.fixture
def unsafe() -> Iterator[str]:
    with osv(lambda package: (200, {"vulns": [FINDING]} if package == "pillow" else {})) as url:
        yield url


@pytest.fixture
def broken() -> Iterator[str]:
    with osv(lambda package: (500 if package == "numpy" else 200, {})) as url:
        yield url


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository in which everything is ready."""
    folder = tmp_path / "repository"
    for name in ("scripts/release_check.py", "scripts/audit.py", "embedder/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text((ROOT / name).read_text())
    (folder / "Makefile").write_text(MAKEFILE)
    (folder / "CHANGELOG.md").write_text(CHANGELOG)
    (folder / "requirements.lock").write_text(LOCK)
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


def check(folder: Path, osv_url: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/release_check.py"]
    environ = {
        "PATH": "/usr/bin:/bin:/usr/local/bin",
        "HOME": str(folder.parent),
        "OSV_URL": osv_url or f"http://127.0.0.1:{free_port()}/v1/query",
        **environ,
    }
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)


def test_what_is_ready_passes_when_everything_was_made(repository: Path, safe: str) -> None:
    done = check(repository, safe)
    assert done.returncode == 0, done.stderr
    assert "audit: 2 packages, none with a known vulnerability\n" in done.stdout
    assert done.stdout.endswith(f"release-check: ready: git tag v{__version__}\n")
    assert (repository / "made").read_text().split() == ["lint", "test", "test-container"]


def test_a_vulnerable_package_is_named_with_the_version_that_mends_it(repository: Path, unsafe: str) -> None:
    done = check(repository, unsafe)
    assert done.returncode == 1
    assert "audit: pillow 12.2.0: PYSEC-2026-1, mended in 13.0.0\n" in done.stderr
    assert "not ready: no locked package has a known vulnerability" in done.stderr
    assert not (repository / "made").exists()


@pytest.mark.parametrize("source", ["", "broken"])
def test_a_lock_that_could_not_be_audited_is_not_called_audited(
    repository: Path, source: str, request: pytest.FixtureRequest
) -> None:
    done = check(repository, request.getfixturevalue(source) if source else "")
    assert done.returncode == 0
    assert done.stderr.startswith("audit: not audited: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout.endswith(f"release-check: ready and not audited: git tag v{__version__}\n")


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


def test_a_target_that_fails_stops_it(repository: Path) -> None:
    done = check(repository, FAILS="test")
    assert done.returncode == 1
    assert "not ready: make test" in done.stderr
    assert (repository / "made").read_text().split() == ["lint", "test"]
