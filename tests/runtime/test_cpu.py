"""How many cores this process may use. Its cgroups' quotas are in test_cgroup.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from embedder.runtime.cgroup import Cgroup
from embedder.runtime.cpu import available_cores


def test_affinity_counts_and_not_the_hosts_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 7, 9})
    assert available_cores(Cgroup(tmp_path)) == 3


def test_on_this_machine_there_is_at_least_one_and_no_more_than_it_has() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
