"""A program that was started, with all that it started: its processor time, and how to end it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

STOP_TIMEOUT_S = 15.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_taken: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 that is free and was not given before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _taken:
            _taken.add(port)
            return port


class Processes:
    """`process` and its descendants, whatever sessions they are in."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def cpu_s(self) -> float:
        """Processor time, user and system, that those of them that live have used."""
        return sum(map(_ticks, self._pids())) / _TICKS_PER_S

    def stop(self) -> None:
        """Ask the first to end; then make those end that did not follow it."""
        # Its orphans are not its descendants any more, so they are noted before, by when they were started.
        started = {pid: _started(pid) for pid in self._pids()}
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT_S)
        left = [pid for pid, start in started.items() if start is not None and _started(pid) == start]
        _signal(left, signal.SIGKILL)
        self.process.wait()

    def _pids(self) -> list[int]:
        children = defaultdict(list)
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
                children[int(fields[1])].append(int(entry.name))
        return list(_descent(self.process.pid, children))


def _descent(pid: int, children: dict[int, list[int]]) -> Iterator[int]:
    yield pid
    for child in children.get(pid, ()):
        yield from _descent(child, children)


def _stat(pid: int) -> list[str]:
    """proc(5)'s stat from its third field on (state, parent, ...); nothing when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _ticks(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[11]) + int(fields[12]) if fields else 0  # utime, stime


def _started(pid: int) -> str | None:
    """When it was started, in ticks since boot: tells it from a later process with the same id."""
    fields = _stat(pid)
    return fields[19] if fields else None


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
