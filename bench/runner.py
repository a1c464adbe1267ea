"""What a run on either device is: rows of sections, one after the other, in a JSON that is written after every row."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Iterable
from typing import Any

import torch

from bench import machine, timing

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None


class Plain:
    """Takes the place of tqdm's bar where tqdm is not installed, and prints nothing."""

    def __init__(self, **_: Any) -> None:
        self.total = 0

    def silent(self, *_: Any) -> None:
        pass

    set_postfix_str = update = refresh = close = silent
    write = staticmethod(print)


class Runner:
    """Runs the sections and writes the JSON after every row, so that an interrupted run keeps what it has."""

    rows_per_step = 1
    untimed: tuple[str, ...] = ()  # sections whose rows are as good on a busy machine

    def __init__(self, args: argparse.Namespace, packages: Iterable[str]) -> None:
        if args.threads:
            torch.set_num_threads(args.threads)
        self.args = args
        self.threads = torch.get_num_threads()
        self.report: dict[str, Any] = {
            "schema": 1,
            **machine.commit(),
            "machine": machine.machine(),
            "software": machine.software(self.threads, packages),
            "parameters": {
                "quick": args.quick,
                "only": args.only,
                "sections": args.sections,
                "peers": args.peers,
                "skipped": args.skip,
                "repeats": args.repeats,
                "budget_s": args.budget,
                "threads": self.threads,
                "device": args.device,
                "seed": 0,
            },
            "rows": [],
        }
        self.bar = (tqdm or Plain)(total=0, unit="row", dynamic_ncols=True)

    def items(self, section: str) -> list[Any]:
        """What the method of the section's name is called with, one after the other."""
        raise NotImplementedError

    def wanted(self, name: str) -> bool:
        return not self.args.only or self.args.only.lower() in name.lower()

    def tick(self, label: str) -> Callable[[str], None]:
        return lambda candidate: self.bar.set_postfix_str(f"{label}: {candidate}")

    def add(self, row: dict[str, Any]) -> None:
        if self.args.quick:
            row["met"] = None  # other sizes than the target's
        self.report["rows"].append(row)
        self.save()
        self.bar.update()

    def save(self) -> None:
        self.args.out.parent.mkdir(parents=True, exist_ok=True)
        self.args.out.write_text(json.dumps(self.report, indent=1, ensure_ascii=False) + "\n")

    def run(self) -> None:
        work = [(section, item) for section in self.args.sections for item in self.items(section)]
        self.bar.total = len(work) * self.rows_per_step
        self.bar.refresh()
        for section, item in work:
            if self.args.wait_quiet and section not in self.untimed:
                self.bar.set_postfix_str("waiting for a quiet machine")
                timing.wait_quiet(self.args.wait_quiet)
            getattr(self, section)(item)
            gc.collect()
        self.bar.close()

    @staticmethod
    def stats(samples: timing.Samples) -> dict[str, Any]:
        return {
            "median_s": round(samples.median, 9),
            "min_s": round(samples.least, 9),
            "samples_s": [round(s, 9) for s in samples.seconds],
            "fewer_repeats_because_slow": samples.slow,
        }
