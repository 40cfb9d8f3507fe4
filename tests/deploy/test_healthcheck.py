"""What the image's HEALTHCHECK makes of a server that is well, that is not, and that does not answer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.answers import hang
from tests.origin import Origin
from tests.server import ROOT, Server, free_port, plain_environ


def check(**environ: str) -> subprocess.CompletedProcess[str]:
    # As the image runs it: without the site's packages.
    return subprocess.run(
        [sys.executable, "-S", ROOT / "deploy" / "healthcheck.py"],
        env={**plain_environ(), **environ},
        capture_output=True,
        text=True,
        timeout=20,
    )


def test_a_server_that_is_well_is_healthy(server: Server) -> None:
    done = check(EMBEDDER_PORT=str(server.port))
    assert (done.returncode, done.stdout) == (0, "HTTP/1.1 200 OK\n")


@pytest.mark.parametrize("status", [404, 500, 503])
def test_a_server_that_says_otherwise_is_not(status: int) -> None:
    with Origin() as origin:
        origin.serve("/health", b'{"status": "200 "}', status=status)
        assert check(EMBEDDER_PORT=str(origin.port)).returncode == 1


def test_where_nobody_listens_nobody_is_healthy() -> None:
    port = free_port()
    done = check(EMBEDDER_PORT=str(port))
    assert done.returncode == 1
    assert done.stdout.startswith(f"port {port}: ")


def test_a_server_that_never_answers_is_not_healthy() -> None:
    with Origin() as origin:
        origin.raw("/health", hang)
        assert check(EMBEDDER_PORT=str(origin.port)).returncode == 1


def test_the_port_is_the_one_that_the_server_listens_on(server: Server) -> None:
    other, own = str(free_port()), str(server.port)
    assert check(PORT=own, BENTOML_PORT=other, EMBEDDER_PORT=other).returncode == 0
    assert check(BENTOML_PORT=own, EMBEDDER_PORT=other).returncode == 0
    assert check(EMBEDDER_PORT=f" {own} ", PORT="", BENTOML_PORT="").returncode == 0
