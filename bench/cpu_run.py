"""The rows on a CPU, one method a table: times, extra memory, growth, a plain tensor's overhead, tiny calls."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch

from bench import registry, timing
from bench.baselines import baseline
from bench.cases import OURS, PLAIN, Case, Target, draw
from bench.memory import measure_in_child
from bench.registry import workload_of
from bench.runner import Runner
from bench.workload import Candidate, Workload

GROWTH_LIMIT = 2.2
OVERHEAD_LIMIT = 1.10
OVERHEAD_N = 1024  # a plain tensor instead of a Bank is held to OVERHEAD_LIMIT from this many queries on

# A call on one query of a bank this small costs the call and little else.
TINY_CASE = Case("tiny", "project", 1, 64, 16, "cosine", Target(1.0))
TINY_LIMITS_US = {"inference_mode": 15.0, "no_grad": 30.0, "plain": 30.0, "requires_grad": 90.0}


def overhead_cases() -> list[Case]:
    """Every forward case with enough queries, at its own N and at the smallest N held to the limit."""
    found = []
    for case in registry.cases("overhead"):
        if case.data == "gaussian" and not case.grad and case.n >= OVERHEAD_N:
            found += [replace(case, n=n) for n in sorted({OVERHEAD_N, case.n})]
    return found


class CpuBench(Runner):
    """The sections of the CPU; a workload names those in which its cases stand."""

    untimed = ("memory",)

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args, registry.packages())
        self.slow: set[tuple[str, str]] = set()  # (case, candidate) too slow to be worth a second look
        wanted = [w for w in registry.WORKLOADS if w.left_out and self.wanted(w.left_out)]
        self.report["left_out"] = [w.left_out for w in wanted if set(w.tables) & set(args.sections)]
        for what in self.report["left_out"]:
            self.bar.write(f"bench: not run: {what}")

    def items(self, section: str) -> list[Any]:
        if section == "tiny":
            ops = [workload for workload in registry.WORKLOADS if workload.tiny]
            return [(w, mode) for w in ops for mode in TINY_LIMITS_US] if self.wanted(TINY_CASE.name) else []
        cases = overhead_cases() if section == "overhead" else registry.cases(section)
        if section == "growth":
            cases = [case for case in cases if case.data == "gaussian"]
        cases = [case for case in cases if self.wanted(case.name)]
        return [workload_of(case).quick(case) for case in cases] if self.args.quick else cases

    def candidates(self, case: Case) -> dict[str, Candidate]:
        known = workload_of(case).candidates
        others = [name for name in case.candidates if name not in self.args.skip] if self.args.peers else []
        return {name: known[name] for name in (OURS, *others)}

    def speed(self, case: Case) -> None:
        """Ours, the peers and the baseline, interleaved; answers of the first call checked on a sample."""
        workload = workload_of(case)
        tick = self.tick(case.name)
        data = workload.make_data(case)
        tick("reference")
        expected = workload.expect(case, data)
        entries: dict[str, dict[str, Any]] = {}
        calls: dict[str, Any] = {}
        first_s: dict[str, float] = {}
        for name, candidate in self.candidates(case).items():
            tick(f"prepare {name}")
            entry: dict[str, Any] = {"note": candidate.note}
            entries[name] = entry
            try:
                call = candidate.prepare(case, data, self.threads)
                start = time.perf_counter()
                result = call()
                first_s[name] = time.perf_counter() - start
                checked = workload.judge(case, name, candidate, result, expected)
                del result
            except ImportError as error:
                entry.update(status="missing", reason=str(error))
                continue
            except Exception as error:  # a peer that fails is a result too; ours must not fail
                if name == OURS:
                    raise
                entry.update(status="failed", reason=f"{type(error).__name__}: {error}"[:300])
                continue
            entry.update(status="ok", check=checked)
            calls[name] = timing.steady(call) if case.n == 1 else timing.clock(call)
        base = baseline(case, data, workload.product(case, data))
        others = timing.OtherProcesses()
        timed = {**base.calls, **calls}
        samples = timing.interleave(timed, self.args.repeats, self.args.budget, tick, first_s, others)
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
                "section": workload.tables[0],
                "name": case.name,
                **case.describe(),
                "data_sha256": data.sha256,
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
                "others_busy": others.share,
            }
        )

    codebooks = speed  # the same, in a table of its own

    @staticmethod
    def judge(case: Case, entries: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Met only if the ratio, every named peer and the sampled answers are all as asked."""
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

    def memory(self, case: Case) -> None:
        """One fresh process per candidate; peers that were slow in this run are left out."""
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

    def growth(self, case: Case) -> None:
        """Half of N, of M and of d against the whole: time must grow no faster than 2.2 times."""
        workload = workload_of(case)
        axes = ("n", "m", "d") if case.n > 1 else ("m", "d")
        calls, kept = {}, []
        for axis in ("whole", *axes):
            smaller = case if axis == "whole" else case.smaller(axis)
            data = workload.make_data(smaller)
            call = workload.ours.prepare(smaller, data, self.threads)
            kept.append((data, call))
            calls[axis] = timing.clock(call)
        others = timing.OtherProcesses()
        tick = self.tick(f"growth {case.name}")
        samples = timing.interleave(calls, self.args.repeats, self.args.budget / 2, tick, others=others)
        ratios = {a: round(samples["whole"].median / samples[a].median, 3) for a in axes}
        self.add(
            {
                "section": "growth",
                "name": case.name,
                "ratios": ratios,
                "candidates": {name: self.stats(s) for name, s in samples.items()},
                "target": {"limit": GROWTH_LIMIT},
                "met": max(ratios.values()) <= GROWTH_LIMIT,
                "others_busy": others.share,
            }
        )

    def overhead(self, case: Case) -> None:
        """A plain tensor, packed in the call, against the prepared Bank."""
        workload = workload_of(case)
        data = workload.make_data(case)
        calls = {
            name: timing.steady(workload.candidates[name].prepare(case, data, self.threads)) for name in (OURS, PLAIN)
        }
        others = timing.OtherProcesses()
        tick = self.tick(f"overhead {case.name}")
        samples = timing.interleave(calls, self.args.repeats, self.args.budget / 2, tick, others=others)
        ratio = round(samples[PLAIN].median / samples[OURS].median, 4)
        self.add(
            {
                "section": "overhead",
                "name": case.name,
                **case.describe(),
                "ratio": ratio,
                "candidates": {name: self.stats(s) for name, s in samples.items()},
                "target": {"limit": OVERHEAD_LIMIT},
                "met": ratio <= OVERHEAD_LIMIT,
                "others_busy": others.share,
            }
        )

    def tiny(self, item: tuple[Workload, str]) -> None:
        """Microseconds of one call on one query, by gradient mode."""
        workload, mode = item
        tiny, op = workload.tiny, workload.op
        assert tiny is not None
        data = draw(TINY_CASE, torch.Generator().manual_seed(0))
        loops = 200 if self.args.quick else 2000
        calls = {OURS: timing.per_call(tiny.ours(data, mode == "requires_grad"), loops)}
        if self.args.peers and mode != "requires_grad":
            calls["torch expression"] = timing.per_call(tiny.torch(data), loops)
        tick = self.tick(f"tiny {op} {mode}")
        grad = mode in ("plain", "requires_grad")
        with torch.inference_mode(mode == "inference_mode"), torch.set_grad_enabled(grad):
            samples = timing.interleave(calls, self.args.repeats, self.args.budget, tick)
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
