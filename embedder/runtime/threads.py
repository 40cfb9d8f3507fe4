"""Threads that compute: they are there before they are needed, and give way to the event loop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Barrier

# Of a thread that computes. Where more of them than cores want to run, the event loop would get a core as
# seldom as each of them: what takes it 20 ms, as the metrics do, took up to 200.
NICENESS = 5


def started_threads(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` threads, all of which run, and give way to the thread that starts them.

    A pool by itself starts them when there is work for them. Where no memory is left for a thread, that
    fails, or waits for ever for one that came to nothing: and it is the event loop that waits.

    Raises RuntimeError when they can't be started now.
    """
    pool = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_give_way)
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


@contextmanager
def new_threads_give_way() -> Iterator[None]:
    """Whatever threads a library starts while this lasts give way to others."""
    before = _threads()
    yield
    for thread in _threads() - before:
        _give_way(thread)


def _threads() -> set[int]:
    return {int(task) for task in os.listdir("/proc/self/task")}


def _give_way(thread: int = 0) -> None:
    """To Linux each thread has a niceness of its own; 0 is the one that calls."""
    with suppress(OSError):  # where that is forbidden, nothing is lost but this
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)
