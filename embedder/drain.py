"""Leaving without dropping anything: SIGTERM makes readiness fail, and a moment later stops the server."""

from __future__ import annotations

import asyncio
import signal
from types import FrameType

# Long enough for a load balancer that asks for readiness every second to send its traffic elsewhere.
GRACE_S = 1.0


class Drain:
    """Whether this process is on its way out."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self.begun = False
        """From SIGTERM on: not ready any more, still serving."""
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

        def on_sigterm(signum: int, frame: FrameType | None) -> None:
            if self.begun:
                stop(signum, frame)
                return
            self.begun = True
            loop.call_soon_threadsafe(loop.call_later, self._grace_s, stop, signum, None)

        signal.signal(signal.SIGTERM, on_sigterm)
