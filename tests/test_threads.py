"""Threads that run before there is work for them, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from embedder.threads import NICENESS, started_threads
from tests.server import ROOT


def test_all_run_before_there_is_work() -> None:
    pool = started_threads(5, "early")
    assert sum(thread.name.startswith("early") for thread in threading.enumerate()) == 5
    assert list(pool.map(len, ["a", "bc"])) == [1, 2]
    pool.shutdown()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes have a niceness, not threads")
def test_they_give_way_to_the_thread_that_started_them() -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    pool = started_threads(2, "nice")
    theirs = pool.submit(os.getpriority, os.PRIO_PROCESS, 0).result()
    pool.shutdown()
    assert (theirs, os.getpriority(os.PRIO_PROCESS, 0)) == (ours + NICENESS, ours)


def test_where_they_can_not_be_started_that_is_said_and_nobody_waits() -> None:
    program = """
import resource
import threading
from embedder.memory import mappable_bytes
from embedder.threads import started_threads

resource.setrlimit(resource.RLIMIT_AS, (10**10, 10**10))
resource.setrlimit(resource.RLIMIT_AS, (10**10 - mappable_bytes() + 40_000_000, 10**10))
try:
    started_threads(64, "late")  # with a stack of 8 MB each
except RuntimeError as error:
    print(error, threading.active_count())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "can't start new thread 1\n"
