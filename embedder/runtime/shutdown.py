"""Leaving without dropping anything: SIGTERM makes readiness fail, and a moment later stops the server.

So does the end of the process that would send it: a worker whose parent was killed would serve on, with
nobody to replace it or to stop it, on a port that no new server gets.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from types import FrameType

# Long enough for a load balancer that asks for readiness every second to send its traffic elsewhere.
GRACE_S = 1.0


class Drain:
    """Whether this process, a worker, is on its way out."""

    def __init__(self, *, limit_s: float, grace_s: float = GRACE_S) -> None:
        """`limit_s` is how long what is in work may take to be finished."""
        self._limit_s = limit_s
        self._grace_s = grace_s
        self.begun = False
        """From SIGTERM or its parent's end on: not ready any more, still serving."""
        self.stopping = False
        """The server stops accepting; what is in work is finished."""

    def install(self) -> None:
        """Put this drain before the server's own SIGTERM handler. Main thread, inside the event loop.

        A second SIGTERM skips the rest of the grace.
        """
        loop = asyncio.get_running_loop()
        previous = signal.getsignal(signal.SIGTERM)
        if not callable(previous):  # no server underneath that would stop: leave the default, which does
            return

        def stop(signum: int, frame: FrameType | None) -> None:
            self.stopping = True
            previous(signum, frame)
            # The server waits until its clients have read their answers, and some never do: for as long as
            # they like. While it stops, it takes this signal for "at once".
            loop.call_soon_threadsafe(loop.call_later, self._limit_s, signal.raise_signal, signal.SIGINT)

        def on_sigterm(signum: int, frame: FrameType | None) -> None:
            if self.begun:
                stop(signum, frame)
                return
            self.begun = True
            loop.call_soon_threadsafe(loop.call_later, self._grace_s, stop, signum, None)

        signal.signal(signal.SIGTERM, on_sigterm)
        _at_the_end_of(os.getppid(), lambda: os.kill(os.getpid(), signal.SIGTERM))


def _at_the_end_of(process: int, call: Callable[[], None]) -> None:
    """Call once, in the event loop, when `process` has ended. Never on a system that can't tell."""
    loop = asyncio.get_running_loop()
    try:
        descriptor = os.pidfd_open(process)
    except (AttributeError, OSError):  # no Linux, or one older than 5.3
        return

    def ended() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        call()

    loop.add_reader(descriptor, ended)
