"""A program that was started, with all that it started: its processor time, and how to end it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STOP_TIMEOUT_S = 15.0
# How exactly an end is seen, and how often memory is looked at, which takes the kernel some ms for each process.
POLL_S = 0.02
MEMORY_EVERY_S = 1.0
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


@dataclass(frozen=True)
class Finished:
    """What a program took that ran to its end, with all that it started."""

    status: int
    wall_s: float
    cpu_s: float
    """User and system. Of what it started, that for whose end it waited."""
    peak_mb: float
    """Of memory at once, as MEMORY_EVERY_S shows it; what processes share is counted once (PSS)."""


class Processes:
    """`process` and its descendants, whatever sessions they are in."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def cpu_s(self) -> float:
        """Processor time, user and system, that those of them that live have used."""
        return sum(map(_ticks, self._pids())) / _TICKS_PER_S

    def finish(self) -> Finished:
        """Waits until the first one ends. It must have been started right before."""
        began_s = looked_s = time.perf_counter()
        peak = 0
        while True:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            now_s = time.perf_counter()
            if pid:
                break
            if now_s - looked_s > MEMORY_EVERY_S:
                looked_s = now_s
                peak = max(peak, sum(map(_memory_kb, self._pids())))
            time.sleep(POLL_S)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        used_s = usage.ru_utime + usage.ru_stime
        return Finished(self.process.returncode, now_s - began_s, used_s, peak * 1024 / 1e6)

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


def _memory_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it is gone
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _started(pid: int) -> str | None:
    """When it was started, in ticks since boot: tells it from a later process with the same id."""
    fields = _stat(pid)
    return fields[19] if fields else None


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
