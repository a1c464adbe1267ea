#!/usr/bin/env python3
"""One command for every row of the bench table: `python bench/run.py`, then see bench/results.

Nothing here asserts a speed: rows carry their target, and the table says met or missed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ("speed", "codebooks", "memory", "growth", "overhead", "tiny")
CUDA_SECTIONS = ("cuda",)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats: a smoke run")
    parser.add_argument("--only", metavar="SUBSTR", help="only cases whose name contains this")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, help="on the CPU: which tables (default: all)")
    parser.add_argument("--out", type=Path, help="JSON to write; the table and plots go beside it")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--skip", nargs="+", default=[], metavar="PEER", help="peers to leave out, by name")
    parser.add_argument(
        "--memory-peers", action=argparse.BooleanOptionalAction, default=True, help="peers in the memory rows too"
    )
    parser.add_argument("--repeats", type=int, help="samples per candidate (default 11, quick 3)")
    parser.add_argument(
        "--budget", type=float, help="seconds a candidate may take per case (default 12, quick or on a GPU 1)"
    )
    parser.add_argument("--seconds", type=float, help="on a GPU: start no further row after so many")
    parser.add_argument("--threads", type=int, help="threads for everybody (default: torch's own)")
    parser.add_argument(
        "--wait-quiet",
        type=float,
        default=0.0,
        metavar="S",
        help="wait up to S seconds a row for other processes to rest",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args(argv)
    args.repeats = args.repeats or (3 if args.quick else 11)
    args.budget = args.budget or (1.0 if args.quick or args.device == "cuda" else 12.0)
    every = CUDA_SECTIONS if args.device == "cuda" else SECTIONS
    args.sections = list(every if args.device == "cuda" else args.sections or every)
    if args.out is None:
        partial = args.only is not None or set(args.sections) != set(every) or not args.peers
        name = "quick" if args.quick else "partial" if partial else args.device
        args.out = ROOT / "bench" / "results" / f"{name}.json"
    return args


class Plain:
    """In place of tqdm's bar where that is not installed: says nothing."""

    def __init__(self, **_: Any) -> None:
        self.total = 0

    def silent(self, *_: Any) -> None:
        pass

    set_postfix_str = update = refresh = close = silent


class Bench:
    """Runs the sections and writes the JSON after every row, so that an interrupted run keeps what it has."""

    rows_per_step = 1

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        from bench import machine

        try:
            from tqdm import tqdm
        except ImportError:
            tqdm = Plain
        if args.threads:
            torch.set_num_threads(args.threads)
        self.args = args
        self.threads = torch.get_num_threads()
        self.slow: set[tuple[str, str]] = set()  # (case, candidate) too slow to be worth a second look
        self.report: dict[str, Any] = {
            "schema": 1,
            **machine.commit(),
            "machine": machine.machine(),
            "software": machine.software(self.threads),
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
        self.bar = tqdm(total=0, unit="row", dynamic_ncols=True)

    def cases(self, cases: list[Any]) -> list[Any]:
        from bench import codebooks
        from bench.cases import quick

        kept = [c for c in cases if not self.args.only or self.args.only.lower() in c.name.lower()]
        if not self.args.quick:
            return kept
        return [codebooks.quick(c) if c.op in codebooks.CANDIDATES else quick(c) for c in kept]

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
        from bench import timing

        work: list[tuple[Callable[[Any], None], Any]] = []
        for section in (*SECTIONS, *CUDA_SECTIONS):
            if section in self.args.sections:
                work += [(getattr(self, section), item) for item in self.items(section)]
        self.bar.total = len(work) * self.rows_per_step
        self.bar.refresh()
        for step, item in work:
            if self.args.wait_quiet and step != self.memory:
                self.bar.set_postfix_str("waiting for a quiet machine")
                timing.wait_quiet(self.args.wait_quiet)
            step(item)
            gc.collect()
        self.bar.close()

    def items(self, section: str) -> list[Any]:
        from bench import cases, codebooks

        if section == "tiny":
            wanted = not self.args.only or self.args.only in cases.TINY.name
            return [(op, mode) for op in cases.TINY_OPS for mode in cases.TINY_LIMITS_US] if wanted else []
        if section == "codebooks":
            return self.cases(list(codebooks.CASES))
        if section == "memory":
            return self.cases([*cases.CASES, *(c for c in codebooks.CASES if c.op.startswith("s"))])
        chosen = {"growth": cases.growth_cases, "overhead": cases.overhead_cases}.get(section)
        return self.cases(chosen() if chosen else list(cases.CASES))

    def candidates(self, case: Any) -> dict[str, Any]:
        from bench import codebooks
        from bench.cases import OURS
        from bench.ours import OURS_CANDIDATES
        from bench.peers import PEERS

        known = codebooks.CANDIDATES.get(case.op, {**OURS_CANDIDATES, **PEERS})
        found = {OURS: known[OURS]}
        if self.args.peers:
            found.update({name: known[name] for name in case.candidates if name not in self.args.skip})
        return found

    def codebooks(self, case: Any) -> None:
        self.speed(case, "codebooks")

    def speed(self, case: Any, section: str = "speed") -> None:
        """Ours, the peers and the baseline, interleaved; answers of the first call checked on a sample."""
        from bench import check, timing
        from bench.cases import OURS, make_data
        from bench.peers import NOTES

        tick = self.tick(case.name)
        data = make_data(case)
        tick("reference")
        want = check.expected(case, data)
        entries: dict[str, dict[str, Any]] = {}
        calls: dict[str, Any] = {}
        first_s: dict[str, float] = {}
        for name, prepare in self.candidates(case).items():
            tick(f"prepare {name}")
            entry: dict[str, Any] = {"note": NOTES.get(name)}
            entries[name] = entry
            try:
                call = prepare(case, data, self.threads)
                start = time.perf_counter()
                result = call()
                first_s[name] = time.perf_counter() - start
                part = check.extract(case, name, result, want.rows)
                del result
            except ImportError as error:
                entry.update(status="missing", reason=str(error))
                continue
            except Exception as error:  # a peer that fails is a result too; ours must not fail
                if name == OURS:
                    raise
                entry.update(status="failed", reason=f"{type(error).__name__}: {error}"[:300])
                continue
            entry.update(status="ok", check=check.compare(case, name, part, want))
            calls[name] = timing.clock(call, self.args.device)
        base = timing.baseline(case, data)
        neighbours = timing.Neighbours()
        everybody = {**base.calls, **calls}
        samples = timing.interleave(everybody, self.args.repeats, self.args.budget, tick, first_s, neighbours)
        fastest = min(base.calls, key=lambda name: samples[name].median)
        unit_s, unit_least = samples[fastest].median, samples[fastest].least
        for name in calls:
            entry = entries[name]
            entry.update(self.stats(samples[name]), ratio=round(samples[name].median / unit_s, 4))
            entry["ratio_of_minima"] = round(samples[name].least / unit_least, 4)
            if samples[name].slow:
                self.slow.add((case.name, name))
        met, against = self.judge(case, entries)
        self.add(
            {
                "section": section,
                "name": case.name,
                **case.describe(),
                "baseline": {
                    "kind": base.kind,
                    "how": base.how,
                    "fastest": fastest,
                    "gflop_per_s": round(case.flops / unit_s / 1e9, 1) if base.kind == "sgemm" else None,
                    "gbyte_per_s": round(4e-9 * case.m * case.d / unit_s, 1) if base.kind == "read" else None,
                    "candidates": {name: self.stats(samples[name]) for name in base.calls},
                },
                "candidates": entries,
                "target": {"limit": case.target.limit, "peers": dict(case.target.peers)},
                "target_text": case.target.text(case.baseline),
                "against_peers": against,
                "met": met,
                "others_busy": neighbours.share,
            }
        )

    @staticmethod
    def stats(samples: Any) -> dict[str, Any]:
        return {
            "median_s": round(samples.median, 9),
            "min_s": round(samples.least, 9),
            "samples_s": [round(s, 9) for s in samples.seconds],
            "fewer_repeats_because_slow": samples.slow,
        }

    @staticmethod
    def judge(case: Any, entries: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Met only if the ratio, every named peer and the sampled answers are all as asked."""
        from bench.cases import OURS

        ours = entries[OURS]
        met = ours["check"]["ok"] is not False and (case.target.limit is None or ours["ratio"] <= case.target.limit)
        limits = dict(case.target.peers)
        against: dict[str, Any] = {}
        for name, entry in entries.items():
            if name == OURS or entry["status"] != "ok":
                continue
            ratio = round(ours["median_s"] / entry["median_s"], 4)
            against[name] = {"ours_over_peer": ratio, "limit": limits.get(name)}
            met = met and ratio <= limits.get(name, float("inf"))
        # A peer that the target names has to be there: without it the row is not shown to be met.
        return met and all(name in against for name in limits), against

    def memory(self, case: Any) -> None:
        """One fresh process per candidate; peers that were slow in this run are left out."""
        from bench.cases import OURS
        from bench.memory import measure_in_child

        found: dict[str, Any] = {}
        for name in self.candidates(case):
            compared = case.memory_share is not None and case.memory_share[0] == name
            if (self.args.quick or not (self.args.memory_peers or compared)) and name != OURS:
                continue
            self.tick(f"memory {case.name}")(name)
            if (case.name, name) in self.slow and name != OURS and not compared:  # a target needs its peer
                found[name] = {"error": "left out: slow in this run"}
                continue
            found[name] = measure_in_child(case.name, name, self.threads, self.args.quick, timeout_s=300)
        extra = found[OURS].get("extra_mib")
        limit = case.memory_limit_mib
        if case.memory_share is not None:
            limit = case.memory_share[1] * found.get(case.memory_share[0], {}).get("extra_mib", 0.0)
        met = extra is not None and extra <= limit
        target = {"limit": limit}
        self.add({"section": "memory", "name": case.name, "candidates": found, "target": target, "met": met})

    def growth(self, case: Any) -> None:
        """Half of N, of M and of d against the whole: time must grow no faster than 2.2 times."""
        from bench import timing
        from bench.cases import GROWTH_LIMIT, OURS, make_data

        axes = ("n", "m", "d") if case.n > 1 else ("m", "d")
        calls, kept = {}, []
        for axis in ("whole", *axes):
            smaller = case if axis == "whole" else case.smaller(axis)
            data = make_data(smaller)
            call = self.candidates(case)[OURS](smaller, data, self.threads)
            kept.append((data, call))
            calls[axis] = timing.clock(call, self.args.device)
        neighbours = timing.Neighbours()
        tick = self.tick(f"growth {case.name}")
        samples = timing.interleave(calls, self.args.repeats, self.args.budget / 2, tick, neighbours=neighbours)
        ratios = {a: round(samples["whole"].median / samples[a].median, 3) for a in axes}
        self.add(
            {
                "section": "growth",
                "name": case.name,
                "ratios": ratios,
                "candidates": {name: self.stats(s) for name, s in samples.items()},
                "target": {"limit": GROWTH_LIMIT},
                "met": max(ratios.values()) <= GROWTH_LIMIT,
                "others_busy": neighbours.share,
            }
        )

    def overhead(self, case: Any) -> None:
        """A plain tensor, packed in the call, against the prepared Bank."""
        from bench import timing
        from bench.cases import OVERHEAD_LIMIT, make_data
        from bench.ours import OURS_CANDIDATES

        data = make_data(case)
        calls = {name: timing.steady(prepare(case, data, self.threads)) for name, prepare in OURS_CANDIDATES.items()}
        neighbours = timing.Neighbours()
        tick = self.tick(f"overhead {case.name}")
        samples = timing.interleave(calls, self.args.repeats, self.args.budget / 2, tick, neighbours=neighbours)
        bank, plain = (samples[name].median for name in OURS_CANDIDATES)
        ratio = round(plain / bank, 4)
        self.add(
            {
                "section": "overhead",
                "name": case.name,
                **case.describe(),
                "ratio": ratio,
                "candidates": {name: self.stats(s) for name, s in samples.items()},
                "target": {"limit": OVERHEAD_LIMIT},
                "met": ratio <= OVERHEAD_LIMIT,
                "others_busy": neighbours.share,
            }
        )

    def tiny(self, item: tuple[str, str]) -> None:
        """Microseconds of one Bank method on one query, by gradient mode."""
        import torch

        from bench import ours, peers, timing
        from bench.cases import OURS, TINY, TINY_LIMITS_US, make_data

        op, mode = item
        data = make_data(TINY)
        loops = 200 if self.args.quick else 2000
        calls = {OURS: timing.per_call(ours.tiny(op, mode, data), loops)}
        if self.args.peers and mode != "requires_grad":
            calls["torch expression"] = timing.per_call(peers.tiny(op, data), loops)
        with self.mode(mode), torch.set_grad_enabled(mode in ("plain", "requires_grad")):
            samples = timing.interleave(calls, self.args.repeats, self.args.budget, self.tick(f"tiny {op} {mode}"))
        us = {name: round(s.median * 1e6, 2) for name, s in samples.items()}
        self.add(
            {
                "section": "tiny",
                "name": f"tiny {op}, {mode}",
                "op": op,
                "mode": mode,
                "microseconds": us,
                "candidates": {name: self.stats(s) for name, s in samples.items()},
                "target": {"limit": TINY_LIMITS_US[mode]},
                "met": us[OURS] <= TINY_LIMITS_US[mode],
            }
        )

    @staticmethod
    @contextlib.contextmanager
    def mode(name: str) -> Iterator[None]:
        import torch

        with torch.inference_mode(name == "inference_mode"):
            yield


def main() -> int:
    args = parse()
    for variable in THREAD_VARIABLES if args.threads else ():
        os.environ[variable] = str(args.threads)  # before the libraries load
    sys.path[0] = str(ROOT)  # not bench/, whose module names are meant to be bench.*
    try:
        import vecbank  # noqa: F401
    except ImportError as error:
        print(f"vecbank does not import ({error}): build it first, see README.md", file=sys.stderr)
        return 1
    if args.device == "cuda":
        import torch

        from vecbank import _cuda

        if not torch.cuda.is_available() or _cuda.module is None:
            print(f"bench: not run: {_cuda.reason or 'no GPU'}", file=sys.stderr)
            return 2
        from bench.cuda_run import CudaBench

        bench: Bench = CudaBench(args)
    else:
        bench = Bench(args)
    bench.run()
    bench.save()
    from bench import report

    print(report.write(args.out))
    return 1 if bench.report.get("failures") else 0


if __name__ == "__main__":
    sys.exit(main())
