"""Two builds of vecbank against each other: `python bench/ab.py BASE NEW [--isa avx2 ...]`.

BASE and NEW are folders that hold a built package `vecbank` (a checkout's `python/`). Each build runs in a process
of its own, the base in two. The processes take turns, case by case and round by round, so that a machine whose speed
drifts slows all of them. The processes are started a few times, because the addresses of their memory change the times
too. The figure is processor time on one thread. A/A is the base's second process over its first: a ratio closer to 1
than A/A is no evidence of a difference.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from typing import Any

Case = tuple[str, str, dict[str, Any]]

CASES: list[Case] = [
    ("topk 1024 x 100,000 d 128 k 10", "topk", {"n": 1024, "m": 100_000, "d": 128, "k": 10}),
    ("topk 1024 x 100,000 d 128 k 100", "topk", {"n": 1024, "m": 100_000, "d": 128, "k": 100}),
    ("topk 256 x 20,000 d 768 k 10, cosine", "topk", {"n": 256, "m": 20_000, "d": 768, "k": 10, "metric": "cosine"}),
    ("topk 1 x 400,000 d 128 k 10", "topk", {"n": 1, "m": 400_000, "d": 128, "k": 10}),
    ("topk 256 x 40,000 d 64 k 10, plain tensor", "plain", {"n": 256, "m": 40_000, "d": 64, "k": 10}),
    ("topk 64 x 20,000 d 64 k 4000 (refined only)", "topk", {"n": 64, "m": 20_000, "d": 64, "k": 4000}),
    ("topk masked 256 x 40,000 d 64 k 10", "masked", {"n": 256, "m": 40_000, "d": 64, "k": 10}),
    ("nearest 8192 x 8192 d 64", "nearest", {"n": 8192, "m": 8192, "d": 64, "metric": "sqeuclidean"}),
    ("nearest 65536 x 512 d 32", "nearest", {"n": 65536, "m": 512, "d": 32, "metric": "sqeuclidean"}),
    ("nearest 65536 x 512 d 8", "nearest", {"n": 65536, "m": 512, "d": 8, "metric": "sqeuclidean"}),
    ("quantize 16384 x 1024 d 256", "quantize", {"n": 16384, "m": 1024, "d": 256, "metric": "sqeuclidean"}),
    ("quantize 1024 x 1024 d 64, all rows equal", "equal", {"n": 1024, "m": 1024, "d": 64, "metric": "sqeuclidean"}),
    ("residual 8192, 8 x 1024 d 64", "residual", {"n": 8192, "m": 1024, "d": 64}),
    ("project 8192 x 1024 d 256, cosine", "project", {"n": 8192, "m": 1024, "d": 256, "metric": "cosine"}),
    ("project 2048 x 4096 d 64, plain, l2", "project_plain", {"n": 2048, "m": 4096, "d": 64, "metric": "l2"}),
    ("project 1024 x 1024 d 128, float64", "project64", {"n": 1024, "m": 1024, "d": 128, "metric": "dot"}),
    ("pack 50,000 d 128, cosine", "pack", {"n": 1, "m": 50_000, "d": 128, "metric": "cosine"}),
    ("1 x 8 d 8, a Bank: topk, 200 calls", "tiny", {"n": 1, "m": 8, "d": 8, "k": 1}),
]


def serve() -> None:
    """The process of one build: reads a case's number and how often to call it, answers with milliseconds a call."""
    import time

    import torch

    import vecbank

    torch.set_num_threads(1)
    ops = torch.ops.vecbank
    built: dict[int, Any] = {}

    def build(kind: str, a: dict[str, Any]) -> Any:
        random = torch.Generator().manual_seed(0)
        metric = a.get("metric", "dot")
        code = {"dot": 0, "cosine": 1, "l2": 2, "sqeuclidean": 3}[metric]
        x = torch.randn(a["n"], a["d"], generator=random)
        b = torch.randn(a["m"], a["d"], generator=random)
        if kind == "equal":
            b = b[:1].expand(a["m"], a["d"]).contiguous()
        if kind == "project64":
            x, b = x.double(), b.double()
        if kind == "pack":
            return lambda: ops.pack(b, code)
        if kind == "plain":
            return lambda: ops.topk(x, b, None, a["k"], code)
        if kind == "project_plain":
            return lambda: ops.project(x, b, None, code)
        packed = ops.pack(b, code)
        if kind == "masked":
            mask = torch.rand(a["n"], a["m"], generator=random) < 0.5
            return lambda: ops.topk(x, b, packed, a["k"], code, mask)
        if kind == "residual":
            codebooks = [b * 0.7**s for s in range(8)]
            packs = [ops.pack(codebook, 3) for codebook in codebooks]
            return lambda: ops.residual_quantize(x, codebooks, packs, 3)
        if kind == "tiny":
            bank = vecbank.Bank(b, metric="dot")
            return lambda: [bank.topk(x, 1) for _ in range(200)]
        if kind == "topk":
            return lambda: ops.topk(x, b, packed, a["k"], code)
        if kind in ("project", "project64"):
            return lambda: ops.project(x, b, packed, code)
        if kind == "nearest":
            return lambda: ops.nearest(x, b, packed, code)
        return lambda: ops.quantize(x, b, packed, code)

    print("ready", flush=True)
    for line in sys.stdin:
        number, calls = map(int, line.split())
        if number not in built:
            built.clear()
            built[number] = build(*CASES[number][1:])
            built[number]()
        start = time.process_time()
        for _ in range(calls):
            built[number]()
        print((time.process_time() - start) * 1e3 / calls, flush=True)


class Build:
    """A build in a process of its own."""

    def __init__(self, folder: str, isa: str | None) -> None:
        environment = {**os.environ, "PYTHONPATH": folder, **({"VECBANK_ISA": isa} if isa else {})}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("ab: a build ended before it answered; its message is above")
        return line.strip()

    def time(self, case: int, calls: int = 1) -> float:
        """Milliseconds of processor time a call."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{case} {calls}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(base: str, new: str, isa: str | None, rounds: int, starts: int, wanted: str) -> list[str]:
    """The rows of a table: case, median milliseconds of both builds, new / base, base / base."""
    cases = [number for number, (name, _, _) in enumerate(CASES) if wanted in name]
    times: dict[int, list[list[float]]] = {number: [[], [], []] for number in cases}
    for start in range(starts):
        builds = [Build(folder, isa) for folder in (base, new, base)]
        for number in cases:
            once = min(build.time(number) for build in builds)
            calls = max(1, min(50, round(40 / max(once, 0.1))))
            for _ in range(rounds):
                for build, seen in zip(builds, times[number], strict=True):
                    seen.append(build.time(number, calls))
            print(
                f"\r{isa or 'default'}: start {start + 1} of {starts}, {CASES[number][0]:50}", end="", file=sys.stderr
            )
        for build in builds:
            build.close()
    print(file=sys.stderr)
    rows = []
    for number in cases:
        first, second, again = times[number]
        a, b = statistics.median(first + again), statistics.median(second)
        ratio = statistics.median(2 * y / (x + z) for x, y, z in zip(first, second, again, strict=True))
        same = statistics.median(z / x for x, z in zip(first, again, strict=True))
        rows.append(f"| {CASES[number][0]} | {a:.2f} | {b:.2f} | {ratio:.3f} | {same:.3f} |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="the folder of the base's package (its python/)")
    parser.add_argument("new", help="the folder of the new package")
    parser.add_argument("--isa", nargs="*", default=[None], help="instruction sets to force, one table each")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds a case and start (default 5)")
    parser.add_argument("--starts", type=int, default=5, help="how often the processes are started (default 5)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", help="a Markdown file to write the tables to")
    args = parser.parse_args()
    lines = []
    for isa in args.isa:
        lines += ["", f"### {isa or 'default instruction set'}", ""]
        lines += ["| case | base, ms | new, ms | new / base | A/A |", "|---|---|---|---|---|"]
        lines += compare(args.base, args.new, isa, args.rounds, args.starts, args.only)
    if args.out:
        with open(args.out, "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    serve() if "--serve" in sys.argv else main()
