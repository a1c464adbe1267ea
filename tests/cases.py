"""The one table of cases: operation x metric x dtype x shape x stride x data x k x mask.

``TABLE`` is a list of :class:`Case`, each a plain record that :func:`build` turns into tensors, the same ones
every time. Every operation's test walks it, on every ISA and device (``conftest.py``). A new kernel, metric
or dtype is tested by adding rows here. ``tests/README.md`` lists the contracts and the tests that hold them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from candidate_sets import SETS, make, to
from data import KINDS, fill
from torch import Tensor

from vecbank import Allowed

METRICS = ("dot", "cosine", "l2", "sqeuclidean", "l1")  # similarities first; by code
MAPPED = ("pearson", "angular")  # these compare mapped rows by another metric
BALL = "poincare"  # its rows lie inside the unit ball, whatever the kind of data
DTYPES = {
    "f32": (torch.float32, torch.float32),
    "f64": (torch.float64, torch.float64),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "f16": (torch.float16, torch.float16),
    "bf16+f32": (torch.bfloat16, torch.float32),  # x + bank
    "f16+f32": (torch.float16, torch.float32),
}
LAYOUTS = ("contiguous", "transposed", "stepped", "shifted", "expanded", "constant")
MASKS = ("none", "columns", "full", "rows", "few", "nothing", "strided")
WIDTHS = (1, 2, 7, 8, 9, 16, 17, 31, 64, 100, 257)
ROWS = (1, 2, 15, 16, 17, 33, 100, 513, 2000)
LEADS: tuple[tuple[int, ...], ...] = (
    (),
    (1,),
    (2,),
    (5,),
    (13,),
    (33,),
    (150,),
    (2, 3),
    (2, 1, 4),
    (0,),
    (3, 0, 2),
)
EXACT = ("topk", "nearest", "quantize")


@dataclass(frozen=True)
class Case:
    op: str
    metric: str = "dot"
    dtype: str = "f32"
    lead: tuple[int, ...] = (13,)  # leading shape of x; with a batched bank, (B, N)
    m: int = 33
    d: int = 17
    data: str = "gauss"
    x_layout: str = "contiguous"
    bank_layout: str = "contiguous"
    batched: bool = False  # bank (B, M, d)
    k: int = 0  # for topk
    mask: str = "none"  # for topk and nearest: one of MASKS, or of SETS
    seed: int = 0

    def __str__(self) -> str:
        parts = [
            self.op,
            self.metric,
            self.dtype,
            "x".join(map(str, self.lead)) or "one",
            f"m{self.m}",
            f"d{self.d}",
        ]
        parts += [self.data]
        parts += [f"x.{self.x_layout}"] * (self.x_layout != "contiguous")
        parts += [f"bank.{self.bank_layout}"] * (self.bank_layout != "contiguous")
        parts += ["batched"] * self.batched + [f"k{self.k}"] * (self.op == "topk")
        parts += [f"mask.{self.mask}"] * (self.mask != "none") + [f"s{self.seed}"] * (self.seed != 0)
        return "-".join(parts)


@dataclass(frozen=True)
class Inputs:
    x: Tensor
    bank: Tensor
    mask: Tensor | None  # what `allowed` stands for
    allowed: Allowed | Tensor | None


def build(case: Case, device: str = "cpu") -> Inputs:
    """The tensors of a case: a function of the case alone."""
    generator = torch.Generator().manual_seed(hash_of(case))
    x_dtype, bank_dtype = DTYPES[case.dtype]
    if case.batched:
        groups = [_filled(case, case.lead[1], x_dtype, bank_dtype, generator) for _ in range(case.lead[0])]
        x = torch.stack([g[0] for g in groups]) if groups else torch.zeros(*case.lead, case.d).to(x_dtype)
        bank = torch.stack([g[1] for g in groups]) if groups else torch.zeros(0, case.m, case.d).to(bank_dtype)
    else:
        n = int(torch.Size(case.lead).numel())
        x, bank = _filled(case, n, x_dtype, bank_dtype, generator)
        x = x.reshape(*case.lead, case.d)
    if case.mask in SETS:
        allowed, mask = make(case.mask, case.lead, case.m, generator, batched=case.batched)
        allowed = to(allowed, device)
    else:
        mask = allowed = make_mask(case, generator)
        allowed = None if mask is None else mask.to(device)
    return Inputs(
        lay(x.to(device), case.x_layout),
        lay(bank.to(device), case.bank_layout),
        None if mask is None else mask.to(device),
        allowed,
    )


def _filled(
    case: Case, n: int, x_dtype: torch.dtype, bank_dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    if case.metric != BALL:
        return fill(case.data, n, case.m, case.d, case.metric, x_dtype, bank_dtype, generator)
    x, bank = fill(case.data, n, case.m, case.d, "l2", x_dtype, bank_dtype, generator)
    return into_ball(x), into_ball(bank)


def into_ball(rows: Tensor) -> Tensor:
    """Rows drawn towards 0 so that all that are finite lie inside the unit ball, the long ones near its boundary."""
    wide = rows.double()
    norms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    most = 0.99 if rows.dtype in (torch.bfloat16, torch.float16) else 1 - 1e-6
    return (wide * (most / (1 + norms))).to(rows.dtype)


def hash_of(case: Case) -> int:
    """A seed from the text of the case (Python's own ``hash`` differs from run to run)."""
    value = 1469598103934665603
    for byte in str(case).encode():
        value = (value ^ byte) * 1099511628211 % 2**63
    return value


def lay(t: Tensor, layout: str) -> Tensor:
    """The same shape over other memory. ``expanded`` and ``constant`` (stride 0) change values too."""
    if layout == "transposed" and t.dim() >= 2:
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "stepped":  # every second feature of every third row
        wide = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), float("nan"), dtype=t.dtype, device=t.device)
        if t.dim() >= 2:
            wide = wide.repeat_interleave(3, dim=-2)
        view = wide[..., 1::2] if t.dim() < 2 else wide[..., 1::3, 1::2]
        return view.copy_(t)
    if layout == "shifted":  # rows that start off any alignment, with garbage around
        wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), float("nan"), dtype=t.dtype, device=t.device)
        return wide[..., 1:-2].copy_(t)
    if layout == "expanded" and t.dim() >= 2 and t.shape[-2]:  # one row, repeated by stride 0
        return t[..., :1, :].expand(t.shape)
    if layout == "constant":  # one feature, repeated by stride 0
        return t[..., :1].expand(t.shape)
    return t.contiguous()


def make_mask(case: Case, generator: torch.Generator) -> Tensor | None:
    shape = (*case.lead, case.m)
    if case.mask == "none":
        return None
    if case.mask == "columns":
        return torch.rand(case.m, generator=generator) < 0.5
    if case.mask == "full":
        return torch.rand(shape, generator=generator) < 0.5
    if case.mask == "rows":  # some queries may take nothing at all
        return (torch.rand((*case.lead, 1), generator=generator) < 0.7) & torch.ones(1, dtype=torch.bool)
    if case.mask == "few":  # fewer than k candidates
        return torch.rand(shape, generator=generator) < 0.4 * case.k / case.m
    if case.mask == "nothing":
        return torch.zeros((), dtype=torch.bool)
    if case.mask == "strided":
        return (torch.rand((case.m, *case.lead), generator=generator) < 0.3).movedim(0, -1)
    raise AssertionError(case.mask)


def _curated() -> Iterator[Case]:
    """Every value of every axis at least once, and the combinations that kernels are known to get wrong."""
    base = Case("", lead=(13,), m=100, d=17, k=10)
    for op in EXACT:
        for metric in METRICS:
            one = replace(base, op=op, metric=metric)
            yield from (replace(one, data=data, k=5, m=m) for data in KINDS for m in (33, 260))
            yield from (replace(one, dtype=dtype, data=data) for dtype in DTYPES for data in ("gauss", "ties"))
            yield from (replace(one, d=d, k=3) for d in WIDTHS)
            yield from (replace(one, m=m, k=min(10, m)) for m in ROWS)
            yield from (replace(one, lead=lead) for lead in LEADS)
            yield from (replace(one, lead=(2, 9), m=m, batched=True, dtype=t) for m in (16, 65) for t in DTYPES)
    for op, layout, other in itertools.product(EXACT, LAYOUTS, ("contiguous", "stepped")):
        yield replace(base, op=op, metric="l2", x_layout=layout, bank_layout=other)
        yield replace(base, op=op, metric="cosine", x_layout=other, bank_layout=layout, lead=(2, 3))
        yield replace(base, op=op, lead=(2, 5), batched=True, x_layout=layout, bank_layout=layout)
    for metric, k in itertools.product(METRICS, (1, 2, 3, 10, 63, 64, 65, 100, 513)):
        for data in ("gauss", "ties", "same", "ascending", "nonfinite"):
            yield replace(base, op="topk", metric=metric, m=513, k=k, data=data, lead=(5,))
    for metric, mask, k in itertools.product(METRICS, MASKS, (1, 10, 100)):
        yield replace(base, op="topk", metric=metric, mask=mask, k=k, lead=(2, 3))
        yield replace(base, op="topk", metric=metric, mask=mask, k=k, lead=(2, 9), batched=True, data="nonfinite")
    for kind, metric in itertools.product(SETS, METRICS):  # candidate sets
        yield replace(base, op="topk", metric=metric, mask=kind, lead=(2, 9), m=300, k=7, data="ties")
        yield replace(base, op="nearest", metric=metric, mask=kind)
        yield replace(base, op="topk", metric=metric, mask=kind, lead=(2, 9), batched=True, data="nonfinite")
        yield replace(base, op="topk", metric=metric, mask=kind, lead=(150,), m=2000, d=64, k=10)
    for kind in SETS:
        yield replace(base, op="topk", mask=kind, lead=(), m=513, k=100, data="same")
        yield replace(base, op="topk", mask=kind, lead=(3, 0), m=513)
        yield replace(base, op="topk", metric="l2", mask=kind, lead=(2, 20), batched=True, m=1000, dtype="bf16+f32")
    for op, lead in itertools.product(("nearest", "quantize"), ((5,), (2, 3), ())):  # an empty bank
        yield replace(base, op=op, metric="cosine", m=0, lead=lead)
        yield replace(base, op=op, metric="l2", m=0, lead=lead, dtype="f64")
    for op in EXACT:  # empty batches
        yield replace(base, op=op, lead=(0, 4), batched=True)
        yield replace(base, op=op, lead=(3, 0), batched=True)
    for metric, d in itertools.product(METRICS, (3, 17, 64, 257)):  # near ties that a loose screen would lose
        for m, k in ((33, 1), (33, 10), (100, 3), (513, 64), (2000, 1)):
            yield replace(base, op="topk", metric=metric, d=d, m=m, k=k, data="level", lead=(9,))
        yield replace(base, op="quantize", metric=metric, d=d, data="level", lead=(40,))
        yield replace(base, op="topk", metric=metric, d=d, m=66, k=3, data="swamped", lead=(9,))
        yield replace(base, op="topk", metric=metric, d=d, m=66, k=3, data="abyss", lead=(9,))
        yield replace(base, op="quantize", metric=metric, d=d, m=66, data="faint", lead=(9,))
        yield replace(base, op="quantize", metric=metric, d=d, m=66, data="swamped", lead=(40,))
    for dtype, metric in itertools.product(DTYPES, METRICS):  # both ends of every dtype's range
        for data in ("tiny", "huge", "wide", "nonfinite", "offset", "near"):
            yield replace(base, op="topk", metric=metric, dtype=dtype, data=data, lead=(5,))


def _ball() -> Iterator[Case]:
    """The metric that has its own place for points: every value of every axis."""
    base = Case("topk", BALL, lead=(13,), m=100, d=17, k=10)
    for op in EXACT:
        one = replace(base, op=op)
        yield from (replace(one, data=data, k=5, m=260 if op == "topk" else 33) for data in KINDS)
        yield from (replace(one, dtype=dtype, data=data) for dtype in DTYPES for data in ("gauss", "outlier"))
        yield from (replace(one, d=d, k=3) for d in WIDTHS)
        yield from (replace(one, lead=lead) for lead in LEADS)
        yield from (replace(one, lead=(2, 9), m=65, batched=True, dtype=t) for t in DTYPES)
        yield from (replace(one, x_layout=layout, bank_layout=layout) for layout in LAYOUTS if layout != "constant")
    yield from (replace(base, m=m, k=min(10, m)) for m in ROWS)
    for k, data in itertools.product((1, 2, 10, 64, 65, 513), ("gauss", "same", "nonfinite")):
        yield replace(base, m=513, k=k, data=data, lead=(5,))
    for mask in (*MASKS, *SETS):
        yield replace(base, mask=mask, lead=(2, 3))
        yield replace(base, mask=mask, lead=(2, 9), batched=True, data="nonfinite")
    yield from (replace(base, op="nearest", mask=kind, k=0) for kind in SETS)
    yield replace(base, lead=(3,), m=20000, d=9, k=1500)
    yield replace(base, op="nearest", lead=(1500,), m=300, d=16)
    yield replace(base, lead=(2,), m=1700, d=4200, k=10)  # a row is read a stretch at a time


def _mapped() -> Iterator[Case]:
    for metric in MAPPED:
        base = Case("topk", metric, lead=(13,), m=100, d=17, k=10)
        # Angles near pi of float64 rows come from the mirrored rows: test_metrics.py.
        dtypes = [name for name in DTYPES if metric == "pearson" or name != "f64"]
        for op in ("topk", "nearest"):
            one = replace(base, op=op)
            yield from (replace(one, data=data, k=5, m=260 if op == "topk" else 33) for data in KINDS)
            yield from (replace(one, dtype=dtype) for dtype in dtypes)
            yield replace(one, lead=(2, 9), m=65, batched=True)
        yield from (replace(base, d=d, k=3) for d in WIDTHS if d > 1)
        yield from (replace(base, lead=lead) for lead in LEADS)
        yield from (replace(base, x_layout=layout, bank_layout=layout) for layout in LAYOUTS)
        for mask in (*MASKS, *SETS):
            yield replace(base, mask=mask, lead=(2, 3))
        yield replace(base, lead=(150,), m=2000, d=64)


def _large() -> Iterator[Case]:
    """Enough rows for several threads, a split bank and buffers that overflow."""
    for data, metric in (
        ("gauss", "dot"),
        ("same", "l2"),
        ("ascending", "l2"),
        ("offset", "cosine"),
        ("ties", "dot"),
    ):
        yield Case("topk", metric, lead=(), m=20000, d=24, k=10, data=data)
        yield Case("topk", metric, lead=(3,), m=20000, d=9, k=1500, data=data)
        yield Case("topk", metric, lead=(400,), m=1500, d=16, k=100, data=data)
        yield Case("nearest", metric, lead=(1500,), m=300, d=16, data=data)
        yield Case("nearest", metric, lead=(), m=30000, d=8, data=data)
        yield Case("quantize", metric, lead=(700,), m=513, d=31, data=data)
    for kind in SETS:
        yield Case("topk", "cosine", lead=(70,), m=20_000, d=48, k=10, mask=kind)
    # A plain tensor is packed in pieces of 6 MiB: masks, ties and offsets must survive the seams.
    for metric, data in (("dot", "ints"), ("cosine", "gauss"), ("l2", "same"), ("sqeuclidean", "ascending")):
        yield Case("topk", metric, lead=(2,), m=600_000, d=8, k=30, data=data, mask="columns")
    yield Case("topk", "l2", lead=(2,), m=1700, d=4000, k=100, mask="full")
    yield Case("nearest", "cosine", lead=(2,), m=1700, d=4000, data="ties")
    yield Case("topk", "dot", lead=(2, 20), batched=True, m=3000, d=8, k=5, mask="full", data="ties")
    yield Case("topk", "l2", lead=(200,), m=13000, d=2, k=1500, data="ties", mask="columns")
    yield Case("topk", "dot", lead=(2,), m=80_000, d=2, k=70_000)
    yield Case("nearest", "l2", lead=(400,), m=100, d=257)
    yield Case("topk", "l2", "f64", lead=(150,), m=2000, d=100, k=65)
    yield Case("topk", "cosine", "bf16", lead=(40,), m=2000, d=257, k=3)
    yield Case("topk", "dot", "f16+f32", lead=(40,), m=2000, d=64, k=2000)
    yield Case("nearest", "cosine", "f16", lead=(9,), m=700, d=1030)


def _random(count: int, seed: int) -> Iterator[Case]:
    """Seeded draws over the whole product, for the combinations nobody thought of."""
    rng = random.Random(seed)
    for i in range(count):
        op = rng.choice(EXACT)
        lead, m, d = rng.choice(LEADS), rng.choice(ROWS), rng.choice(WIDTHS)
        if torch.Size(lead).numel() * m * d > 4_000_000:
            lead, d = (13,), min(d, 100)
        batched = rng.random() < 0.2
        if batched:
            lead, m = (rng.choice((1, 2, 3)), rng.choice((0, 1, 5, 20))), min(m, 513)
        k = min(m, rng.choice((1, 2, 3, 10, 64, 65, 100, m)))
        yield Case(
            op,
            rng.choice(METRICS),
            rng.choice(list(DTYPES)),
            lead,
            m,
            d,
            rng.choice(KINDS),
            rng.choice(LAYOUTS),
            rng.choice(LAYOUTS),
            batched,
            k if op == "topk" else 0,
            rng.choice(MASKS) if op == "topk" else "none",
            seed=i + 1,
        )


def table() -> list[Case]:
    cases = itertools.chain(_curated(), _ball(), _mapped(), _large(), _random(400, seed=20))
    normal = (
        c if c.op == "topk" else replace(c, k=0, mask=c.mask if c.mask in SETS and c.op == "nearest" else "none")
        for c in cases
    )
    return list(dict.fromkeys(normal))  # each once, in order


def project_table() -> list[Case]:
    """The rows on which the dense scores are compared, with their tolerance."""
    base = Case("project", m=33, d=17)
    cases = [replace(base, metric=metric, d=d) for metric in METRICS for d in WIDTHS]
    cases += [replace(base, metric=metric, m=m) for metric in METRICS for m in (0, *ROWS)]
    cases += [replace(base, metric=metric, lead=lead) for metric in METRICS for lead in LEADS]
    kinds = ("ints", "gauss", "ties", "offset", "outlier", "same", "zeros", "near", "cancel")
    cases += [replace(base, metric=m, dtype=t, data=data) for m in METRICS for t in DTYPES for data in kinds]
    cases += [replace(base, metric=m, x_layout=a, bank_layout=b) for m in METRICS for a in LAYOUTS for b in LAYOUTS]
    cases += [replace(base, metric=m, lead=(3, 5), batched=True, dtype=t) for m in METRICS for t in DTYPES]
    cases += [replace(base, metric=metric, lead=(700,), m=600, d=64) for metric in METRICS]
    for metric, d, data in itertools.product(METRICS, (384, 768, 1024, 2048), ("gauss", "shifted")):  # long sums
        cases += [replace(base, metric=metric, d=d, m=100, dtype=dtype, data=data) for dtype in ("f32", "bf16", "f64")]
    cases += [replace(base, metric=metric, lead=(), m=30000, d=64) for metric in METRICS]
    cases += [replace(base, metric=metric, lead=(2,), m=600_000, d=8) for metric in ("cosine", "l2")]  # pieces
    inside = Case("project", BALL, m=33, d=17)
    cases += [replace(inside, d=d) for d in WIDTHS] + [replace(inside, lead=lead) for lead in LEADS]
    cases += [replace(inside, dtype=t, data=data) for t in DTYPES for data in ("gauss", "same", "near", "outlier")]
    cases += [replace(inside, lead=(3, 5), batched=True, dtype=t) for t in DTYPES]
    return list(dict.fromkeys(cases))


def thin(cases: list[Case], per_kind: int) -> list[Case]:
    """So many cases of every kind of data, spread evenly over those there are."""
    kinds: dict[str, list[Case]] = {}
    for case in cases:
        kinds.setdefault(case.data, []).append(case)
    chosen = [group[i * len(group) // per_kind] for group in kinds.values() for i in range(per_kind)]
    return list(dict.fromkeys(chosen))


TABLE = table()
PROJECT = project_table()
# For tests that repeat each row many times.
SMALL = [c for c in TABLE if c.m <= 600 and torch.Size(c.lead).numel() <= 40 and c.d <= 64]
SAMPLE = thin(SMALL, 5)
