"""Threads that compute: all of them started before there is work, and less urgent than the event loop."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier

NICENESS = 5
"""Of a thread that computes. Without it the event loop competes as an equal: `/metrics` took 200 ms instead of 20."""


def started_threads(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` threads that run already. What one of them starts, as a library may, is as nice as it is.

    A pool by itself starts a thread when there is work for it, from the event loop. Without memory for its first
    steps that thread ends, and whoever started it waits for it without end.

    Raises RuntimeError when the threads can't be started now.
    """
    pool = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_be_nice)
    all_run = Barrier(count + 1)
    try:
        for _ in range(count):
            pool.submit(all_run.wait)  # none is free for the next one, so each takes a new thread
        all_run.wait()
    except BaseException:
        all_run.abort()
        pool.shutdown()
        raise
    return pool


def _be_nice() -> None:
    with suppress(OSError):  # where that is forbidden, nothing is lost but this; 0: of this thread only
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
