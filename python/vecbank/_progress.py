"""A progress bar on stderr for loops that may take minutes; needs nothing, and prints only when asked to."""

from __future__ import annotations

import sys
import time
from types import TracebackType

_WIDTH = 24
_INTERVAL = 0.1  # seconds between two drawings


class Progress:
    """`with Progress(title, total, enabled) as bar: bar.step("note")` redraws one line and leaves the
    last.
    """

    def __init__(self, title: str, total: int, enabled: bool) -> None:
        self._title, self._total, self._enabled = title, max(total, 1), enabled
        self._done, self._length = 0, 0
        self._start = self._drawn = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def step(self, note: str = "", *, count: int = 1) -> None:
        """`count` more steps are done; `note` says how it stands."""
        self._done = min(self._done + count, self._total)
        now = time.monotonic()
        if not self._enabled or (self._done < self._total and now - self._drawn < _INTERVAL):
            return
        self._drawn = now
        filled = _WIDTH * self._done // self._total
        bar = "#" * filled + "." * (_WIDTH - filled)
        line = f"{self._title} [{bar}] {self._done}/{self._total} {now - self._start:.1f} s {note}"
        sys.stderr.write("\r" + line.ljust(self._length))  # padding wipes what a longer line left
        sys.stderr.flush()
        self._length = len(line)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled and self._length:
            sys.stderr.write("\n")
            sys.stderr.flush()
