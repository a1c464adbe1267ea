"""Searches among candidate sets, within a radius, and their check: `python -m bench.selections [--out FILE.json]`.

Every row times ours beside what is written today and beside the plain search that it is held against, in one
interleaved run. The answers are compared: every row that differs from the exact answer is counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import matplotlib
import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from tqdm import tqdm

import vecbank
from bench import machine, timing
from bench.memory import status_bytes
from bench.report import named, opening
from vecbank import Allowed

matplotlib.use("Agg")
import matplotlib.pyplot as plt

N, D, K = 1024, 128, 10
OURS = "vecbank"
TITLE = "Candidate sets, radius, verification"


@dataclass
class Row:
    name: str
    against: str  # the candidate that the target is a ratio to
    target: float  # at most
    calls: dict[str, Callable[[], Any]]
    wrong: Callable[[], int]  # queries whose answer is not the exact one
    repeats: dict[str, int] = field(default_factory=dict)
    note: str = ""


def differs(indices: Tensor, x: Tensor, bank: vecbank.Bank, allowed: Allowed | Tensor | None) -> int:
    checked = vecbank.verify(x, bank, indices, allowed=allowed)
    return int((~checked.right).sum())


def peak_mib(call: Callable[[], Any]) -> float:
    """How much the process grows during a call."""
    call()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status_bytes("VmRSS")
    call()
    return (status_bytes("VmHWM") - before) / 2**20


def packed(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.numpy(), axis=-1, bitorder="little"))


def gathered(x: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """What is written today: the allowed rows, their product with the queries, the best of it."""
    own = rows[ids]
    squares = own.square().sum(1)
    found = [ids[(squares - 2 * (part @ own.T)).topk(K, largest=False).indices] for part in x.split(256)]
    return torch.cat(found)


def shared(x: Tensor, rows: Tensor, bank: vecbank.Bank, index: faiss.Index) -> Iterator[Row]:
    """One set for all queries."""
    for share in (0.5, 0.1, 0.01, 0.001):
        mask = torch.rand(len(rows), generator=torch.Generator().manual_seed(1)) < share
        ids = mask.nonzero().squeeze(1)
        selector = faiss.IDSelectorBitmap(packed(mask).numpy())
        parameters = faiss.SearchParameters(sel=selector)
        calls = {
            OURS: lambda mask=mask: bank.topk(x, K, allowed=mask),
            "unmasked": lambda: bank.topk(x, K),
            "faiss, selector": lambda p=parameters: index.search(x.numpy(), K, params=p),
        }
        if share < 0.3:  # else the product alone takes gigabytes
            calls["gather + mm + topk"] = lambda ids=ids: gathered(x, rows, ids)
        yield Row(
            f"topk {N} x {len(rows):,}, d {D}, k {K}, {share:.1%} allowed, one set",
            "unmasked",
            1.1 if share > 0.01 else 0.05,
            calls,
            lambda mask=mask: differs(bank.topk(x, K, allowed=mask).indices, x, bank, mask),
            {"faiss, selector": 1},
        )


def of_each(x: Tensor, bank: vecbank.Bank, m: int) -> Iterator[Row]:
    """A set for every query."""
    for share in (0.5, 0.1, 0.01):
        mask = torch.rand(N, m, generator=torch.Generator().manual_seed(2)) < share
        bits = Allowed.bits(packed(mask))

        def after(mask: Tensor = mask, wanted: int = round(2 * K / share)) -> Tensor:
            """Post-filtering: as many ranks as hold k allowed rows twice over, on average."""
            found = bank.topk(x, min(m, wanted)).indices
            kept = mask.gather(1, found)
            order = (~kept).byte().argsort(dim=1, stable=True)[:, :K]
            return torch.where(kept.gather(1, order), found.gather(1, order), -1)

        for kind, allowed, target in (("bits", bits, 1.1), ("bool", mask, 1.3)):
            yield Row(
                f"topk {N} x {m:,}, d {D}, k {K}, {share:.1%} allowed, a set each, {kind}",
                "unmasked",
                target,
                {
                    OURS: lambda allowed=allowed: bank.topk(x, K, allowed=allowed),
                    "unmasked": lambda: bank.topk(x, K),
                    "post-filtering": after,
                },
                lambda allowed=allowed: differs(bank.topk(x, K, allowed=allowed).indices, x, bank, allowed),
                {"post-filtering": 3},
                f"post-filtering is wrong for {differs(after(), x, bank, bits)} queries; the set takes "
                f"{(bits._leaves[0].tensors[0] if kind == 'bits' else mask).numel() / 2**20:.0f} MiB",
            )


def not_self() -> Row:
    x = torch.randn(40_000, 384, generator=torch.Generator().manual_seed(3))
    bank = vecbank.Bank(x, "cosine").prepare("search")
    allowed = Allowed.not_self()

    def drop() -> Tensor:
        """What is written today: one rank more, and the query itself dropped from it."""
        found = bank.topk(x, K + 1).indices
        others = found != torch.arange(len(x)).unsqueeze(1)
        others[others.all(1), K] = False
        return found[others].reshape(len(x), K)

    return Row(
        "topk 40,000 x 40,000, d 384, k 10, not itself",
        "k + 1, drop itself",
        1.02,
        {OURS: lambda: bank.topk(x, K, allowed=allowed), "k + 1, drop itself": drop, "k": lambda: bank.topk(x, K)},
        lambda: int((bank.topk(x, K, allowed=allowed).indices != drop()).any(1).sum()),
        note=f"{peak_mib(lambda: bank.topk(x, K, allowed=allowed)):.0f} MiB at most beyond what there was; "
        f"an N x M mask takes {len(x) ** 2 / 2**20:.0f} MiB",
    )


def radius(x: Tensor, rows: Tensor, bank: vecbank.Bank, index: faiss.Index) -> Row:
    distances = bank.topk(x, 400, metric="l2").values
    # The radius with about 100 hits a query on average: few queries lie amid many rows.
    r = float(np.quantile(distances.numpy(), 100 / 400))
    trees = NearestNeighbors(algorithm="brute", n_jobs=-1).fit(rows.numpy())
    few = x[:32].numpy()
    hits = bank.radius(x, r)
    return Row(
        f"radius {N} x {len(rows):,}, d {D}, {len(hits.indices) / N:.0f} hits a query",
        "faiss, range_search",
        0.8,
        {
            OURS: lambda: bank.radius(x, r),
            "faiss, range_search": lambda: index.range_search(x.numpy(), r * r),
            "scikit-learn, 32 queries x 32": lambda: trees.radius_neighbors(few, r),
            "topk": lambda: bank.topk(x, K),
        },
        lambda: wrong_hits(hits, x, rows, r),
        {"faiss, range_search": 3, "scikit-learn, 32 queries x 32": 1},
    )


def wrong_hits(hits: vecbank.RadiusHits, x: Tensor, rows: Tensor, r: float) -> int:
    """By direct differences in float64, of 16 queries."""
    wrong = 0
    for i in range(0, N, N // 16):
        exact = (rows.double() - x[i].double()).square().sum(1).sqrt()
        found = hits.indices[hits.offsets[i] : hits.offsets[i + 1]]
        wrong += found.sort().values.tolist() != (exact <= r).nonzero().squeeze(1).tolist()
    return wrong


def verify(x: Tensor, bank: vecbank.Bank) -> Row:
    found = bank.topk(x, K).indices
    broken = found.clone()
    broken[::2, 3] = (broken[::2, 3] + 1) % len(bank.vectors)

    def wrong() -> int:
        checked = vecbank.verify(x, bank, broken)
        return int((checked.right == (torch.arange(N) % 2 == 0)).sum())

    return Row(
        f"verify {N} x {len(bank.vectors):,}, d {D}, k {K}",
        "topk",
        1.05,
        {OURS: lambda: vecbank.verify(x, bank, found), "topk": lambda: bank.topk(x, K)},
        wrong,
    )


def rows_of(m: int) -> Iterator[Row]:
    draw = torch.Generator().manual_seed(0)
    x, rows = torch.randn(N, D, generator=draw), torch.randn(m, D, generator=draw)
    bank = vecbank.Bank(rows, "l2").prepare("search")
    bank.topk(x, K)
    index = faiss.IndexFlatL2(D)
    index.add(rows.numpy())
    yield from shared(x, rows, bank, index)
    yield radius(x, rows, bank, index)
    yield verify(x, bank)
    del index
    yield from of_each(x, bank, m)
    yield not_self()


def measure(row: Row, repeats: int, budget_s: float) -> dict[str, Any]:
    calls = {name: timing.clock(call) for name, call in row.calls.items()}
    others = timing.OtherProcesses()
    once = {name: call() for name, call in calls.items() if row.repeats.get(name) == 1}
    samples = timing.interleave(
        {name: call for name, call in calls.items() if name not in once}, repeats, budget_s, others=others
    )
    ms = {name: 1e3 * found.median for name, found in samples.items()} | {n: 1e3 * s for n, s in once.items()}
    if "scikit-learn, 32 queries x 32" in ms:
        ms["scikit-learn, 32 queries x 32"] *= N / 32
    ratio = ms[OURS] / ms[row.against]
    return {
        "name": row.name,
        "ms": ms,
        "against": row.against,
        "ratio": ratio,
        "target": row.target,
        "met": ratio <= row.target,
        "wrong": row.wrong(),
        "note": row.note,
        "others": others.share,
    }


def table(rows: list[dict[str, Any]], about: dict[str, Any], title: str, module: str) -> str:
    lines = [
        *opening(title, module, about),
        f"- Software: faiss {faiss.__version__}, torch {torch.__version__}",
        "- Medians of interleaved samples, in milliseconds. Ratio: ours over the candidate that the target names. "
        "Wrong: queries whose answer is not the exact one. Others: the share of the machine that other processes used.",
        "",
        f"**{sum(row['met'] for row in rows)} of {len(rows)} rows met.**",
        "",
        "| case | vecbank, ms | others, ms | ratio | target | | wrong | note | others |",
        "|---|---:|---|---:|---|---|---:|---|---|",
    ]
    for row in rows:
        peers = "; ".join(f"{name} {ms:.4g}" for name, ms in row["ms"].items() if name != OURS)
        met = "met" if row["met"] else "**missed**"
        lines.append(
            f"| {row['name']} | {row['ms'][OURS]:.4g} | {peers} | **{row['ratio']:.3g}** | "
            f"≤ {row['target']:g} x {row['against']} | {met} | {row['wrong']} | {row['note']} | {row['others']} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Every candidate's time over ours, by row."""
    figure, axes = plt.subplots(figsize=(9.5, 0.42 * sum(len(row["ms"]) for row in rows) + 1.2))
    at, ticks, labels = 0.0, [], []
    for row in rows:
        axes.text(1.0, at - 0.75, row["name"], fontsize=8, fontweight="bold", va="center")
        for name, ms in row["ms"].items():
            ratio = ms / row["ms"][OURS]
            axes.barh(at, ratio, height=0.7, color="#1f6f8b" if name == OURS else "#b9c2c9", left=0)
            axes.text(ratio * 1.05, at, f"{ms:.4g} ms", fontsize=7, va="center")
            ticks.append(at)
            labels.append(name)
            at += 1.0
        at += 1.0
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.5, 4 * max(ms / row["ms"][OURS] for row in rows for ms in row["ms"].values()))
    axes.axvline(1, color="#1f6f8b", lw=0.8)
    axes.set_xlabel("time, in units of ours", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=90, bbox_inches="tight")


def options_of(name: str, description: str, *, budget: float = 6.0) -> argparse.ArgumentParser:
    """The options of a bench that `measured` runs; others may be added."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="times of each candidate (default: %(default)s)")
    parser.add_argument(
        "--budget", type=float, default=budget, help="seconds for each candidate (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(tempfile.gettempdir()) / f"{name}.json",
        help="JSON; the table and the plot go beside it",
    )
    return parser


def run(name: str, title: str, rows: Iterator[Row], total: int, options: argparse.Namespace) -> None:
    """Measures the rows, and writes the figures, the table and the plot."""
    measured = [measure(row, options.repeats, options.budget) for row in tqdm(rows, desc=name, unit="row", total=total)]
    about = {**machine.machine(), **machine.commit(), "isa": vecbank._C.isa()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": about, "rows": measured}, indent=1) + "\n")
    text = table(measured, about, title, f"bench.{name}")
    options.out.with_suffix(".md").write_text(text + "\n")
    draw(measured, options.out.with_suffix(".png"), f"{title}, {about['isa']}\n{named(about)}")
    print(text)


def main() -> None:
    parser = options_of("selections", __doc__ or "")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the bank (default: %(default)s)")
    options = parser.parse_args()
    run("selections", TITLE, rows_of(options.rows), 13, options)


if __name__ == "__main__":
    main()
