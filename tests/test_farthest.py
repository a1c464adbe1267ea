"""The farthest rows of large banks, which a screen finds: the reference's bits, whatever the bound can tell."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_same, gauss
from torch import Tensor

import vecbank
from vecbank import METRICS, Allowed, _farthest, reference
from vecbank._select import Search

N, M, D = 32, 2100, 33
DATA = ("plain", "ties", "far from zero", "all equal", "NaN", "infinity", "very long rows", "very short queries")


def data(kind: str) -> tuple[Tensor, Tensor]:
    x, bank = gauss(N, D), gauss(M, D, seed=1)
    if kind == "ties":
        x, bank = x.round(), bank.round()
    elif kind == "far from zero":
        x, bank = x * 0.01 + 1000, bank * 0.01 + 1000
    elif kind == "all equal":
        bank[:] = bank[0]
    elif kind == "NaN":
        bank[5], x[3] = torch.nan, torch.nan
    elif kind == "infinity":
        x[2] = torch.inf
    elif kind == "very long rows":
        bank[7:9] *= 1e16
    elif kind == "very short queries":
        x *= 1e-30
    return x, bank


@pytest.mark.parametrize("metric", ["l2", "sqeuclidean"])
@pytest.mark.parametrize("kind", DATA)
def test_equals_the_reference(kind: str, metric: str) -> None:
    x, bank = data(kind)
    each = gauss(N, M, seed=2) > 0.5
    few = torch.randint(M, (N, 20), generator=torch.Generator().manual_seed(0))
    sets = {
        "no set": (None, None),
        "columns": (each[0], each[0]),
        "each": (each, each),
        "not itself": (Allowed.not_self(), torch.arange(M) != torch.arange(N).unsqueeze(1)),
        "few": (Allowed.rows(few), (few.unsqueeze(-1) == torch.arange(M)).any(1)),
    }
    for name, (allowed, mask) in sets.items():
        want = reference.topk(x, bank, 30, metric, mask, order="worst")
        for k in (1, 30):
            assert _farthest.serves(Search(x, bank, None, METRICS[metric]), k)
            got = vecbank.topk(x, bank, k, metric, allowed=allowed, order="worst")
            assert_same(tuple(got), (want.values[:, :k], want.indices[:, :k]), f"{name} {k}")


def test_gradients() -> None:
    x, bank = data("plain")
    ours, theirs = [(x.clone().requires_grad_(), bank.clone().requires_grad_()) for _ in range(2)]
    values, indices = vecbank.topk(*ours, 5, "sqeuclidean", order="worst")
    values.sum().backward()
    (theirs[0].unsqueeze(1) - theirs[1][indices]).square().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad, b.grad)
