"""A case of the bench: the question, its sizes, its baseline and its target. Candidates are in bench/workloads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import vecbank
from bench import embeddings

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


def by_isa(others: float, vnni: float) -> float:
    """A limit for the instruction set in use: with 8-bit products (VNNI), or without."""
    return vnni if vecbank._C.isa().endswith("vnni") else others


@dataclass(frozen=True)
class Case:
    """One question: `n` queries against a bank of `m` rows of width `d`."""

    name: str
    op: str  # the workload that the case belongs to
    n: int
    m: int
    d: int
    metric: str
    target: Target
    candidates: tuple[str, ...] = ()  # besides ours
    k: int = 1
    grad: bool = False  # forward + backward, to x and to the bank
    data: str = "gaussian"  # or another of DATA, see draw
    baseline: str = "chunks"  # chunks | alloc | three | read, see baselines.py
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
    sha256: str | None = None  # of the list of texts that the rows come from


DATA = {  # what the name of a row says of it
    "gaussian": "",
    "equal": ", all rows equal",
    "offset": ", data at 1000 ± 0.01",
    "ties": ", integers full of ties",
    "unused": ", half of the codes unused",
    "nan": ", 1 % NaN rows",
    "power-0.5": ", synthetic power-law spectrum 0.5",
    "power-1.0": ", synthetic power-law spectrum 1.0",
    "power-1.5": ", synthetic power-law spectrum 1.5",
    "embeddings": "",
    "embeddings-repeated": ", repeated with noise",
}
EMBEDDINGS = ("embeddings", "embeddings-repeated")  # of docstrings, see embeddings.py


def draw(case: Case, gen: torch.Generator) -> Data:
    """x (n, d) and a bank (m, d) of the kind that `case.data` names, in float32."""

    def gaussian(rows: int, cols: int) -> Tensor:
        return torch.randn(rows, cols, generator=gen)

    if case.data == "gaussian":
        x, bank = gaussian(case.n, case.d), gaussian(case.m, case.d)
    elif case.data == "equal":  # every row ties with every other, so the answer is row 0
        x, bank = gaussian(case.n, case.d), gaussian(1, case.d).repeat(case.m, 1)
    elif case.data == "offset":  # |x|^2 + |b|^2 - 2 x.b in float32 keeps nothing of the distance
        x = 1000 + 0.01 * (2 * torch.rand(case.n, case.d, generator=gen) - 1)
        bank = 1000 + 0.01 * (2 * torch.rand(case.m, case.d, generator=gen) - 1)
    elif case.data == "ties":
        x, bank = (torch.randint(-1, 2, (rows, case.d), generator=gen).float() for rows in (case.n, case.m))
    elif case.data == "unused":  # as a codebook that was drawn next to nothing and never trained
        x, bank = gaussian(case.n, case.d), gaussian(case.m, case.d)
        bank[::2] *= 1e-12
    elif case.data == "nan":
        x, bank = gaussian(case.n, case.d), gaussian(case.m, case.d)
        bank[::100, 0] = torch.nan
    elif case.data.startswith("power-"):
        # The variance falls along axes that are not the coordinates', as it does in what a model puts out.
        scale = torch.arange(1.0, case.d + 1).pow(-float(case.data.removeprefix("power-")) / 2)
        axes = scale[:, None] * torch.linalg.qr(gaussian(case.d, case.d)).Q
        x, bank = gaussian(case.n, case.d) @ axes, gaussian(case.m, case.d) @ axes
    elif case.data in EMBEDDINGS:
        x, bank, sha256 = embeddings.held_out(case.n, case.m, gen if case.data == "embeddings-repeated" else None)
        return Data(x, bank, sha256=sha256)
    else:
        raise ValueError(f"data must be one of {', '.join(DATA)}, got {case.data!r}")
    return Data(x, bank, gaussian(case.n, case.m) if case.grad else None)
