"""A progress bar on stderr for loops that may take minutes; needs nothing, and prints only when asked to."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

_WIDTH = 24
_INTERVAL = 0.1  # seconds between two drawings
_PATIENCE = 1.0  # seconds before the first drawing of what one call does


class Progress:
    """`with Progress(title, total, enabled) as bar: bar.step("note")` redraws one line and leaves the
    last.
    """

    def __init__(self, title: str, total: int, enabled: bool, start: float | None = None) -> None:
        """`start`: when the work began, by time.monotonic(); now, unless given."""
        self._title, self._total, self._enabled = title, max(total, 1), enabled
        self._done, self._length = 0, 0
        self._start = self._drawn = time.monotonic() if start is None else start

    def __enter__(self) -> Progress:
        return self

    def step(self, note: str | Callable[[], str] = "", *, count: int = 1) -> None:
        """`count` more steps are done; `note` says how it stands, and is called only where it is drawn."""
        self._done = min(self._done + count, self._total)
        now = time.monotonic()
        if not self._enabled or (self._done < self._total and now - self._drawn < _INTERVAL):
            return
        self._drawn = now
        note = note if isinstance(note, str) else note()
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


@contextmanager
def watched(title: str, total: int, enabled: bool, done: Callable[[], int]) -> Iterator[None]:
    """Draws the progress of one call that releases Python's lock, from its first second on; `done()` only grows."""
    if not enabled:
        yield
        return
    first, over, start, succeeded = done(), threading.Event(), time.monotonic(), False

    def draw() -> None:
        if over.wait(_PATIENCE):
            return
        seen = 0
        with Progress(title, total, True, start) as bar:
            while not over.wait(_INTERVAL):
                now = done() - first
                bar.step(count=now - seen)
                seen = now
            if succeeded:
                bar.step(count=max(total - seen, 0))

    artist = threading.Thread(target=draw, daemon=True)
    try:
        artist.start()
        yield
        succeeded = True
    finally:
        over.set()
        if artist.is_alive():  # an interrupt may come before it has begun
            artist.join()
