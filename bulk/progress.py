"""What a job says while it runs: a bar on a terminal, a JSON line for each part elsewhere."""

from __future__ import annotations

import json
import sys
import time
from typing import TextIO

from bulk.job import PartStats, Tally

BAR_EVERY_S = 0.5


def clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


class Progress:
    """`mode` is auto, bar, json or none."""

    def __init__(self, mode: str, *, rows: int, rows_before: int, stream: TextIO = sys.stderr) -> None:
        self._mode = ("bar" if stream.isatty() else "json") if mode == "auto" else mode
        self._rows = rows
        self._rows_before = rows_before
        self._stream = stream
        self._began_s = time.monotonic()
        self._width = 0

    @property
    def has_bar(self) -> bool:
        return self._mode == "bar"

    def bar(self, tally: Tally) -> None:
        done = self._rows_before + tally.there + tally.rows
        rate = tally.rows / max(time.monotonic() - self._began_s, 1e-3)
        filled = "█" * (24 * done // max(self._rows, 1))
        text = f"\r{filled:░<24} {done}/{self._rows}  {rate:.1f} rows/s"
        if tally.failed:
            most = sorted(tally.failed.items(), key=lambda item: -item[1])[:3]
            text += f"  failed {tally.failures} ({', '.join(f'{code} {count}' for code, count in most)})"
        if tally.rows:
            text += f"  {clock(max(0, self._rows - done) / rate)} left"
        self._write(text)

    def part_done(self, stats: PartStats, tally: Tally) -> None:
        if self._mode != "json":
            return
        seconds = time.monotonic() - self._began_s
        rate = tally.rows / max(seconds, 1e-3)
        line = {
            "part": stats.part,
            "rows": stats.rows,
            "success": stats.success,
            "failed": sum(stats.errors.values()),
            "errors": stats.errors,
            "rows_per_s": round(rate, 1),
            "eta_s": round(max(0, self._rows - self._rows_before - tally.there - tally.rows) / rate)
            if rate
            else None,
        }
        print(json.dumps(line), file=self._stream, flush=True)

    def clear(self) -> None:
        if self.has_bar:
            self._write("\r")
            self._write("\r")

    def _write(self, text: str) -> None:
        padding = " " * max(0, self._width - len(text))
        self._width = len(text)
        self._stream.write(text + padding)
        self._stream.flush()
