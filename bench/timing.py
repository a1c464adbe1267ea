"""Timing: clocks, interleaved candidates, medians, and how busy the machine was meanwhile."""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Call = Callable[[], Any]
Timed = Callable[[], float]  # runs once, returns seconds

PAUSE_S = 0.06  # OpenBLAS's idle threads spin for about 30 ms after a call and would slow the next candidate
SLOW_S = 3.0  # a call longer than this gets MIN_REPEATS, its first call included
MIN_REPEATS = 3
VERY_SLOW_S = 20.0  # a call longer than this is made only once


@dataclass
class Samples:
    """Seconds of one candidate; `slow` marks one that was given fewer repeats."""

    seconds: list[float] = field(default_factory=list)
    slow: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        return min(self.seconds)


def clock(call: Call, device: str = "cpu") -> Timed:
    """One timed call. The result is dropped after the clock stops."""
    if device == "cuda":
        return _event_clock(call)
    if device != "cpu":
        raise NotImplementedError(f"no clock for device {device!r} yet")

    def timed() -> float:
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
        del result
        return seconds

    return timed


_scratch: dict[int, torch.Tensor] = {}  # by device: written between calls


def rotate_l2() -> None:
    """Writes over the current GPU's L2 cache twice, so that no call finds the last one's data there.

    It also keeps the device busy while the host gets the next call going, so that the events around that call
    see less of the launch.
    """
    device = torch.cuda.current_device()
    if device not in _scratch:
        size = max(2 * torch.cuda.get_device_properties(device).L2_cache_size, 128 << 20)
        _scratch[device] = torch.empty(size, dtype=torch.uint8, device=f"cuda:{device}")
    _scratch[device].zero_()


def _event_clock(call: Call) -> Timed:
    """Seconds between two events on the current stream, around the call alone."""

    def timed() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        rotate_l2()
        begin.record()
        result = call()
        end.record()
        end.synchronize()
        del result
        return float(begin.elapsed_time(end)) * 1e-3

    return timed


def interleave(
    calls: dict[str, Timed],
    repeats: int,
    budget_s: float,
    tick: Callable[[str], None] = lambda _: None,
    first_s: dict[str, float] | None = None,
    others: OtherProcesses | None = None,
    pause_s: float = PAUSE_S,
) -> dict[str, Samples]:
    """Warm every candidate once, then time them in rounds: a, b, c, a, b, c, ...

    A candidate gets `repeats` samples or as many as `budget_s` holds, at least MIN_REPEATS, spread evenly
    over the rounds. `first_s` holds the seconds of first calls that were made already;
    `others` measures what other processes take meanwhile.
    """
    samples = {name: Samples() for name in calls}
    counts: dict[str, int] = {}
    for name, timed in calls.items():
        tick(name)
        first = first_s[name] if first_s and name in first_s else timed()
        samples[name].slow = first > SLOW_S
        if samples[name].slow:
            samples[name].seconds.append(first)
            counts[name] = 0 if first > VERY_SLOW_S else MIN_REPEATS - 1
        else:
            counts[name] = min(repeats, max(MIN_REPEATS, int(budget_s / max(first, 1e-9))))
    rounds = max(counts.values())
    gc.collect()
    gc.disable()
    try:
        for r in range(rounds):
            for name, timed in calls.items():
                due = (r + 1) * counts[name] // rounds > r * counts[name] // rounds
                if due:
                    tick(name)
                    time.sleep(pause_s)
                    with others or contextlib.nullcontext():
                        seconds = timed()
                    samples[name].seconds.append(seconds)
    finally:
        gc.enable()
    return samples


def per_call(call: Call, loops: int) -> Timed:
    """Seconds of one of `loops` back-to-back calls: for calls too short to time alone."""

    def timed() -> float:
        start = time.perf_counter()
        for _ in range(loops):
            call()
        return (time.perf_counter() - start) / loops

    return timed


def steady(call: Call, least_s: float = 0.05) -> Timed:
    """Seconds of one call, as the mean over a run of `least_s`: a call of a millisecond is mostly chance alone."""
    call()
    start = time.perf_counter()
    call()
    return per_call(call, max(1, int(least_s / (time.perf_counter() - start))))


class OtherProcesses:
    """How much of the machine other processes took while blocks ran (0 = none, 1 = all of it).

    Enter it around each block; the kernel counts in ticks of 10 ms, so only the sum over many means much.
    """

    def __init__(self) -> None:
        self._wall = self._others = 0.0

    def __enter__(self) -> OtherProcesses:
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        now = self._now()
        if self._start is None or now is None:
            return
        wall, busy, own = (after - before for after, before in zip(now, self._start, strict=True))
        self._wall += wall
        self._others += busy - own

    @property
    def share(self) -> float | None:
        if not self._wall:
            return None
        return round(max(0.0, self._others) / (self._wall * (os.cpu_count() or 1)), 3)

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        try:
            with open("/proc/stat") as stat:
                ticks = [int(t) for t in stat.readline().split()[1:9]]
        except OSError:
            return None
        user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        own = os.times()
        return time.perf_counter(), busy, own.user + own.system + own.children_user + own.children_system


def wait_quiet(most_s: float, share: float = 0.05, window_s: float = 2.0) -> None:
    """Waits until other processes take less than `share` of the machine, at most `most_s` seconds."""
    end = time.monotonic() + most_s
    while time.monotonic() < end:
        with OtherProcesses() as others:
            time.sleep(window_s)
        if (others.share or 0.0) < share:
            return
