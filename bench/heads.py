"""Every width of a head against the one that is chosen: `python -m bench.heads [--only WORDS] [--out FILE.json]`.

For each case of topk_embeddings, and one whose rows have no direction: the time of a search with heads of fixed widths,
of all coordinates, and of the Bank's own choice, all in one interleaved run; beside them what the model predicts, how
long the Bank takes to prepare, and the share of memory that its packed copy takes. The figure to look at is
`chosen / best`. The answers are compared, too.
"""

from __future__ import annotations

import argparse
import json
import textwrap
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from tqdm import tqdm

import vecbank
from bench import machine, timing
from bench.cases import Case, Target
from bench.plots import whole_sizes
from bench.report import named, opening
from bench.workloads import topk_embeddings
from vecbank import _head
from vecbank._ops import METRICS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHARES = (1 / 12, 1 / 6, 1 / 4, 3 / 8, 1 / 2, 2 / 3, 5 / 6)  # of the width
CHOSEN = "chosen"
DOT = METRICS["dot"]
CASES = (
    *topk_embeddings.WORKLOAD.cases,
    Case("topk 1024 x 1,000,000, d 128, k 10", "topk_embeddings", 1024, 1_000_000, 128, "dot", Target(None), k=10),
)


def measure(case: Case, repeats: int, budget_s: float) -> dict[str, Any]:
    data = topk_embeddings.WORKLOAD.make_data(case)
    widths = sorted({max(16, round(share * case.d / 16) * 16) for share in SHARES} | {case.d})
    banks: dict[str, vecbank.Bank] = {}
    building = {}
    for name in [*map(str, widths), CHOSEN]:
        start = time.perf_counter()
        banks[name] = vecbank.Bank(data.bank, case.metric, head=None if name == CHOSEN else int(name)).prepare()
        building[name] = time.perf_counter() - start
    own = data.bank.numel() * data.bank.element_size()
    memory = {name: sum(made.pack.numel() for made in bank._packs.values()) / own for name, bank in banks.items()}
    calls = {name: (lambda bank=bank: bank.topk(data.x, case.k)) for name, bank in banks.items()}
    clocks = {name: timing.steady(call) if case.n == 1 else timing.clock(call) for name, call in calls.items()}
    expected = calls[str(case.d)]()
    wrong = [name for name, call in calls.items() if not torch.equal(call().indices, expected.indices)]
    others = timing.OtherProcesses()
    samples = timing.interleave(clocks, repeats, budget_s, others=others)
    milliseconds = {name: 1e3 * found.median for name, found in samples.items()}
    told = _head.predict(data.bank, DOT)
    told_of = {} if told is None else {str(head): cost / told.whole for head, cost in told.costs.items()}
    explained = banks[CHOSEN].explain(data.x, case.k)
    best = min((name for name in milliseconds if name != CHOSEN), key=lambda name: milliseconds[name])
    return {
        "name": case.name,
        "ms": milliseconds,
        "building_s": building,  # the axes and the choice included
        "memory_share": memory,  # of the packed copy, of the vectors' bytes
        "predicted": told_of,  # as a share of all coordinates
        "chosen": explained.head or case.d,
        "dimensions": explained.dimensions,
        "best": int(best),
        "chosen_over_best": milliseconds[CHOSEN] / milliseconds[best],
        "wrong": wrong,
        "others": others.share,
    }


def table(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    lines = [
        *opening("Heads of every width", "bench.heads", about),
        "- Medians of interleaved samples, in milliseconds; each head is a Bank of its own. Building: seconds, the "
        "axes and the choice included; of the chosen head, and at most. Memory: of the packed copy, as a share of the "
        "vectors. Others: the share of the machine that other processes used.",
        "",
        "| case | ms by width of the head (the last: all coordinates) | chosen | chosen / best | building, s | memory "
        "| others |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        by_width = ", ".join(f"{name}: {ms:.3g}" for name, ms in row["ms"].items() if name != CHOSEN)
        lines.append(
            f"| {row['name']} | {by_width} | {row['chosen']}: {row['ms'][CHOSEN]:.3g} ms | "
            f"{row['chosen_over_best']:.2f} | {row['building_s'][CHOSEN]:.2f}, "
            f"at most {max(row['building_s'].values()):.2f} | {max(row['memory_share'].values()):.2f} | "
            f"{row['others']} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(4.6 * columns, 3.3 * lines), squeeze=False)
    for axes in list(grid.flat)[len(rows) :]:
        axes.set_visible(False)
    for axes, row in zip(grid.flat, rows, strict=False):
        measured = sorted((int(name), ms) for name, ms in row["ms"].items() if name != CHOSEN)
        whole = measured[-1][1]
        told = sorted((int(name), share * whole) for name, share in row["predicted"].items())
        axes.plot(*zip(*told, strict=True), "--", color="#b9c2c9", label="predicted")
        axes.plot(*zip(*measured, strict=True), "o-", color="#1f6f8b", label="measured")
        axes.plot([row["chosen"]], [row["ms"][CHOSEN]], "s", color="#c0392b", label="the Bank's choice")
        axes.set_ylim(0, 1.5 * max(whole, row["ms"][CHOSEN]))
        axes.set_title("\n".join(textwrap.wrap(whole_sizes(row["name"]), 56)), fontsize=8)
        axes.set_xlabel("coordinates of the head (the last: all)", fontsize=8)
        axes.set_ylabel("ms", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    grid.flat[0].legend(fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name holds these words")
    parser.add_argument("--repeats", type=int, default=7, help="times of each width (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for each width (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("build/heads.json"), help="JSON; the table and the plot go beside it"
    )
    options = parser.parse_args()
    cases = [case for case in CASES if options.only in case.name]
    if not cases:
        parser.error(f"no case holds {options.only!r}; there are: {', '.join(case.name for case in CASES)}")
    if topk_embeddings.WORKLOAD.left_out is not None:
        print(topk_embeddings.WORKLOAD.left_out)
    rows = [measure(case, options.repeats, options.budget) for case in tqdm(cases, desc="heads", unit="case")]
    about = {**machine.machine(), **machine.commit(), "isa": vecbank._C.isa()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    write(rows, about, options.out)


def write(rows: list[dict[str, Any]], about: dict[str, Any], out: Path) -> None:
    """The table and the plot beside the JSON."""
    text = table(rows, about)
    out.with_suffix(".md").write_text(text + "\n")
    draw(rows, out.with_suffix(".png"), f"Heads of every width, {about['isa']}\n{named(about)}")
    print(text)


if __name__ == "__main__":
    main()
