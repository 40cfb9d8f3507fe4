"""Threads that run before there is work for them, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from embedder.runtime.threads import NICENESS, started_threads
from tests.server import ROOT, Server, until


def test_all_run_before_there_is_work() -> None:
    pool = started_threads(5, "early")
    assert sum(thread.name.startswith("early") for thread in threading.enumerate()) == 5
    assert list(pool.map(len, ["a", "bc"])) == [1, 2]
    pool.shutdown()


def test_they_give_way_to_the_thread_that_started_them() -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    pool = started_threads(2, "nice")
    theirs = pool.submit(os.getpriority, os.PRIO_PROCESS, 0).result()
    pool.shutdown()
    assert (theirs, os.getpriority(os.PRIO_PROCESS, 0)) == (ours + NICENESS, ours)


def test_all_that_computes_in_a_worker_gives_way_to_its_event_loop(server: Server) -> None:
    """Decoding threads, those that call the network, and ONNX Runtime's own, one less than an image has."""
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    cores = len(os.sched_getaffinity(0))
    computing = max(4, cores) + (cores + 1) + (min(cores, 4) - 1)

    def niceness(worker: int) -> list[int]:
        threads = [int(task.name) for task in Path(f"/proc/{worker}/task").iterdir()]
        return [os.getpriority(os.PRIO_PROCESS, thread) - ours for thread in threads]

    for worker in server.workers():
        until(lambda worker=worker: niceness(worker).count(NICENESS) == computing)  # type: ignore[misc]
        assert os.getpriority(os.PRIO_PROCESS, worker) == ours  # the event loop's


def test_where_they_can_not_be_started_that_is_said_and_nobody_waits() -> None:
    program = """
import resource
import threading
from embedder.runtime.memory import mappable_bytes
from embedder.runtime.threads import started_threads

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
