"""Threads that run before there is work for them, or not at all."""

from __future__ import annotations

import subprocess
import sys
import threading

from embedder.threads import started_threads
from tests.server import ROOT


def test_all_run_before_there_is_work() -> None:
    pool = started_threads(5, "early")
    assert sum(thread.name.startswith("early") for thread in threading.enumerate()) == 5
    assert list(pool.map(len, ["a", "bc"])) == [1, 2]
    pool.shutdown()


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
