"""Threads that are there before they are needed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier


def started_threads(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` threads, all of which run.

    Otherwise a pool starts them when there is work for them. Where no memory is left for a thread, that
    fails, or waits for ever for one that came to nothing: and it is the event loop that waits.

    Raises RuntimeError when they can't be started now.
    """
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
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
