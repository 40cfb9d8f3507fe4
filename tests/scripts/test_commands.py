"""What a newcomer types: the set-up, `make serve`, and what they say when the machine is not right."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.server import ROOT, free_port, is_ready, plain_environ

# `make` works with the repository's own .venv: there, when the tests run as `make test` runs them.
in_own_venv = pytest.mark.skipif(
    Path(sys.prefix).resolve() != (ROOT / ".venv").resolve(), reason="not run by `make test`"
)


def test_an_old_python_is_refused_in_one_line() -> None:
    as_if = (
        "import runpy, sys; sys.version_info = (3, 10, 18); "
        f"runpy.run_path({str(ROOT / 'scripts' / 'setup.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", as_if], capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr
        == "setup: Python 3.10.18 is too old, this needs 3.11 or newer: make PYTHON=python3.11 ...\n"
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of the repository as the set-up reads, with no way to a package index."""
    for name in ("requirements.lock", "pyproject.toml", "scripts/setup.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def set_up(checkout: Path) -> subprocess.CompletedProcess[str]:
    environ = {**plain_environ(), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    command: list[str | Path] = [sys.executable, checkout / "scripts" / "setup.py"]
    return subprocess.run(command, env=environ, capture_output=True, text=True)


def test_a_half_made_venv_is_made_anew_and_a_failed_set_up_is_not_taken_for_done(checkout: Path) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").write_text("broken")
    first = set_up(checkout)
    assert "setup: .venv is half-made: making it anew\n" in first.stdout
    assert (first.returncode, first.stderr.splitlines()[-1]) == (
        1,
        "setup: could not install requirements.lock: see above; run it again when that is mended",
    )
    second = set_up(checkout)
    assert "half-made" not in second.stdout  # what the first one made works, and is used
    assert "setup: installing what serves" in second.stdout
    assert second.returncode == 1


@in_own_venv
def test_setting_up_again_does_nothing() -> None:
    done = subprocess.run(["make", "setup"], cwd=ROOT, env=plain_environ(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("port", ["taken", "0", "65536"])
def test_a_port_that_cannot_be_used_is_said_in_one_line(taken_port: int, port: str) -> None:
    port = str(taken_port) if port == "taken" else port
    done = subprocess.run(
        [sys.executable, "scripts/serve.py", "--port", port], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"serve: port {port} ")
    assert len(done.stderr.splitlines()) == 1


def test_without_an_engine_for_containers_the_image_is_refused_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "containerize.py"],
        env={**plain_environ(), "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("container: none of docker, podman, buildah works here: ")
    assert len(done.stderr.splitlines()) == 1


@in_own_venv
def test_make_serve_serves_and_serves_again(tmp_path: Path, photo_request: str) -> None:
    environ = {**plain_environ(), "BENTOML_HOME": str(tmp_path)}
    for round_ in ("first", "second"):
        port = free_port()
        command = ["make", "serve", f"PORT={port}", "WEIGHTS=untrained"]
        with (tmp_path / f"{round_}.log").open("wb") as log:
            started = time.monotonic()
            process = subprocess.Popen(
                command, cwd=ROOT, env=environ, stdout=log, stderr=log, start_new_session=True
            )
        try:
            while not is_ready(port):
                assert process.poll() is None, (tmp_path / f"{round_}.log").read_text()
                assert time.monotonic() - started < 120
                time.sleep(0.05)
            answer = requests.post(
                f"http://127.0.0.1:{port}/embed",
                data=photo_request,
                headers={"Content-Type": "application/json"},
                timeout=60,
            )
            assert len(answer.json()["embedding"]) == 512
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


@pytest.fixture
def photo_request() -> str:
    """The body that the README's first curl sends, made as it says."""
    command = """echo '{"url": "data:image/jpeg;base64,'$(base64 < samples/chelsea.jpg | tr -d '\\n')'"}'"""
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
