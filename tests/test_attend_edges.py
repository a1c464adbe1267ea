"""`attend` at the ends: nothing to sum, weights of one row alone, what is not a number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attend_cases import dense, inputs
from helpers import gauss, seeded

import vecbank


@pytest.mark.parametrize("weight", ["softmax", "sparsemax", None, torch.exp])
def test_no_row_is_allowed(weight: Any, way: str) -> None:
    x, bank, values, _ = inputs(20, 90, 12, 7)
    may = torch.ones(20, 90, dtype=torch.bool)
    may[4] = False
    own = [t.requires_grad_() for t in (x, bank, values)]
    for k in (None, 3):
        out = vecbank.attend(*own, weight=weight, allowed=may, k=k)
        assert bool((out[4] == 0).all()) and bool((out[5] != 0).any())
        grads = torch.autograd.grad(out.sum(), own)
        assert all(bool(g.isfinite().all()) for g in grads) and bool((grads[0][4] == 0).all())
    lse = vecbank.attend(*own, allowed=may, return_lse=True).lse
    assert lse[4] == -torch.inf and bool(lse[5].isfinite())
    grad = torch.autograd.grad(vecbank.logsumexp(x, bank, allowed=may)[5], x)[0]
    assert bool(grad.isfinite().all())


@pytest.mark.parametrize("shape", [(0, 9, 4, 3), (9, 0, 4, 3), (9, 5, 0, 3), (9, 5, 4, 0), (0, 0, 0, 0)])
def test_empty(shape: tuple[int, int, int, int], way: str) -> None:
    n, m, d, e = shape
    own = [torch.zeros(*s, requires_grad=True) for s in ((n, d), (m, d), (m, e))]
    for weight in ("softmax", "sparsemax", None, torch.relu):
        out = vecbank.attend(*own, weight=weight)
        assert out.shape == (n, e) and bool((out == 0).all())
        out.sum().backward()
    lse = vecbank.logsumexp(*own[:2])
    assert lse.shape == (n,) and (m > 0 or bool((lse == -torch.inf).all()))


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_an_empty_batch_has_gradients_of_every_side(metric: str) -> None:
    """A bank that is trained may meet a batch without queries that need a gradient."""
    x, *given = torch.zeros(0, 4), *(gauss(*s).requires_grad_() for s in ((9, 4), (9, 3)))
    out, lse = vecbank.attend(x, *given, metric, return_lse=True)
    assert out.shape == (0, 3) and lse.shape == (0,)
    for t, grad in zip(given, torch.autograd.grad(out.sum() + lse.sum(), given), strict=True):
        assert torch.equal(grad, torch.zeros_like(t))


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
def test_peaked_and_flat(scale: float, way: str) -> None:
    """Scores of tens of thousands: the largest takes all, and nothing overflows."""
    x, bank, values, _ = inputs(20, 300, 16, 5)
    beta = torch.full((20,), scale)
    got = vecbank.attend(x, bank, values, beta=beta, return_lse=True)
    out, lse = dense(*(t.double() for t in (x, bank, values, beta)))
    same = dense(x, bank, values, beta)
    for a, b, c in zip(got, same, (out, lse), strict=True):
        error, other = ((t.double() - c).abs().max().item() for t in (a, b))
        assert error <= 2 * other + 1e-6 * c.abs().max().item()
    torch.testing.assert_close(
        vecbank.attend(x, bank, values, beta=-scale), dense(x, bank, values, -beta)[0], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e8, 1e30])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_peaked_weights(scale: float, masked: bool) -> None:
    """One row takes all: its weight is 1 on the way back too, to the last bits, however large scores are."""
    x, bank, _, _ = inputs(20, 40, 16, 5)
    values = torch.zeros(40, 1, requires_grad=True)
    may = torch.rand(20, 40, generator=seeded(1)) > 0.3 if masked else None
    own = [t.clone().requires_grad_() for t in (x, bank)]
    out = vecbank.attend(*own, values, beta=scale, allowed=may)
    found = torch.autograd.grad(out.sum(), (values, *own))
    scores = x.double() @ bank.double().T
    best = (scores if may is None else scores.masked_fill(~may, -torch.inf)).argmax(1)
    if scale > 1e5:  # no two scores are near each other then
        assert torch.equal(found[0].squeeze(1), torch.bincount(best, minlength=40).float())
    torch.testing.assert_close(found[0].sum(), torch.tensor(20.0), rtol=1e-5, atol=0)
    assert all(bool((t == 0).all()) for t in found[1:])  # all values are equal: nothing pulls


def test_an_excluded_row_of_nan_has_no_gradient() -> None:
    x, bank, values, _ = inputs(20, 90, 8, 3)
    bank[7] = torch.nan
    may = torch.arange(90) != 7
    own = [t.clone().requires_grad_() for t in (bank, values)]
    grads = torch.autograd.grad(vecbank.attend(x, *own, allowed=may).sum(), own)
    assert all(bool((g[7] == 0).all()) and bool(g.isfinite().all()) for g in grads)


def test_not_a_number_is_seen(way: str) -> None:
    x, bank, values, _ = inputs(20, 300, 16, 5)
    x[3, 2] = torch.nan
    x[4, 2] = torch.inf
    out, lse = vecbank.attend(x, bank, values, return_lse=True)
    assert bool(out[3].isnan().all()) and bool(lse[3].isnan()) and bool(out[4].isnan().all())
    assert bool(out[[*range(3), *range(5, 20)]].isfinite().all())
    bank[70] = torch.nan
    assert bool(vecbank.attend(x, bank, values).isnan().all())


@pytest.mark.parametrize("beta", [1.0, 1e-4])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_sparsemax_sees_not_a_number(beta: float, bad: float) -> None:
    """Whether a search found the rows, or all scores were looked at."""
    x, bank, values, _ = inputs(20, 700, 16, 5)
    x[3, 2] = bad
    out = vecbank.attend(x, bank, values, beta=beta, weight="sparsemax")
    assert torch.equal(out.isnan().all(-1), torch.arange(20) == 3) and bool(out[4].isfinite().all())
