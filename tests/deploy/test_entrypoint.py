"""The image's entry point passes signals on and ends as the service does."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from tests.server import ROOT, plain_environ

SERVICE = """
import signal, sys, time
seconds, status = map(float, sys.argv[1:])
def leave(*_):
    time.sleep(seconds)
    sys.exit(int(status))
signal.signal(signal.SIGTERM, leave)
print("it serves", flush=True)
time.sleep(60)
"""


@pytest.fixture
def bento(tmp_path: Path) -> Path:
    """As much of a Bento as BentoML's own entry point, which runs any command that it is given."""
    frontend = resources.files("bentoml._internal.container.frontend.dockerfile")
    (tmp_path / "env" / "docker").mkdir(parents=True)
    with resources.as_file(frontend / "entrypoint.sh") as script:
        shutil.copy(script, tmp_path / "env" / "docker")
    return tmp_path


def enter(bento: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", ROOT / "deploy" / "entrypoint.sh", *command],
        env={**plain_environ(), "BENTO_PATH": str(bento)},
        stdout=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background may have it ignored, which is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("seconds", "status"), [("0", 0), ("0.5", 0), ("0", 3)])
def test_what_is_to_end_may_finish_and_its_status_is_told(
    bento: Path, number: signal.Signals, seconds: str, status: int
) -> None:
    with enter(bento, sys.executable, "-c", SERVICE, seconds, str(status)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "it serves\n"
        process.send_signal(number)
        assert process.wait(20) == status


def test_a_service_that_fails_ends_the_container_with_its_status(bento: Path) -> None:
    with enter(bento, sys.executable, "-c", "raise SystemExit(5)") as process:
        assert process.wait(20) == 5


def test_a_service_that_is_killed_ends_the_container(bento: Path) -> None:
    with enter(bento, sys.executable, "-c", "import os; os.kill(os.getpid(), 9)") as process:
        assert process.wait(20) == 128 + signal.SIGKILL
