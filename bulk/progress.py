"""What a job says while it runs: a bar on a terminal, a JSON line for each part elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from bulk.folder import PartStats
from bulk.job import Tally

BAR_EVERY_S = 0.5


def clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def most(codes: Mapping[str, int], count: int | None = None) -> str:
    """The codes with their counts, the most frequent first: all, or so many."""
    sorted_codes = sorted(codes.items(), key=lambda item: -item[1])[:count]
    return ", ".join(f"{code} {times}" for code, times in sorted_codes)


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
        done = self._done(tally)
        rate = self._rate(tally)
        filled = "█" * (24 * done // max(self._rows, 1))
        text = f"\r{filled:░<24} {done}/{self._rows}  {rate:.1f} rows/s"
        if tally.failed:
            text += f"  failed {tally.failures} ({most(tally.failed, 3)})"
        if tally.rows:
            text += f"  {clock(self._left(tally) / rate)} left"
        self._write(text)

    def part_done(self, stats: PartStats, tally: Tally) -> None:
        if self._mode != "json":
            return
        rate = self._rate(tally)
        line = {
            "part": stats.part,
            "rows": stats.rows,
            "success": stats.success,
            "failed": sum(stats.errors.values()),
            "errors": stats.errors,
            "rows_per_s": round(rate, 1),
            "eta_s": round(self._left(tally) / rate) if rate else None,
        }
        print(json.dumps(line), file=self._stream, flush=True)

    def _done(self, tally: Tally) -> int:
        return self._rows_before + tally.there + tally.rows

    def _left(self, tally: Tally) -> int:
        return max(0, self._rows - self._done(tally))

    def _rate(self, tally: Tally) -> float:
        """Rows a second."""
        return tally.rows / max(time.monotonic() - self._began_s, 1e-3)

    def clear(self) -> None:
        if self.has_bar:
            self._write("\r")
            self._write("\r")

    def _write(self, text: str) -> None:
        padding = " " * max(0, self._width - len(text))
        self._width = len(text)
        self._stream.write(text + padding)
        self._stream.flush()
