"""Threads that run before there is work for them, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from embedder.runtime.threads import started_threads
from tests.server import ROOT


def test_all_run_before_there_is_work() -> None:
    pool = started_threads(5, "early")
    assert sum(thread.name.startswith("early") for thread in threading.enumerate()) == 5
    assert list(pool.map(len, ["a", "bc"])) == [1, 2]
    pool.shutdown()


def test_they_and_what_they_start_are_nicer_than_the_thread_that_started_them() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    def niceness_of_a_new_thread() -> list[int]:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(niceness()))
        thread.start()
        thread.join()
        return found

    ours = niceness()
    pool = started_threads(2, "nice")
    theirs = pool.submit(niceness).result()
    assert theirs > ours
    assert pool.submit(niceness_of_a_new_thread).result() == [theirs]
    assert niceness() == ours
    pool.shutdown()


NO_MEMORY = """
import mmap, resource
from embedder.runtime.memory import mappable_bytes
from embedder.runtime.threads import started_threads

pool = started_threads(1, "compute")
resource.setrlimit(resource.RLIMIT_AS, (10**10, 10**10))
used = 10**10 - mappable_bytes()
resource.setrlimit(resource.RLIMIT_AS, (used + 8_400_000, 10**10))
stack = mmap.mmap(-1, 8_392_704, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held = []
try:
    while True:
        held.append(bytearray(1000))
except MemoryError:
    pass
stack.close()  # room for a thread's stack, and for nothing else
work = pool.submit(int)
held.clear()
print("computed", work.result())
"""


def test_work_without_memory_for_a_new_thread_keeps_nobody_waiting() -> None:
    # With ThreadPoolExecutor(1) in its place `submit` never returns (Python 3.11): the new thread ends before it says
    # that it runs.
    command = [sys.executable, "-c", NO_MEMORY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "computed 0\n", done.stderr


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
