"""How many cores may be used: affinity and the container's quota, whichever is less."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedder.runtime.cpu import LOOK_EVERY_S, Cores, available_cores
from tests.server import ROOT, until

HOST_CORES = 64


@pytest.fixture(autouse=True)
def host_with_64_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the machine has can't be passed in, and a laptop's few cores would hide a wrong rounding.
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(HOST_CORES)), raising=False)


def version_2(cgroup: Path, text: str) -> Path:
    (cgroup / "cpu.max").write_text(text)
    return cgroup


def version_1(cgroup: Path, quota: str, period: str) -> Path:
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (cgroup / "cpu" / "cpu.cfs_period_us").write_text(period)
    return cgroup


QUOTAS = [
    (1_000, 1),
    (50_000, 1),
    (100_000, 1),
    (100_001, 2),
    (150_000, 2),
    (200_000, 2),
    (250_000, 3),
    (6_400_000, 64),
    (6_400_001, 64),
    (100_000_000, 64),
]


@pytest.mark.parametrize(("quota", "cores"), QUOTAS)
def test_a_quota_of_version_2_is_rounded_up_and_never_above_affinity(
    tmp_path: Path, quota: int, cores: int
) -> None:
    assert available_cores(version_2(tmp_path, f"{quota} 100000\n")) == cores


@pytest.mark.parametrize(("quota", "cores"), QUOTAS)
def test_a_quota_of_version_1_is_rounded_up_and_never_above_affinity(
    tmp_path: Path, quota: int, cores: int
) -> None:
    assert available_cores(version_1(tmp_path, f"{quota}\n", "100000\n")) == cores


def test_the_period_counts_in_version_2(tmp_path: Path) -> None:
    assert available_cores(version_2(tmp_path, "100000 50000\n")) == 2


def test_the_period_counts_in_version_1(tmp_path: Path) -> None:
    assert available_cores(version_1(tmp_path, "20000\n", "5000\n")) == 4


def test_max_is_no_limit(tmp_path: Path) -> None:
    assert available_cores(version_2(tmp_path, "max 100000\n")) == HOST_CORES


def test_minus_one_is_no_limit_in_version_1(tmp_path: Path) -> None:
    assert available_cores(version_1(tmp_path, "-1\n", "100000\n")) == HOST_CORES


def test_without_a_cgroup_there_is_no_limit(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == HOST_CORES
    assert available_cores(tmp_path / "missing") == HOST_CORES


def test_version_2_goes_before_version_1(tmp_path: Path) -> None:
    version_1(tmp_path, "800000\n", "100000\n")
    assert available_cores(version_2(tmp_path, "300000 100000\n")) == 3


def test_a_half_of_version_1_is_no_limit(tmp_path: Path) -> None:
    version_1(tmp_path, "200000\n", "100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").unlink()
    assert available_cores(tmp_path) == HOST_CORES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "200000",
        "max",
        "1 2 3",
        "much more",
        "200000 x",
        "1.5 1",
        "200000 0",
        "0x10 0x1",
        "\x80 \x80",
    ],
)
def test_a_file_of_version_2_that_makes_no_sense_is_no_limit(tmp_path: Path, text: str) -> None:
    # Settings asks while it is imported: an exception here would stop the service over a default.
    assert available_cores(version_2(tmp_path, text)) == HOST_CORES


@pytest.mark.parametrize(("quota", "period"), [("", ""), ("x", "100000"), ("200000", ""), ("200000", "0")])
def test_a_file_of_version_1_that_makes_no_sense_is_no_limit(tmp_path: Path, quota: str, period: str) -> None:
    assert available_cores(version_1(tmp_path, quota, period)) == HOST_CORES


def test_a_file_that_is_not_text_is_no_limit(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_bytes(b"\xff\xfe\x00")
    assert available_cores(tmp_path) == HOST_CORES


def test_a_file_that_can_not_be_read_is_no_limit(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").mkdir()
    assert available_cores(tmp_path) == HOST_CORES


@given(st.integers(0, 10**12), st.integers(1, 10**6))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_quota_leaves_at_least_one_core_and_at_most_all(tmp_path: Path, quota: int, period: int) -> None:
    cores = available_cores(version_2(tmp_path, f"{quota} {period}\n"))
    assert cores == min(HOST_CORES, max(1, -(-quota // period)))


def test_affinity_counts_and_not_the_hosts_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 7, 9}, raising=False)
    assert available_cores(tmp_path) == 3
    assert available_cores(version_2(tmp_path, "800000 100000\n")) == 3


def test_where_there_is_no_affinity_the_hosts_cores_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert available_cores(tmp_path) == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1


def test_on_this_machine_there_is_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


# Sharing


def test_a_worker_that_is_alone_has_all_cores() -> None:
    cores = Cores(3)
    assert cores.free() == 3
    cores.take()
    assert cores.free() == 2
    cores.take()
    cores.take()
    assert cores.free() == 0
    cores.give_back()
    assert cores.free() == 1


def test_one_core_is_always_a_workers_own(tmp_path: Path) -> None:
    one, other = (Cores.shared(2, folder=tmp_path, worker=worker) for worker in (1, 2))
    one.take()
    one.take()
    assert one.free() == 0
    assert other.free() == 1
    other.take()
    assert other.free() == 0


def test_workers_see_what_the_others_use(tmp_path: Path) -> None:
    one, other = (Cores.shared(4, folder=tmp_path / "new", worker=worker) for worker in (1, 2))
    one.take()
    one.take()
    assert other.free() == 2
    one.give_back()
    assert other.free() == 3


WORKER = """
import sys, time
from pathlib import Path
from unittest.mock import patch
from embedder.runtime.cpu import Cores
with patch("os.getppid", lambda: int(sys.argv[2])):
    cores = Cores.shared(2, folder=Path(sys.argv[1]), worker=1)
cores.take(2)
print("taken", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_worker(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The first one, in a process of its own, with two cores in use."""
    command = [sys.executable, "-c", WORKER, str(tmp_path), str(os.getppid())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def test_what_a_killed_worker_had_is_free_soon_though_nobody_replaces_it(
    tmp_path: Path, other_worker: subprocess.Popen[str]
) -> None:
    cores = Cores.shared(2, folder=tmp_path, worker=2)
    assert cores.free() == 1  # its own
    cores.take()
    assert cores.free() == 0
    other_worker.kill()  # and nobody waits for it: it stays as a zombie
    until(lambda: cores.free() == 1, 10)


def test_the_successor_of_a_worker_that_was_killed_starts_with_none(
    tmp_path: Path, other_worker: subprocess.Popen[str]
) -> None:
    second = Cores.shared(4, folder=tmp_path, worker=512)
    assert second.free() == 2
    other_worker.kill()
    other_worker.wait()
    Cores.shared(4, folder=tmp_path, worker=1)
    assert second.free() == 4


def test_a_worker_that_lives_keeps_what_it_has(tmp_path: Path, other_worker: subprocess.Popen[str]) -> None:
    cores = Cores.shared(2, folder=tmp_path, worker=2)
    cores.take()
    end_s = time.monotonic() + 2.5 * LOOK_EVERY_S
    while time.monotonic() < end_s:
        assert cores.free() == 0
        time.sleep(0.05)


def test_a_worker_of_384_cores_takes_as_many_as_can_be_counted() -> None:
    cores = Cores(384)
    assert cores.free() == 255
    cores.take(254)
    assert cores.free() == 1
    cores.take()
    assert cores.free() == 0


def test_a_process_that_is_no_worker_shares_nothing(tmp_path: Path) -> None:
    Cores.shared(2, folder=tmp_path, worker=None).take()
    assert Cores.shared(2, folder=tmp_path, worker=None).free() == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_worker_that_can_not_share_serves_by_itself(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    cores = Cores.shared(2, folder=tmp_path / folder, worker=1)
    cores.take()
    assert cores.free() == 1
