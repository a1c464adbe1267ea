"""The contrastive losses against dense torch in float64: values, gradients, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from helpers import gauss, seeded
from torch import Tensor

import vecbank
from vecbank import losses


def cosines(x: Tensor, keys: Tensor) -> Tensor:
    x, keys = (t / t.norm(dim=-1, keepdim=True).clamp_min(1e-8) for t in (x, keys))
    return x @ keys.mT


def parts(x: Tensor, keys: Tensor, t: Tensor, positives: Tensor, may: Tensor | None) -> tuple[Tensor, Tensor]:
    z = cosines(x, keys) / t
    if may is not None:
        z = z.masked_fill(~may, -torch.inf)
    return z, (cosines(x, keys) / t).gather(1, positives.unsqueeze(1)).squeeze(1)


def plain_loss(name: str, x: Tensor, keys: Tensor, t: Tensor, positives: Tensor, may: Tensor | None) -> Tensor:
    z, positive = parts(x, keys, t, positives, may)
    if name == "info_nce":
        return (z.logsumexp(1) - positive).mean()
    z = z.scatter(1, positives.unsqueeze(1), -torch.inf)
    if name == "info_loob":
        return (z.logsumexp(1) - positive).mean()
    count = (z > -torch.inf).sum(1)
    estimate = (z.exp().sum(1) / count - 0.1 * positive.exp()) / 0.9
    negative = count * estimate.clamp_min(torch.exp(-1 / t))
    return -(positive.exp() / (positive.exp() + negative)).log().mean()


@pytest.mark.parametrize("name", ["info_nce", "info_loob", "debiased"])
@pytest.mark.parametrize("masked", [False, True])
def test_losses(name: str, masked: bool) -> None:
    x, keys = gauss(30, 8), gauss(50, 8, seed=1)
    positives = torch.randint(0, 50, (30,), generator=seeded(2))
    may = torch.rand(30, 50, generator=seeded(3)) > 0.3 if masked else None
    t = torch.tensor(0.5)
    own, wide = ([a.to(dtype).requires_grad_() for a in (x, keys, t)] for dtype in (torch.float32, torch.float64))
    loss = getattr(losses, name)(*own[:2], positives, temperature=own[2], allowed=may)
    want = plain_loss(name, *wide, positives, may)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-6)
    for a, b in zip(torch.autograd.grad(loss, own), torch.autograd.grad(want, wide), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    each = getattr(losses, name)(x, keys, positives, temperature=0.5, allowed=may, reduction="none")
    assert each.shape == (30,)
    torch.testing.assert_close(each.mean(), loss.detach())
    torch.testing.assert_close(
        each.sum(), getattr(losses, name)(x, keys, positives, temperature=0.5, allowed=may, reduction="sum")
    )


def test_losses_of_own_numbers() -> None:
    x, keys = gauss(30, 8), gauss(50, 8, seed=1)
    assert torch.equal(losses.info_nce(x, keys), losses.info_nce(x, keys, torch.arange(30)))
    target = torch.nn.functional.cross_entropy(cosines(x, keys) / 0.07, torch.arange(30))
    torch.testing.assert_close(losses.info_nce(x, keys), target, rtol=1e-5, atol=1e-5)
    assert losses.info_loob(x[:1], keys[:1]) == -torch.inf and losses.debiased(x[:1], keys[:1]) == 0


def test_what_losses_refuse() -> None:
    x, keys = gauss(30, 8), gauss(50, 8, seed=1)
    for loss in (losses.info_nce, losses.info_loob, losses.debiased):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            loss(x, keys, temperature=0.0)
        with pytest.raises(ValueError, match='metric must be "cosine" or "dot"'):
            loss(x, keys, metric="l2")
        with pytest.raises(ValueError, match="reduction must be"):
            loss(x, keys, reduction="median")
        with pytest.raises(ValueError, match="keys must have a row for each of x's 30"):
            loss(x, keys[:20])
        with pytest.raises(ValueError, match=r"positives must be \(30,\)"):
            loss(x, keys, torch.arange(20))
        for temperature in (-1.0, 0.0, torch.nan):
            with pytest.raises(ValueError, match="temperature must be above 0 and finite, got"):
                loss(x, keys, temperature=torch.tensor(temperature))
        with pytest.raises(ValueError, match=r"keys must be \(M, d\), got \(1, 50, 8\)"):
            loss(x, keys.unsqueeze(0))
        for number in (50, -1):
            with pytest.raises(IndexError, match=f"positives must lie between 0 and 49, got values from {number}"):
                loss(x, keys, torch.full((30,), number))
    with pytest.raises(ValueError, match="class_prior must lie from 0 to below 1"):
        losses.debiased(x, keys, class_prior=1.0)


def test_two_views_of_each_row() -> None:
    """SimCLR: the key of a row is its other view, and no row is a negative of itself."""
    views, other = gauss(20, 8), torch.arange(20).roll(10)
    loss = losses.info_nce(views, views, other, temperature=0.5, allowed=vecbank.Allowed.not_self())
    z = (cosines(views, views) / 0.5).masked_fill(torch.eye(20, dtype=torch.bool), -torch.inf)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(z, other))
