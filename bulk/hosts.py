"""Whose turn it is: rows by host, so that no host has more than its share in work, or is asked again too soon.

Catalogues are sorted by brand, and a brand has one host. So hosts take turns, each with its rows in their order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import urlsplit

Row = TypeVar("Row", bound=Hashable)

MAX_PAUSE_S = 60.0
"""A host that asks to be left alone for longer is: its rows fail, and `--retry-failed` takes them up again."""


def host_of(url: str) -> str:
    """Lower case, with the port; empty for what has none, such as a file's path or a `data:` URL."""
    if not url[:8].lower().startswith(("http://", "https://")):
        return ""
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


@dataclass(eq=False)
class _Host(Generic[Row]):
    name: str
    rows: deque[Row] = field(default_factory=deque)
    running: int = 0
    pauses: int = 0
    """Answers in a row that asked for one."""
    paused: bool = False
    in_line: bool = False


class Turns(Generic[Row]):
    """For one event loop."""

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._hosts: dict[str, _Host[Row]] = {}
        self._line: deque[_Host[Row]] = deque()
        self.waiting = 0
        """Rows that have not had their turn."""
        self.changed = asyncio.Event()
        """Set when `next` may have a row that it had not."""

    def add(self, host: str, row: Row, *, first: bool = False) -> None:
        found = self._hosts.setdefault(host, _Host(host))
        if first:
            found.rows.appendleft(row)
        else:
            found.rows.append(row)
        self.waiting += 1
        self._line_up(found)

    def next(self) -> tuple[str, Row] | None:
        """The next row that may begin now, of the host that has waited for longest. `done` must follow."""
        while self._line:
            host = self._line.popleft()
            host.in_line = False
            if not self._may(host):
                continue
            row = host.rows.popleft()
            self.waiting -= 1
            host.running += 1
            self._line_up(host)
            return host.name, row
        return None

    def done(self, name: str) -> None:
        host = self._hosts[name]
        host.running -= 1
        self._line_up(host)
        if not host.rows and not host.running and not host.paused:
            del self._hosts[name]

    def pause(self, name: str, asked_s: float | None) -> bool:
        """The host asked to be left alone. False where that is for too long to wait.

        Where it does not say for how long: 1, 2, 4... seconds, until it answers.
        """
        host = self._hosts[name]
        pause_s = asked_s if asked_s is not None else 2.0**host.pauses
        if pause_s > MAX_PAUSE_S:
            return False
        if not host.paused:  # what was in work beside it says the same again
            host.paused = True
            host.pauses += 1
            asyncio.get_running_loop().call_later(pause_s, self._go_on, host)
        return True

    def answered(self, name: str) -> None:
        self._hosts[name].pauses = 0

    def _go_on(self, host: _Host[Row]) -> None:
        host.paused = False
        self._line_up(host)

    def _may(self, host: _Host[Row]) -> bool:
        return bool(host.rows) and not host.paused and (not host.name or host.running < self._per_host)

    def _line_up(self, host: _Host[Row]) -> None:
        if not host.in_line and self._may(host):
            host.in_line = True
            self._line.append(host)
            self.changed.set()
