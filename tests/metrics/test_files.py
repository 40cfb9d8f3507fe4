"""Metrics where the disk has no room for them: nothing ends, and nothing is lost that can be kept."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from embedder.metrics.files import ReservedFile
from tests.server import ROOT


def stored(file: Path) -> dict[str, float]:
    """What is in `file`, as the worker that is asked for metrics reads it."""
    values = MmapedDict.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call]
    return {key: value for key, value, _, _ in values}


@contextmanager
def no_larger_than(size: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes: EFBIG, where a full disk says ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_written_is_read_by_others(tmp_path: Path) -> None:
    file = ReservedFile(str(tmp_path / "counter_1.db"))
    assert file.read_value("one") == (0.0, 0.0)
    file.write_value("one", 1.0, 0.0)
    file.write_value("two", 2.0, 5.0)
    assert file.read_value("two") == (2.0, 5.0)
    assert stored(tmp_path / "counter_1.db") == {"one": 1.0, "two": 2.0}
    file.close()


def test_its_files_have_all_their_room_on_the_disk_however_they_grow(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    file = ReservedFile(str(path))
    for number in range(2000):  # 100 bytes each: beyond 64 KiB, and beyond twice that
        file.write_value(f"{number:072d}", number, 0.0)
        size = path.stat().st_size
        assert path.stat().st_blocks * 512 >= size
    assert size >= 200_000
    assert len(stored(path)) == 2000
    file.close()


def test_without_room_for_a_file_values_are_written_when_there_is_some(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    with no_larger_than(4096):
        file = ReservedFile(str(path))
        assert file.read_value("one") == (0.0, 0.0)
        file.write_value("one", 1.0, 0.0)
        assert not path.exists()  # an empty one would fail whoever reads all of them
    file.write_value("one", 2.0, 0.0)
    assert stored(path) == {"one": 2.0}
    file.close()


def test_without_room_to_grow_what_is_there_goes_on_being_counted(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    file = ReservedFile(str(path))
    file.write_value("early", 1.0, 0.0)
    size = path.stat().st_size
    with no_larger_than(size):
        for number in range(1000):
            file.write_value(f"{number:072d}", number, 0.0)
        file.write_value("early", 2.0, 0.0)
    assert path.stat().st_size == size
    kept = stored(path)
    assert kept["early"] == 2.0
    assert 400 < len(kept) < 1000
    file.write_value(f"{999:072d}", 999.0, 0.0)
    assert stored(path)[f"{999:072d}"] == 999.0
    file.close()


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_a_folder_that_is_not_there_stops_nobody(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    file = ReservedFile(str(tmp_path / folder / "counter_1.db"))
    file.write_value("one", 1.0, 0.0)
    assert file.read_value("one") == (0.0, 0.0)
    file.close()


def test_a_file_from_before_is_read_on(tmp_path: Path) -> None:
    path = str(tmp_path / "counter_1.db")
    for value in (1.0, 2.0):
        file = ReservedFile(path)
        assert file.read_value("one")[0] == value - 1
        file.write_value("one", value, 0.0)
        file.close()


def test_the_services_metrics_are_kept_in_such_files(tmp_path: Path) -> None:
    program = (
        "from embedder import metrics; from prometheus_client import Counter, values\n"
        "metrics.cache_hits.inc(3)\n"
        "print(*{type(c._value._file).__name__ for c in (metrics.cache_hits, Counter('x', 'x'))})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "ReservedFile\n"
    for file in tmp_path.iterdir():
        assert file.stat().st_blocks * 512 >= file.stat().st_size
    (counters,) = tmp_path.glob("counter_*.db")
    assert 3.0 in stored(counters).values()
