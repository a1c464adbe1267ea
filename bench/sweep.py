#!/usr/bin/env python3
"""Every verb and module at many shapes beside what people write: `python -m bench.sweep` (`--short`: 3 minutes).

`--random N` draws N shapes of the four verbs instead, which nobody chose.

A shape is slower where it takes over 10 % and over 10 us longer than the expression, a module's step where it takes
over 5 % longer than the peer's. Nothing here asserts it: the table has the worst ratio first.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import machine, sweep_modules, sweep_random, sweep_verbs, timing
from bench.report import committed, named, seconds, table
from bench.runner import Plain, tqdm
from bench.sweep_verbs import Shape
from bench.timing import Call

RESULTS = Path(__file__).resolve().parent / "results"
MODULE_LIMIT, VERB_LIMIT, VERB_MARGIN_S = 1.05, 1.10, 10e-6
PAUSE_S = 0.004  # between blocks, so that no candidate meets the spinning threads of the other
BLOCK_S = 0.02  # calls of one candidate in a row
FEW = 5
SLOW_S = 4.0  # a call longer than this is made once


def pair_times(ours: Call, theirs: Call, budget_s: float, most: int) -> tuple[list[float], list[float]]:
    """Seconds of single calls of both in turn, in blocks; at least FEW and at most `most` of each."""
    calls = (ours, theirs)
    first = []
    for call in calls:
        start = time.perf_counter()
        call()
        seconds_of_it = time.perf_counter() - start
        if seconds_of_it < SLOW_S:
            start = time.perf_counter()
            call()
            seconds_of_it = time.perf_counter() - start
        first.append(seconds_of_it)
    if max(first) >= SLOW_S:
        return [first[0]], [first[1]]
    count = max(FEW, min(most, int(budget_s / sum(first))))
    block = max(1, min(count, int(BLOCK_S / max(first))))
    found: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.disable()
    try:
        while len(found[0]) < count:
            for call, seen in zip(calls, found, strict=True):
                time.sleep(PAUSE_S)
                for _ in range(block):
                    start = time.perf_counter()
                    result = call()
                    seen.append(time.perf_counter() - start)
                    del result
    finally:
        gc.enable()
    return found


def agreement(ours: Any, theirs: Any) -> float | None:
    """The share of equal whole numbers in two answers (ties may differ), or 1 - the largest relative difference."""
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        if ours.shape != theirs.shape:
            return None
        if not ours.is_floating_point():
            return round(float((ours == theirs).double().mean()), 4) if ours.numel() else 1.0
        a, b = ours.detach().double(), theirs.detach().double()
        same = a == b  # infinities too
        difference = torch.where(same, 0.0, a - b).abs().max() if a.numel() else 0.0
        finite = b[b.isfinite()]
        return round(1 - float(difference / finite.abs().max().clamp(min=1e-30)), 4) if finite.numel() else 1.0
    if isinstance(ours, (tuple, list)) and isinstance(theirs, (tuple, list)):
        pairs = [agreement(a, b) for a, b in zip(ours, theirs, strict=False)]
        known = [share for share in pairs if share is not None]
        return min(known) if known else None
    return None


def measure(shape: Shape, budget_s: float) -> dict[str, Any]:
    ours, theirs = shape.make(torch.Generator().manual_seed(0))
    agree = agreement(ours(), theirs()) if shape.verb != "module" else None
    found = pair_times(ours, theirs, budget_s, 200)
    ours_s, theirs_s = (statistics.median(samples) for samples in found)
    module = shape.verb == "module"
    slower = ours_s > MODULE_LIMIT * theirs_s if module else (
        ours_s > VERB_LIMIT * theirs_s and ours_s > theirs_s + VERB_MARGIN_S
    )  # fmt: skip
    return {
        "verb": shape.verb,
        "name": shape.name,
        "peer": shape.peer,
        "ours_s": round(ours_s, 9),
        "theirs_s": round(theirs_s, 9),
        "ratio": round(ours_s / theirs_s, 4),
        "ratio_of_minima": round(min(found[0]) / min(found[1]), 4),
        "samples": len(found[0]),
        "agree": agree,
        "slower": slower,
    }


def _command(parameters: dict[str, Any]) -> str:
    drawn = f" --random {parameters['random']} --seed {parameters['seed']}" if parameters.get("random") else ""
    short, only = " --short" * parameters["short"], f" --only {parameters['only']!r}" if parameters["only"] else ""
    return f"python -m bench.sweep{drawn}{short}{only} --budget {parameters['budget_s']:g}"


def markdown(report: dict[str, Any]) -> str:
    rows = sorted(report["rows"], key=lambda row: -row["ratio"])
    slower = sum(row["slower"] for row in rows)
    close = sum(row["ratio"] > VERB_LIMIT and not row["slower"] for row in rows)
    soft, parameters = report["software"], report["parameters"]
    drawn = f" drawn at random (seed {parameters['seed']})" if parameters.get("random") else ""
    lines = [
        [
            ("**" + row["name"] + "**") if row["slower"] else row["name"],
            seconds(row["ours_s"]),
            seconds(row["theirs_s"]),
            f"{row['ratio']:.2f}",
            f"{row['ratio_of_minima']:.2f}",
            "-" if row["agree"] is None else f"{row['agree']:.3f}",
        ]
        for row in rows
    ]
    head = [
        "# Never slower than what people write",
        "",
        f"- {named(report['machine'])}, {soft['threads']} threads for everybody; vecbank {soft['vecbank']}, "
        f"ISA {soft['isa']}, torch {soft['torch']}, {committed(report)}",
        f"- {len(rows)} shapes{drawn}, worst first; **{slower}** count as slower (bold): over "
        f"{100 * (VERB_LIMIT - 1):.0f} % and 10 µs slower than the torch expression, "
        f"or over {100 * (MODULE_LIMIT - 1):.0f} % than the step of {sweep_modules.PEER}'s module",
        f"- {close} others are over {100 * (VERB_LIMIT - 1):.0f} % "
        f"slower, by less than 10 µs; made by `{_command(parameters)}`",
        "- Medians of 5 to 200 single calls in turn; agree: the least over the outputs of the share of equal indices, "
        "or 1 - the largest relative difference; low where scores tie, or torch rounds them to 16 bits",
        "",
        "",
    ]
    return "\n".join(head) + table(["shape", "vecbank", "torch or peer", "ratio", "of minima", "agree"], lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Every shape a dot: the time of the expression across, our ratio to it up."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 6), dpi=90)
    verbs = list(dict.fromkeys(row["verb"] for row in report["rows"]))
    for place, verb in enumerate(verbs):
        rows = [row for row in report["rows"] if row["verb"] == verb]
        axes.scatter(
            [row["theirs_s"] for row in rows],
            [row["ratio"] for row in rows],
            s=22,
            alpha=0.8,
            label=verb,
            color=plt.colormaps["tab20"](place),
            marker="s" if verb == "module" else "o",
        )
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.axhline(VERB_LIMIT, color="#c0392b", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="seconds of the torch expression, or of the peer's module",
             ylabel="time of vecbank, x that")  # fmt: skip
    worst = max(report["rows"], key=lambda row: row["ratio"])
    axes.annotate(f"{worst['name']}: {worst['ratio']:.2f}", (worst["theirs_s"], worst["ratio"]), fontsize=8,
                  xytext=(6, 4), textcoords="offset points")  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, ncols=2)
    axes.set_title(f"{len(report['rows'])} shapes: below the dotted line vecbank is faster (red: 10 % slower)")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a fifth of the shapes, in about 3 minutes")
    parser.add_argument("--only", default="", metavar="SUBSTR", help="only shapes whose name contains this")
    parser.add_argument(
        "--budget",
        type=float,
        default=1.5,
        help="seconds to spend on a shape, for 5 calls or more of each side (default 1.5)",
    )
    parser.add_argument("--random", type=int, default=0, metavar="N", help="draw N shapes instead")
    parser.add_argument("--seed", type=int, default=0, help="of those that are drawn (default 0)")
    parser.add_argument("--out", type=Path, default=RESULTS / "sweep.json", help="JSON; table and plot go beside it")
    args = parser.parse_args(argv)
    every = [*sweep_verbs.shapes(), *sweep_modules.shapes()]
    wanted = [s for s in every if args.only.lower() in s.name.lower() and (s.short or not args.short)]
    if args.random:
        if args.random < 1 or args.only or args.short:
            parser.error("--random takes a number of at least 1, and goes with neither --only nor --short")
        wanted = list(sweep_random.shapes(args.random, args.seed))
    if not wanted:
        parser.error(f"no shape has a name that contains {args.only!r}")
    report: dict[str, Any] = {
        "schema": 1,
        **machine.commit(),
        "machine": machine.machine(),
        "software": machine.software(torch.get_num_threads(), {sweep_modules.PEER}),
        "parameters": {
            "short": args.short,
            "only": args.only,
            "random": args.random,
            "seed": args.seed,
            "budget_s": args.budget,
        },
        "rows": [],
    }
    others = timing.OtherProcesses()
    bar = (tqdm or Plain)(total=len(wanted), unit="shape", dynamic_ncols=True)
    for shape in wanted:
        bar.set_postfix_str(shape.name)
        with others:
            row = measure(shape, args.budget)
        report["rows"].append(row)
        if row["slower"]:
            bar.write(f"{row['ratio']:6.2f}  {row['name']}: {seconds(row['ours_s'])} / {seconds(row['theirs_s'])}")
        bar.update()
        gc.collect()
    bar.close()
    report["others_busy"] = others.share
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(markdown(report))
    plot(report, args.out.with_suffix(".png"))
    slower = sum(row["slower"] for row in report["rows"])
    print(f"{args.out.with_suffix('.md')}: {slower} of {len(wanted)} shapes are slower")
    return 0


if __name__ == "__main__":
    sys.exit(main())
