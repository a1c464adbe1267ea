#!/usr/bin/env python3
"""One command for every row of the bench table: `python bench/run.py`, then see bench/results.

Nothing here asserts a speed: rows carry their target, and the table says met or missed.
"""

from __future__ import annotations

import argparse
import os
import sys
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
    parser.add_argument(
        "--out", type=Path, help="JSON to write; the table and plots go beside it (default: bench/results)"
    )
    parser.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, default=True, help="other libraries, in the same rounds"
    )
    parser.add_argument("--skip", nargs="+", default=[], metavar="PEER", help="peers to leave out, by name")
    parser.add_argument(
        "--memory-peers", action=argparse.BooleanOptionalAction, default=True, help="peers in the memory rows too"
    )
    parser.add_argument("--repeats", type=int, help="samples per candidate (default 11, quick 3)")
    parser.add_argument(
        "--budget", type=float, help="seconds a candidate may take per case (default 12, quick or on a GPU 1)"
    )
    parser.add_argument("--seconds", type=float, help="on a GPU: start no further row after so many")
    parser.add_argument("--resume", action="store_true", help="on a GPU: keep the rows of --out, go on after them")
    parser.add_argument("--threads", type=int, help="threads for every candidate (default: torch's own)")
    parser.add_argument(
        "--wait-quiet",
        type=float,
        default=0.0,
        metavar="S",
        help="wait up to S seconds a row until other processes use under 5 %% of the machine",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="which rows, and where they run")
    args = parser.parse_args(argv)
    if args.sections and args.device == "cuda":
        parser.error("--sections: the rows on a GPU are one table; choose among them by --only")
    args.repeats = args.repeats or (3 if args.quick else 11)
    args.budget = args.budget or (1.0 if args.quick or args.device == "cuda" else 12.0)
    every = CUDA_SECTIONS if args.device == "cuda" else SECTIONS
    chosen = every if args.device == "cuda" else args.sections or every
    args.sections = [section for section in every if section in chosen]
    if args.out is None:
        partial = args.only is not None or set(args.sections) != set(every) or not args.peers
        name = "quick" if args.quick else "partial" if partial else args.device
        args.out = ROOT / "bench" / "results" / f"{name}.json"
    return args


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

        bench: Any = CudaBench(args)
    else:
        from bench.cpu_run import CpuBench

        bench = CpuBench(args)
    bench.run()
    bench.save()
    from bench import report

    print(report.write(args.out))
    return 1 if bench.report.get("failures") else 0


if __name__ == "__main__":
    sys.exit(main())
