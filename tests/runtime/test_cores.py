"""Cores: counted in one process, shared among several, given back by the kernel when one dies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from embedder.runtime.cores import Cores
from tests.server import ROOT

# Another worker: takes as many as its first argument says, says how many it got, and gives them back at a line.
_OTHER = """
import sys
from pathlib import Path
from embedder.runtime.cores import Cores
cores = Cores(int(sys.argv[2]), file=Path(sys.argv[3]))
taken = cores.take(up_to=int(sys.argv[1]))
print(taken, flush=True)
sys.stdin.readline()
cores.give_back(taken)
print("given back", flush=True)
sys.stdin.readline()
"""


@contextmanager
def other(count: int, total: int, file: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _OTHER, str(count), str(total), str(file)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_process_that_is_alone_has_all_cores_and_no_more() -> None:
    cores = Cores(3)
    assert [cores.take(), cores.take(up_to=5), cores.take()] == [1, 2, 0]
    cores.give_back(2)
    assert cores.take(up_to=2) == 2


def test_workers_take_what_the_others_leave(tmp_path: Path) -> None:
    cores = Cores(4, file=tmp_path / "cores")
    with other(3, 4, tmp_path / "cores") as worker:
        assert said(worker) == "3"
        assert cores.take(up_to=4) == 1
        tell(worker)
        assert said(worker) == "given back"
        assert cores.take(up_to=4) == 3


def test_one_core_is_always_a_workers_own(tmp_path: Path) -> None:
    cores = Cores(2, file=tmp_path / "cores")
    with other(2, 2, tmp_path / "cores") as worker:
        assert said(worker) == "2"
        assert [cores.take(up_to=2), cores.take()] == [1, 0]
        cores.give_back()
        assert cores.take() == 1


def test_no_worker_takes_a_second_core_while_another_borrows_its_first(tmp_path: Path) -> None:
    cores = Cores(2, file=tmp_path / "cores")
    assert cores.take(up_to=2) == 2
    with other(1, 2, tmp_path / "cores") as worker:
        assert said(worker) == "1"  # borrowed
        cores.give_back()
        assert cores.take() == 0
        tell(worker)
        assert said(worker) == "given back"
        assert cores.take() == 1


def test_what_a_killed_worker_had_is_free(tmp_path: Path) -> None:
    cores = Cores(2, file=tmp_path / "cores")
    with other(2, 2, tmp_path / "cores") as worker:
        assert said(worker) == "2"
        worker.kill()
        worker.wait()
        assert cores.take(up_to=2) == 2


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null/nowhere"])
def test_a_worker_that_can_not_share_computes_by_itself(folder: str) -> None:
    assert Cores(2, file=Path(folder) / "cores").take(up_to=2) == 2
