"""Losses over scores and drawn codes: small problems, blocks and plain formulas say the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import gauss
from torch import Tensor

from vecbank.nn import _code_entropy
from vecbank.nn._vq import score_terms

SHARP = 3.0


def plain_scores(x: Tensor, bank: Tensor, metric: str) -> Tensor:
    x, bank = x.double(), bank.double()
    if metric == "dot":
        return x @ bank.mT
    apart = x.unsqueeze(-2) - bank.unsqueeze(-3)
    return -apart.square().sum(-1).clamp_min(1e-300).sqrt()


def crossed(x: Tensor, bank: Tensor, metric: str, codes: Tensor, plain: bool) -> Tensor:
    if not plain:
        return score_terms.cross_entropy(x, bank, metric, codes)
    return F.cross_entropy(plain_scores(x, bank, metric).flatten(0, -2), codes.flatten(), ignore_index=-1)


def diverse(x: Tensor, bank: Tensor, metric: str, codes: Tensor, plain: bool) -> Tensor:
    mask = None if int(codes.min()) >= 0 else (codes >= 0).unsqueeze(0)
    if not plain:
        return score_terms.negative_entropy(x.unsqueeze(0), bank.unsqueeze(0), metric, SHARP, mask)
    p = (plain_scores(x, bank, metric) * SHARP).softmax(-1).unsqueeze(0)
    return score_terms.mean_negative_entropy(p, mask)


def joint(x: Tensor, bank: Tensor, metric: str, codes: Tensor, plain: bool) -> Tensor:
    """Both at once, with a weight of its own for each."""
    if plain:
        return 0.7 * diverse(x, bank, metric, codes, plain) + 0.3 * crossed(x, bank, metric, codes, plain)
    mask = None if int(codes.min()) >= 0 else (codes >= 0).unsqueeze(0)
    groups = x.unsqueeze(0), bank.unsqueeze(0), metric, SHARP, mask, codes.unsqueeze(0)
    batch, coded = score_terms.negative_and_cross_entropy(*groups)
    return 0.7 * batch + 0.3 * coded


@pytest.mark.parametrize("way", ["few", "products", "blocks"])
@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", [crossed, diverse, joint])
def test_every_way_is_the_formula(
    loss: Callable[..., Tensor], masked: bool, metric: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and both gradients, by float64 products, by `project`, and a few rows at a time."""
    if way != "few":
        monkeypatch.setattr(score_terms, "_FEW_PAIRS", 0)
    if way == "blocks":
        monkeypatch.setattr(score_terms, "_SCORE_BYTES", 4 * 50 * 2 * 3)  # three positions of both sequences
    codes = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(1))
    if masked:
        codes[0, 3:7], codes[1, 5:] = -1, -1
    found = []
    for plain in (False, True):
        x, bank = gauss(2, 20, 8).requires_grad_(), gauss(50, 8, seed=1).requires_grad_()
        value = loss(x, bank, metric, codes, plain)
        found.append((value.detach().float(), *torch.autograd.grad(3 * value, (x, bank))))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_row_that_is_a_code_has_a_gradient() -> None:
    bank = gauss(50, 8)
    x = bank[:20].view(1, 20, 8).clone().requires_grad_()
    loss = score_terms.cross_entropy(x, bank, "l2", torch.arange(20).unsqueeze(0))
    (grad,) = torch.autograd.grad(loss, x)
    assert bool(grad.isfinite().all())


def test_a_second_pass_through_a_loss_over_scores_says_so() -> None:
    x, bank = gauss(2, 5, 8).requires_grad_(), gauss(12, 8, seed=1)
    loss = score_terms.cross_entropy(x, bank, "l2", torch.zeros(2, 5, dtype=torch.int64))
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="a loss over scores has no derivative"):
        grad.square().sum().backward()


@pytest.mark.parametrize("codes", [1, 3, 64, 65, 100, 256])
@pytest.mark.parametrize("k", [None, 1])
def test_drawn_codes_follow_the_softmax(codes: int, k: int | None) -> None:
    logits = 2 * gauss(1, codes)
    draws = 200_000
    values = logits.expand(draws, codes).clone()
    drawn = score_terms.draw(values, 1.5, k, torch.Generator().manual_seed(0)).flatten()
    want = (logits[0].double() / 1.5).softmax(-1)
    seen = torch.bincount(drawn, minlength=codes).double() / draws
    assert len(seen) == codes
    assert bool(((seen - want).abs() <= 5 * (want * (1 - want) / draws).sqrt() + 2e-5).all())


def test_a_draw_takes_the_best_code_where_it_is_certain_and_a_code_where_scores_are_nan() -> None:
    values = torch.zeros(40, 100)
    values[torch.arange(40), torch.arange(40) * 2] = 1.0
    drawn = score_terms.draw(values.clone(), 1e-6, None, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, torch.arange(40) * 2)
    lost = score_terms.draw(torch.full((3, 100), torch.nan), 1.0, None, None)
    assert bool(((lost >= 0) & (lost < 100)).all())


@pytest.mark.parametrize("size", [(5, 2, 3), (16, 1, 8), (7, 1, 1)])
@pytest.mark.parametrize("scale", [0.1, 3.0, 1000.0])
def test_entropies_of_a_table_are_those_of_halves(
    size: tuple[int, int, int], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = torch.rand(size[0], generator=torch.Generator().manual_seed(0))
    weights[0] = 0
    weights /= weights.sum()
    found = []
    ways = {"table": {}, "blocks": {"_BLOCK": 1, "_HELD": 0}, "halves": {"_FEW": 0, "_SHORT": 0}}
    for constants in ways.values():
        for name, value in {"_FEW": 1 << 30, "_BLOCK": 1 << 16, "_HELD": 1 << 21, "_SHORT": 5, **constants}.items():
            monkeypatch.setattr(_code_entropy, name, value)
        x = (scale * gauss(*size)).requires_grad_()
        values = _code_entropy.code_entropies(x, weights)
        grads = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in values]
        found.append([*(value.detach() for value in values), *grads])
    for parts in zip(*found, strict=True):
        for got in parts[:-1]:
            torch.testing.assert_close(got, parts[-1], rtol=1e-5, atol=2e-6)
