"""Graceful shutdown of one worker: not ready first, then no new connections, then the end.

    SIGTERM ─► begun ──── GRACE_S ───► stopping ─► the server finishes what is in work ─► exit
               not ready, still serves                                     └── limit_s later: exit at once

The end of the parent process counts as SIGTERM. Without it a worker whose parent was killed would serve on, with
nobody to stop or replace it, on a port that no new server gets.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from types import FrameType

GRACE_S = 1.0
"""A load balancer that checks readiness every second has sent its traffic elsewhere by then."""


class Shutdown:
    """How far this worker's shutdown is."""

    def __init__(self, *, limit_s: float, grace_s: float = GRACE_S) -> None:
        """`limit_s` is for the requests in work, from `stopping` on."""
        self._limit_s = limit_s
        self._grace_s = grace_s
        self.begun = False
        """Not ready, but still serving."""
        self.stopping = False
        """The server accepts no connections and finishes what is in work."""

    def install(self) -> None:
        """Run before the server's own SIGTERM handler. Call it in the main thread, inside the event loop.

        A second SIGTERM ends the grace.
        """
        loop = asyncio.get_running_loop()
        previous = signal.getsignal(signal.SIGTERM)
        if not callable(previous):  # there is no server around it: the default action ends the process
            return

        def stop(signum: int, frame: FrameType | None) -> None:
            self.stopping = True
            previous(signum, frame)
            # The server waits until its clients have read their answers, and some never do. While it stops,
            # it takes SIGINT for "at once".
            loop.call_soon_threadsafe(loop.call_later, self._limit_s, signal.raise_signal, signal.SIGINT)

        def on_sigterm(signum: int, frame: FrameType | None) -> None:
            if self.begun:
                stop(signum, frame)
                return
            self.begun = True
            loop.call_soon_threadsafe(loop.call_later, self._grace_s, stop, signum, None)

        signal.signal(signal.SIGTERM, on_sigterm)
        _when_ended(os.getppid(), lambda: os.kill(os.getpid(), signal.SIGTERM))


def _when_ended(process: int, call: Callable[[], None]) -> None:
    """Call `call` once, in the event loop, when `process` has ended. Never where the system can't tell."""
    loop = asyncio.get_running_loop()
    try:
        descriptor = os.pidfd_open(process)
    except (AttributeError, OSError):  # a Python built with headers older than Linux 5.3; gVisor
        return

    def ended() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        call()

    loop.add_reader(descriptor, ended)
