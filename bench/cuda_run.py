"""The rows on a GPU: `bench/run.py --device cuda` comes here. It has run on an NVIDIA H200."""

from __future__ import annotations

import argparse
import faulthandler
import json
import time
from dataclasses import replace
from typing import Any

import torch

from bench import cuda_candidates, cuda_cases, registry, timing
from bench.baselines import Baseline
from bench.cases import OURS, Data
from bench.check import Expected
from bench.cuda_cases import KERNEL_SHARE, MEMORY_MIB, PATHS, CudaCase
from bench.memory import MIB, result_bytes
from bench.registry import workload_of
from bench.runner import Runner

LARGE = 8192  # the large product: LARGE^3
COPIED = 1 << 30  # bytes of the large copy
PRODUCT_BYTES = 2 << 30  # of a baseline's scores written at once
REASON_CHARS = 300
ROW_S = 75.0  # a row that takes longer hangs: the process says where it is, and ends


class CudaBench(Runner):
    """One section that gives a row of times and a row of memory for every case."""

    rows_per_step = 2
    place = "cuda"  # a test runs the same code on the CPU, with a clock of its own

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args, cuda_candidates.packages())
        self.started = time.monotonic()
        self.report["gpu"] = self.gpu()
        self.report["left_out"] = []
        self.report["failures"] = []  # rows that ended in an error of ours, and wrong answers of ours
        self.done: set[str] = set()
        if args.resume and args.out.exists():
            self.resume(json.loads(args.out.read_text()))

    def resume(self, before: dict[str, Any]) -> None:
        """Goes on after a process that ended within a row: that row is a failure, and those before it are kept."""
        self.report.update({name: before[name] for name in ("rows", "failures") if name in before})
        failed = {text.split(": ")[0] for text in self.report["failures"]}
        self.done = {row["name"] for row in self.report["rows"]} | failed
        if name := before.get("running"):
            self.report["failures"].append(f"{name}: the process ended in this row (it hung, or broke the device)")
            self.done.add(name)

    # What touches the device, one small method each.

    def clock(self, call: timing.Call) -> timing.Timed:
        return timing.clock(call, self.place)

    def gpu(self) -> dict[str, Any]:
        from vecbank import _cuda

        facts = torch.cuda.get_device_properties(0)
        return {
            "name": facts.name,
            "capability": f"{facts.major}.{facts.minor}",
            "memory_gib": round(facts.total_memory / 2**30, 1),
            "multiprocessors": facts.multi_processor_count,
            "l2_mib": round(facts.L2_cache_size / 2**20, 1),
            "torch_cuda": torch.version.cuda,
            "kernels_for": _cuda.module.architectures() if _cuda.module else None,
            **self.rates(LARGE, COPIED),
        }

    def rates(self, size: int, copied: int) -> dict[str, Any]:
        """TFLOP/s of one large product in each arithmetic, and TB/s of one large copy (read and written bytes)."""
        calls: dict[str, timing.Timed] = {}
        for name in ("bfloat16", "float32", "tf32"):
            dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
            a, b = (torch.randn(size, size, device=self.place).to(dtype) for _ in range(2))
            calls[name] = self.clock(cuda_candidates.with_tf32(name == "tf32", lambda a=a, b=b: torch.mm(a, b.T)))
        source = torch.empty(copied, dtype=torch.uint8, device=self.place)
        target = torch.empty_like(source)
        calls["copy"] = self.clock(lambda: target.copy_(source))
        found = self.interleave(calls)
        return {
            "tflop_per_s": {n: 2e-12 * size**3 / s.median for n, s in found.items() if n != "copy"},
            "copy_tbyte_per_s": 2e-12 * copied / found["copy"].median,
        }

    def interleave(self, calls: dict[str, timing.Timed], label: str = "large products") -> dict[str, timing.Samples]:
        tick = self.tick(label)
        return timing.interleave(calls, self.args.repeats, self.args.budget, tick, pause_s=0.0)

    def extra_mib(self, call: timing.Call) -> float | None:
        """Peak of torch's allocator in one call, beyond what was there and what is returned."""
        if self.place != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - before - result_bytes(result)) / MIB, 2)

    def main_kernels(self, call: timing.Call) -> int | None:
        """How many kernels take more than KERNEL_SHARE of a call; None where the profiler sees none."""
        if self.place != "cuda":
            return None
        from torch.profiler import ProfilerActivity, profile

        try:
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                call()
                torch.cuda.synchronize()
        except RuntimeError:
            return None
        times = [e.device_time_total for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        return sum(t > KERNEL_SHARE * sum(times) for t in times) or None

    # The rows.

    def items(self, section: str) -> list[Any]:
        if section != "cuda":
            return []
        kept = [case for case in registry.CUDA_CASES if self.wanted(case.name)]
        return [cuda_cases.quick(c) for c in kept] if self.args.quick else kept

    def names(self, case: CudaCase) -> list[str]:
        ours = [OURS, *(name for name in case.candidates if name in PATHS)]
        others = [name for name in case.candidates if name not in PATHS] if self.args.peers else []
        return [name for name in (*ours, *others) if name not in self.args.skip or name == OURS]

    def cuda(self, case: CudaCase) -> None:
        if case.name in self.done:
            return
        if self.args.seconds and time.monotonic() - self.started > self.args.seconds:
            self.report["left_out"].append(case.name)
            self.save()
            return
        self.report["running"] = case.name
        self.save()
        if self.place == "cuda":
            faulthandler.dump_traceback_later(ROW_S, exit=True)
        try:
            cuda_candidates.with_tf32(case.tf32, lambda: self.measure(case))()
        except Exception as error:  # the other rows are still worth having
            self.wait()  # raises where the device is lost to this process: another one goes on (--resume)
            self.report["failures"].append(f"{case.name}: {type(error).__name__}: {error}"[:REASON_CHARS])
        finally:
            faulthandler.cancel_dump_traceback_later()
        del self.report["running"]
        self.save()
        self.give_back()

    def wait(self) -> None:
        if self.place == "cuda":
            torch.cuda.synchronize()

    def give_back(self) -> None:
        if self.place == "cuda":
            torch.cuda.empty_cache()

    def measure(self, case: CudaCase) -> None:
        tick = self.tick(case.name)
        data = cuda_candidates.make_data(case, self.place)
        tick("reference")
        expected = workload_of(case).expect(case, data)
        entries: dict[str, dict[str, Any]] = {}
        calls: dict[str, timing.Call] = {}
        factors: dict[str, int] = {}
        for name in self.names(case):
            tick(f"prepare {name}")
            entries[name] = {"note": cuda_candidates.candidate(name, case).note}
            try:
                calls[name], factors[name], found = self.prepare(name, case, data, expected)
                entries[name].update(status="ok", check=found)
            except ImportError as error:
                entries[name].update(status="not installed", reason=str(error))
            except Exception as error:  # a peer or a path that fails is a result too; the default ends the row
                if name == OURS:
                    raise
                status = "not run" if name in PATHS else "failed"
                entries[name].update(status=status, reason=f"{type(error).__name__}: {error}"[:REASON_CHARS])
            if name not in calls:
                self.give_back()  # what a failed candidate may have left
        for name, entry in entries.items():
            if name.startswith(OURS) and entry.get("check", {}).get("ok") is False:
                self.report["failures"].append(f"{case.name}: wrong answers of {name}: {entry['check']}")
        base = self.baseline(case, data)
        samples = self.interleave({**base.calls, **{n: self.clock(c) for n, c in calls.items()}}, case.name)
        fastest = min(base.calls, key=lambda name: samples[name].median)
        unit_s, unit_least = samples[fastest].median, samples[fastest].least
        memory: dict[str, Any] = {}
        for name, call in calls.items():
            sampled, factor = samples[name], factors[name]
            sampled.seconds = [s * factor for s in sampled.seconds]
            entries[name].update(self.stats(sampled), ratio=round(sampled.median / unit_s, 4))
            entries[name]["ratio_of_minima"] = round(sampled.least / unit_least, 4)
            entries[name]["tflop_per_s"] = case.flops / sampled.median / 1e12
            extra = self.extra_mib(call)
            memory[name] = {"error": "not measured on this device"} if extra is None else {"extra_mib": extra}
            if case.most_kernels is not None and name.startswith(OURS):
                entries[name]["kernels"] = self.main_kernels(call)
        device = self.report["gpu"]["name"]
        verdict = cuda_cases.judge(case, entries, OURS, device)
        peak = self.report["gpu"]["tflop_per_s"][case.arithmetic]
        self.add(
            {
                "section": "cuda",
                "name": case.name,
                **case.describe(),
                "baseline": {
                    "kind": base.kind,
                    "how": base.how,
                    "fastest": fastest,
                    "gflop_per_s": case.flops / unit_s / 1e9 if base.kind == "product" else None,
                    "gbyte_per_s": self.bank_bytes(data) / unit_s / 1e9 if base.kind == "read" else None,
                    "candidates": {name: self.stats(samples[name]) for name in base.calls},
                },
                "candidates": entries,
                "share_of_large_product": entries[OURS]["tflop_per_s"] / peak,
                "target": {
                    "limit": case.target.limit,
                    "peers": dict(case.target.peers),
                    "ms": case.most_ms,
                    "kernels": case.most_kernels,
                    "line": verdict["line"],
                },
                "target_text": case.target_text(),
                "against_peers": cuda_cases.against(entries, case),
                "absent": verdict["absent"],
                "paths": {
                    name: cuda_cases.judge(case, entries, name, device)["met"]
                    for name in entries
                    if name in PATHS and entries[name]["status"] == "ok"
                },
                "met": verdict["met"],
                "others_busy": None,
            }
        )
        extra = memory[OURS].get("extra_mib")
        self.add(
            {
                "section": "memory",
                "name": case.name,
                "candidates": memory,
                "target": {"limit": MEMORY_MIB},
                "met": None if extra is None else extra <= MEMORY_MIB,
            }
        )

    def prepare(
        self, name: str, case: CudaCase, data: Data, expected: Expected
    ) -> tuple[timing.Call, int, dict[str, object]]:
        """The call, how many times its time counts, and what its first answer was like."""
        peer, times = case.share or (None, 1)
        if name == peer and times > 1:
            rows = max(1, case.n // times)
            fewer = Data(data.x[:rows], data.bank, None if data.upstream is None else data.upstream[:rows])
            call = cuda_candidates.prepare(name, replace(case, n=rows), fewer)
            call()
            return call, times, {"ok": None, "why": f"1 / {times} of the rows, its time x {times}"}
        call = cuda_candidates.prepare(name, case, data)
        found = workload_of(case).judge(case, name, cuda_candidates.candidate(name, case), call(), expected)
        return call, 1, found

    @staticmethod
    def bank_bytes(data: Data) -> int:
        return data.bank.numel() * data.bank.element_size()

    def baseline(self, case: CudaCase, data: Data) -> Baseline:
        """One product of the row's shape and dtype, or a copy that moves as many bytes as the bank holds."""
        if case.baseline == "read":
            half = data.bank.flatten().view(torch.uint8)[: self.bank_bytes(data) // 2]
            target = torch.empty_like(half)
            how = "a copy of half the bank: as many bytes read and written as the bank holds"
            return Baseline("read", how, {"copy": self.clock(lambda: target.copy_(half))})
        bank = workload_of(case).product(case, data).to(data.x.dtype)
        rows = max(1, min(case.n, PRODUCT_BYTES // (case.m * data.x.element_size())))
        x, scale = data.x[:rows], case.flops / (2.0 * rows * case.m * case.d)
        product = self.clock(lambda: torch.mm(x, bank.T))
        how = f"one torch.mm of {rows} rows that allocates its result, times {scale:.2f}"
        return Baseline("product", how, {"product": lambda: product() * scale})
