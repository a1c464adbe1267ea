"""What several test files need: targets, comparison, running a case on the library and on the reference."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import BALL, DTYPES, MAPPED, METRICS, Case, build
from data import fill
from torch import Tensor

import vecbank
from vecbank import _cuda, reference

FULL = os.environ.get("VECBANK_NET") == "full"  # make test-all: every case of the nets and of the slow tables
ISAS: tuple[str, ...] = tuple(vecbank._C.available_isas())
# Why CUDA kernels cannot run here; None where they can.
NO_CUDA: str | None = "no GPU" if not torch.cuda.is_available() else _cuda.reason
DEVICES = ("cpu", "cuda") if NO_CUDA is None else ("cpu",)
CODE = {metric: code for code, metric in enumerate(METRICS)}  # as the ops take it
ALL_CODES = {**CODE, BALL: 5, "poincare_ratio": 6}  # with those of points inside the unit ball
REDUCE = {"none": 0, "sum": 1, "mean": 2}
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Target:
    device: str
    isa: str | None = None

    def __str__(self) -> str:
        return self.isa or self.device


TARGETS = [Target("cpu", isa) for isa in ISAS] + [Target(device) for device in DEVICES if device != "cpu"]
# A level, and the one that differs from it in the screens of searches alone: the table of searches runs on both,
# everything else on the upper one.
_SAME_BUT_FOR_SCREENS = {"avx2vnni": "avx2", "avx512vnni": "avx512"}
DISTINCT_TARGETS = [t for t in TARGETS if t.isa not in {_SAME_BUT_FOR_SCREENS.get(isa) for isa in ISAS} - {None}]


def without_kernel(patch: pytest.MonkeyPatch) -> None:
    """Gradients of `project` go as those of problems that are too large for one kernel."""
    patch.setattr("vecbank._ops.project_gradient.in_one_kernel", lambda *sizes, **options: False)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal dtype, shape and values; NaN equals NaN (and 0.0 equals -0.0)."""
    a, b = a.detach().cpu(), b.detach().cpu()
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(
        a.nan_to_num(0.0, torch.inf, -torch.inf), b.nan_to_num(0.0, torch.inf, -torch.inf)
    )


def assert_same(got: Any, want: Any, note: str = "") -> None:
    """``same`` for a tensor or a tuple of them, saying where they part."""
    got = got if isinstance(got, tuple) else (got,)
    want = want if isinstance(want, tuple) else (want,)
    assert len(got) == len(want)
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        if same(g, w):
            continue
        g, w = g.detach().cpu(), w.detach().cpu()
        where = f"{note} output {i}: got {tuple(g.shape)} {g.dtype}, want {tuple(w.shape)} {w.dtype}"
        if g.shape == w.shape:
            off = ~((g == w) | (g.isnan() & w.isnan()))
            where += f"; {int(off.sum())} of {off.numel()} differ"
            if off.any():
                at = tuple(int(v) for v in off.nonzero()[0])
                where += f", first at {at}: got {g[at].item()!r}, want {w[at].item()!r}"
        raise AssertionError(where)


def run(case: Case, x: Tensor, bank: Any, allowed: Any = None, **options: Any) -> tuple[Tensor, ...]:
    """The library's answer to a case; ``bank`` may be a Bank."""
    if case.op == "topk":
        return tuple(vecbank.topk(x, bank, case.k, case.metric, allowed=allowed, **options))
    if case.op == "nearest" and allowed is not None:
        options["allowed"] = allowed
    function = {"nearest": vecbank.nearest, "quantize": vecbank.quantize}[case.op]
    return tuple(function(x, bank, case.metric, **options))


@functools.cache
def expected(case: Case) -> tuple[Tensor, ...]:
    """The reference's answer, worked out once for all targets."""
    inputs = build(case)
    x, bank, mask = inputs.x, inputs.bank, inputs.mask
    if case.metric in MAPPED:
        return _expected_of_mapped(case, x, bank, mask)
    if case.op == "topk":
        return tuple(reference.topk(x, bank, case.k, case.metric, mask))
    if case.op == "nearest":
        return tuple(reference.nearest(x, bank, case.metric, mask))
    return tuple(reference.quantize(x, bank, case.metric))


def _expected_of_mapped(case: Case, x: Tensor, bank: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    """The reference's answer among mapped rows, by the metric that compares them."""
    mapped, base = {"pearson": (_centred, "cosine"), "angular": (_unit, "l2")}[case.metric]
    a, b = mapped(x), mapped(bank)
    found = reference.topk(a, b, case.k, base, mask) if case.op == "topk" else reference.nearest(a, b, base, mask)
    values = found.values
    if case.metric == "angular":
        values = torch.where(values < 2, 2 * torch.asin(values.clamp(max=2) / 2), values.clamp(max=torch.pi))
        values = torch.where(found.indices < 0, torch.inf, values)
    return values.to(torch.float64 if x.dtype == torch.float64 else torch.float32), found.indices


def _centred(t: Tensor) -> Tensor:
    t = t.contiguous()
    same = t.amin(-1, keepdim=True) == t.amax(-1, keepdim=True)
    return torch.where(same, 0.0, t - t.mean(-1, keepdim=True, dtype=torch.float64))


def _unit(t: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(t.contiguous(), dim=-1, keepdim=True, dtype=torch.float64)
    return torch.cat([t / torch.where(norms == 0, 1.0, norms), (norms == 0).double()], -1)


def op(name: str) -> Any:
    return getattr(torch.ops.vecbank, name)


def all_ops() -> list[str]:
    """Names of every operator registered under ``vecbank::``."""
    return sorted(
        name.removeprefix("vecbank::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("vecbank::")
    )


def gauss(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000 * len(shape) + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype=dtype, **options)


def ints(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (3 * gauss(*shape, dtype=torch.float64, seed=seed)).round().to(dtype)


def draw(data: str, metric: str, n: int, m: int, d: int, dtype: str = "f32", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Queries (n, d) and a bank (m, d) of a kind of data."""
    return fill(data, n, m, d, metric, *DTYPES[dtype], seeded(seed + n + m + d))
