"""The one table of bench cases: what is asked, of which data, against which baseline and target.

A case says nothing about who answers it; candidates are named here and live in ours.py and peers.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

OURS = "vecbank"
PLAIN = "vecbank plain tensor"


@dataclass(frozen=True)
class Target:
    """What a row has to reach: `limit` times the baseline (if any), and each factor in `peers` times that peer."""

    limit: float | None
    peers: tuple[tuple[str, float], ...] = ()

    def text(self, baseline: str) -> str:
        unit = "one read" if baseline == "read" else "sgemm"
        parts = [] if self.limit is None else [f"≤ {self.limit:.2f} x {unit}"]
        parts += [f"≤ {limit:.2f} x {peer}" for peer, limit in self.peers]
        return ", ".join(parts)


@dataclass(frozen=True)
class Case:
    """One question: `n` queries against a bank of `m` rows of width `d`."""

    name: str
    op: str  # project | topk | nearest, or one of codebooks.CANDIDATES
    n: int
    m: int
    d: int
    metric: str
    target: Target
    candidates: tuple[str, ...]  # besides ours
    k: int = 1
    grad: bool = False  # forward + backward, to x and to the bank
    data: str = "gaussian"  # gaussian | equal | offset
    baseline: str = "chunks"  # chunks | alloc | three | read, see timing.baseline
    products: int = 1  # how many products of this shape the work amounts to
    memory_limit_mib: float = 64.0  # extra memory: at most this,
    memory_share: tuple[str, float] | None = None  # or at most this share of that peer's

    @property
    def flops(self) -> float:
        return 2.0 * self.n * self.m * self.d * (3 if self.grad else 1) * self.products

    def smaller(self, axis: str) -> Case:
        """The same question with `axis` (n, m or d) halved."""
        return replace(self, **{axis: max(1, getattr(self, axis) // 2)})

    def describe(self) -> dict[str, object]:
        keys = ("op", "n", "m", "d", "k", "metric", "grad", "data")
        return {key: getattr(self, key) for key in keys}


@dataclass
class Data:
    """Inputs of one case; `upstream` is the gradient that comes in from above (forward + backward only)."""

    x: Tensor
    bank: Tensor
    upstream: Tensor | None = None


def make_data(case: Case, seed: int = 0, device: str = "cpu") -> Data:
    """Seeded float32 inputs, drawn on `device`."""
    gen = torch.Generator(device).manual_seed(seed)
    from bench import codebooks

    with torch.device(device):
        return codebooks.make_data(case, gen) if case.op in codebooks.CANDIDATES else _draw(case, gen)


def _draw(case: Case, gen: torch.Generator) -> Data:
    def gaussian(rows: int, cols: int) -> Tensor:
        return torch.randn(rows, cols, generator=gen)

    if case.data == "gaussian":
        x, bank = gaussian(case.n, case.d), gaussian(case.m, case.d)
    elif case.data == "equal":  # every row ties with every other, so the answer is row 0
        x, bank = gaussian(case.n, case.d), gaussian(1, case.d).repeat(case.m, 1)
    elif case.data == "offset":  # |x|^2 + |b|^2 - 2 x.b in float32 keeps nothing of the distance
        x = 1000 + 0.01 * (2 * torch.rand(case.n, case.d, generator=gen) - 1)
        bank = 1000 + 0.01 * (2 * torch.rand(case.m, case.d, generator=gen) - 1)
    else:
        raise ValueError(f"unknown data {case.data!r}")
    return Data(x, bank, gaussian(case.n, case.m) if case.grad else None)


_PROJECT = ("torch normalize+mm", "scikit-learn")
# usearch (about 20 x sgemm, exact) and scann only where they are fast enough to be worth their minutes.
_TOPK = ("faiss", "torch chunks", "scikit-learn")
_NEAREST = ("faiss", "torch cdist+argmin", "torch addmm+argmin", "scikit-learn", "vector-quantize-pytorch")
_WORST = ("faiss", "torch cdist+argmin")
_AHEAD, _LEVEL = 1.0, 1.05  # "level with" allows for the spread between two runs


def _project(n: int, m: int, d: int, grad: bool = False) -> Case:
    name = f"project cosine {n} x {m}, d {d}" + (", forward + backward" if grad else "")
    target = Target(1.25 if grad else 1.05)
    peers = _PROJECT[:1] if grad else _PROJECT
    baseline = "three" if grad else "alloc"
    return Case(name, "project", n, m, d, "cosine", target, peers, grad=grad, baseline=baseline)


def _topk(n: int, m: int, d: int, k: int, target: Target, more: tuple[str, ...] = (), baseline: str = "chunks") -> Case:
    name = f"topk {n} x {m:,}, d {d}, k {k}"
    return Case(name, "topk", n, m, d, "dot", target, (*_TOPK, *more), k=k, baseline=baseline)


def _nearest(n: int, m: int, d: int, limit: float, data: str = "gaussian") -> Case:
    label = {"gaussian": "", "equal": ", all rows equal", "offset": ", data at 1000 ± 0.01"}[data]
    peers = _NEAREST if data == "gaussian" else _WORST
    return Case(f"nearest {n} x {m}, d {d}{label}", "nearest", n, m, d, "l2", Target(limit), peers, data=data)


CASES: tuple[Case, ...] = (
    _project(16384, 1024, 768),
    _project(65536, 300, 384),
    _project(16384, 1024, 768, grad=True),
    _project(65536, 300, 384, grad=True),
    _topk(1024, 1_000_000, 128, 10, Target(0.80, (("faiss", _AHEAD),))),
    _topk(1024, 1_000_000, 128, 100, Target(0.80, (("faiss", _AHEAD),))),
    _topk(256, 200_000, 768, 10, Target(0.90, (("faiss", _LEVEL),)), ("usearch", "scann")),
    _topk(1, 1_000_000, 128, 10, Target(1.20), ("usearch", "scann"), baseline="read"),
    _nearest(65536, 8192, 64, 0.70),
    _nearest(262144, 512, 32, 1.10),
    _nearest(131072, 1024, 256, 1.00),
    _nearest(65536, 8192, 64, 6.0, "equal"),
    _nearest(65536, 8192, 64, 6.0, "offset"),
)

GROWTH_LIMIT = 2.2
OVERHEAD_LIMIT = 1.10
OVERHEAD_N = 1024  # a plain tensor instead of a Bank is held to OVERHEAD_LIMIT from this many queries on

# A Bank method on one query of a bank this small costs its call and little else.
TINY = Case("tiny", "project", 1, 64, 16, "cosine", Target(1.0), (), k=4)
TINY_OPS = ("project", "topk", "nearest", "quantize", "lookup")
TINY_LIMITS_US = {"inference_mode": 15.0, "no_grad": 30.0, "plain": 30.0, "requires_grad": 90.0}


def quick(case: Case) -> Case:
    """A case small enough for a smoke run; its figures say nothing about the targets."""
    n, m = max(1, case.n // 8), case.m // 8 if case.m > 100_000 else case.m
    return replace(case, n=n, m=m)


def growth_cases() -> list[Case]:
    return [c for c in CASES if c.data == "gaussian"]


def overhead_cases() -> list[Case]:
    """Every forward case with enough queries, at its own N and at the smallest N held to the limit."""
    found = []
    for case in CASES:
        if case.data != "gaussian" or case.grad or case.n < OVERHEAD_N:
            continue
        found += [replace(case, n=n) for n in sorted({OVERHEAD_N, case.n})]
    return found
