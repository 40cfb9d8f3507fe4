"""The limits of this process's own control group and of all around it, in a made-up tree and in real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedder.runtime.cgroup import Cgroup
from embedder.runtime.cpu import available_cores
from embedder.runtime.memory import available_memory_bytes
from tests.server import ROOT

GROUP = "system.slice/embedder.service"


def version_2(folder: Path, group: str, **files: str) -> Cgroup:
    """What a process in `group` sees where version 2 is mounted at `folder`; `files` are in that group."""
    return made(folder, f"0::/{group}\n", folder / group, {"memory.max": "max", **files})


def version_1(folder: Path, group: str, *, above: str = "", **files: str) -> Cgroup:
    """As `version_2`, of version 1, whose files are in the group `above` in place of `group`."""
    membership = f"9:cpu,cpuacct:/{group}\n4:memory:/{group}\n1:name=systemd:/init.scope\n"
    for controller in ("cpu", "memory"):
        of_its = {name: text for name, text in files.items() if name.startswith(controller)}
        made(folder, membership, folder / controller / above, of_its)
    return Cgroup(folder, folder / "membership")


def made(folder: Path, membership: str, group: Path, files: dict[str, str]) -> Cgroup:
    group.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (group / name).write_text(text)
    (folder / "membership").write_text(membership)
    return Cgroup(folder, folder / "membership")


@pytest.fixture(autouse=True)
def _large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the machine has can't be passed in, and a laptop's few cores would hide a wrong rounding.
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))


@pytest.mark.parametrize("group", ["", GROUP])  # a container's own is the root of what it sees
def test_the_limits_of_the_own_group_count_in_version_2(tmp_path: Path, group: str) -> None:
    cgroup = version_2(tmp_path, group, **{"memory.max": "123456789\n", "cpu.max": "300000 100000\n"})
    assert (available_memory_bytes(cgroup), available_cores(cgroup)) == (123_456_789, 3)


# Without a namespace of its own a container of version 1 is told a path of the host's, but sees its group as the root.
@pytest.mark.parametrize(("group", "above"), [("", ""), (GROUP, GROUP), ("docker/0123", "")])
def test_the_limits_of_the_own_group_count_in_version_1(tmp_path: Path, group: str, above: str) -> None:
    cgroup = version_1(
        tmp_path,
        group,
        above=above,
        **{
            "memory.limit_in_bytes": "123456789\n",
            "cpu.cfs_quota_us": "60000\n",
            "cpu.cfs_period_us": "20000\n",
        },
    )
    assert (available_memory_bytes(cgroup), available_cores(cgroup)) == (123_456_789, 3)


def test_the_least_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    version_2(tmp_path, "a/b", **{"memory.max": "300000000", "cpu.max": "max 100000"})
    version_2(tmp_path, "a", **{"memory.max": "200000000", "cpu.max": "500000 100000"})
    cgroup = version_2(tmp_path, "a/b/c", **{"memory.max": "400000000", "cpu.max": "900000 100000"})
    assert (available_memory_bytes(cgroup), available_cores(cgroup)) == (200_000_000, 5)


def test_the_limits_of_other_groups_do_not_count(tmp_path: Path) -> None:
    version_2(tmp_path, "a/other", **{"memory.max": "1000000", "cpu.max": "100000 100000"})
    version_2(tmp_path.parent, "", **{"memory.max": "1000000", "cpu.max": "100000 100000"})  # above the mount
    for group in ("a", "../other"):  # the second one is outside of the namespace
        cgroup = version_2(tmp_path, group if ".." not in group else "", **{"memory.max": "900000000"})
        (tmp_path / "membership").write_text(f"0::/{group}\n")
        assert (available_memory_bytes(cgroup), available_cores(cgroup)) == (900_000_000, 64)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("1000 100000", 1),
        ("100001 100000", 2),
        ("100000 50000", 2),
        ("6300001 100000", 64),
        ("10000000 100000", 64),
    ],
)
def test_a_quota_is_rounded_up_and_never_above_affinity(tmp_path: Path, quota: str, cores: int) -> None:
    assert available_cores(version_2(tmp_path, GROUP, **{"cpu.max": quota})) == cores


@pytest.mark.parametrize(
    "files",
    [
        {"memory.max": "max", "cpu.max": "max 100000"},
        {"memory.max": "9223372036854771712"},
        {"memory.max": "", "cpu.max": ""},
        {"memory.max": "nonsense", "cpu.max": "200000"},
        {"memory.max": "-1", "cpu.max": "1 2 3"},
        {"memory.max": "1.5", "cpu.max": "200000 0"},
    ],
)
def test_no_limit_and_nonsense_leave_what_the_machine_has(tmp_path: Path, files: dict[str, str]) -> None:
    # Defaults are worked out from this: an exception would stop the start over a setting that nobody set.
    cgroup = version_2(tmp_path, GROUP, **files)
    kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
    assert available_memory_bytes(cgroup) == pytest.approx(1024 * kilobytes, rel=0.01)
    assert available_cores(cgroup) == 64


def test_a_quota_of_version_1_that_is_none_or_half_there_is_no_limit(tmp_path: Path) -> None:
    assert available_cores(version_1(tmp_path, "", **{"cpu.cfs_quota_us": "100000"})) == 64
    files = {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}
    assert available_cores(version_1(tmp_path, "", **files)) == 64


def test_without_cgroups_or_with_files_that_can_not_be_read_there_is_no_limit(tmp_path: Path) -> None:
    assert available_cores(Cgroup(tmp_path / "none", tmp_path / "none either")) == 64
    cgroup = version_2(tmp_path, GROUP)
    (tmp_path / GROUP / "cpu.max").mkdir()
    (tmp_path / "cpu.max").write_bytes(b"\xff\xfe\x00")
    assert available_cores(cgroup) == 64


# Real groups, below the one that the tests run in

CONTROLLERS = {
    # Version 2's limit, version 1's, what sees it, and what that must be.
    "memory": ({"memory.max": "500000000"}, {"memory.limit_in_bytes": "500000000"}, 499_998_720),
    "cpu": ({"cpu.max": "50000 100000"}, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}, 1),
}
SEEN = """
from embedder.runtime.cpu import available_cores
from embedder.runtime.memory import available_memory_bytes
print({"memory": available_memory_bytes(), "cpu": available_cores()}[%r])
"""


@pytest.fixture(params=CONTROLLERS)
def limited(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """A controller's name, and a new group without a limit, in a new group that has one."""
    name: str = request.param
    limits_2, limits_1, _ = CONTROLLERS[name]
    outer, limits = (own_group(name), limits_1) if own_group(name).is_dir() else (own_group(""), limits_2)
    outer = outer / f"embedder-test-{os.getpid()}"
    try:
        (outer / "inner").mkdir(parents=True)
        for file, text in limits.items():
            with (outer / file).open("r+") as existing:  # what is not there must not be made
                existing.write(text)
    except OSError as error:
        pytest.skip(f"this machine lets nobody make a {name} cgroup with a limit here: {error}")
    else:
        yield name, outer / "inner"
    finally:
        for group in (outer / "inner", outer):
            if group.is_dir():
                group.rmdir()


def own_group(controller: str) -> Path:
    """Of this process; version 2's for ""."""
    paths = [line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    path = next((path for names, path in paths if controller in names.split(",")), "/none")
    return Path("/sys/fs/cgroup") / controller / path.lstrip("/")


def test_a_process_in_a_real_group_sees_the_limit_around_it(limited: tuple[str, Path]) -> None:
    name, group = limited
    program = f'echo $$ > {group}/cgroup.procs && exec "$0" -c "$1"'
    command = ["sh", "-c", program, sys.executable, SEEN % name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == CONTROLLERS[name][2]
