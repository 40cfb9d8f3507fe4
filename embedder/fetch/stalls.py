"""How long the event loop was kept from running: what took too long meanwhile is nobody else's fault."""

from __future__ import annotations

import asyncio

EVERY_S = 0.1


class Stalls:
    """Counts from `start` to `close`, on one event loop. It takes 10 timers a second."""

    def __init__(self) -> None:
        self._late_s = 0.0
        self._due_s = 0.0
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._set_timer()

    def close(self) -> None:
        self._timer.cancel()

    def seconds(self) -> float:
        """How late the timers were, all together, until now."""
        return self._late_s + max(0.0, self._loop.time() - self._due_s)

    def _set_timer(self) -> None:
        self._due_s = self._loop.time() + EVERY_S
        self._timer = self._loop.call_at(self._due_s, self._ring)

    def _ring(self) -> None:
        self._late_s = self.seconds()
        self._set_timer()
