"""What training adds: topk with a bias, and quantize_train with its loss, counts and sums."""

from __future__ import annotations

import pytest
import torch
from cases import METRICS, TABLE, Case, build, thin
from helpers import FLOATS, Target, assert_same, gauss, same
from torch.autograd import gradcheck

import vecbank
from vecbank import reference

F64 = torch.float64
ROWS = thin([c for c in TABLE if c.op == "quantize" and c.m <= 600], 7)
BIASED = thin([c for c in TABLE if c.op == "topk" and c.metric == "dot" and not c.batched and c.m < 9999], 7)


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_quantize_train(case: Case, target: Target) -> None:
    inputs = build(case)
    x, bank = inputs.x, inputs.bank
    on = x.to(target.device), bank.to(target.device)
    mask = torch.rand(x.shape[:-1]) < 0.7
    for m in (None, mask):
        want = reference.quantize_train(x, bank, case.metric, m)
        got = vecbank.quantize_train(*on, case.metric, None if m is None else m.to(target.device))
        for name in ("quantized", "codes", "counts", "sums"):
            assert_same(getattr(got, name), getattr(want, name), name)
        assert got.loss.dtype == want.loss.dtype and got.loss.shape == ()
        torch.testing.assert_close(got.loss.cpu(), want.loss, rtol=1e-6, atol=0, equal_nan=True)
        plain = vecbank.quantize(*on, case.metric)
        if m is None:
            assert_same((got.quantized, got.codes), tuple(plain))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_quantize_train_repeats(threads: int) -> None:
    x, bank, mask = gauss(3000, 12) * 100, gauss(40, 12), torch.rand(3000) < 0.9
    want = vecbank.quantize_train(x, bank, valid=mask)
    torch.set_num_threads(threads)
    for isa in vecbank._C.available_isas():
        vecbank._C.set_isa(isa)
        assert_same(tuple(vecbank.quantize_train(x, bank, valid=mask)), tuple(want))
        prepared = vecbank.Bank(bank, metric="l2")
        assert_same(tuple(vecbank.quantize_train(x, prepared, valid=mask)), tuple(want))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_quantize_train_gradient(dtype: torch.dtype, masked: bool, device: str) -> None:
    """Straight-through for the rows, 2 (x - row) / count for the loss, none for the bank, counts and sums."""
    x, bank = gauss(20, 5, dtype=dtype).to(device).requires_grad_(), gauss(7, 5, dtype=dtype).to(device)
    mask = torch.rand(20).to(device) < 0.6 if masked else None
    for part in ("quantized", "loss", "both"):
        x.grad = None
        learned = bank.clone().requires_grad_()
        got = vecbank.quantize_train(x, learned, valid=mask)
        assert not (got.codes.requires_grad or got.counts.requires_grad or got.sums.requires_grad)
        seed = gauss(20, 5, dtype=dtype, seed=3).to(device)
        total = 0.0
        if part != "loss":
            total = total + (got.quantized * seed).sum()
        if part != "quantized":
            total = total + 3 * got.loss
        total.backward()
        counted = (got.codes >= 0).unsqueeze(-1)
        want = seed.double() if part != "loss" else torch.zeros(20, 5, dtype=F64, device=device)
        if part != "quantized":
            pull = 6 * (x.detach().double() - got.quantized.detach().double()) / (int(counted.sum()) * 5)
            want = want + torch.where(counted, pull, 0.0)
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(x.grad.double(), want, rtol=tolerance, atol=tolerance)
        assert learned.grad is None or not learned.grad.any()


def test_quantize_train_with_nothing_counted(device: str) -> None:
    x, bank = gauss(4, 3).to(device), gauss(5, 3).to(device)
    got = vecbank.quantize_train(x, bank, valid=torch.zeros(4, dtype=torch.bool, device=device))
    assert torch.equal(got.quantized, x) and got.codes.tolist() == [-1] * 4
    assert got.loss.item() == 0.0 and not got.counts.any() and not got.sums.any()
    empty = vecbank.quantize_train(x[:0], bank)
    assert empty.loss.item() == 0.0 and empty.counts.tolist() == [0.0] * 5
    none = vecbank.quantize_train(x, bank[:0])
    assert none.codes.tolist() == [-1] * 4 and none.sums.shape == (0, 3)


@pytest.mark.parametrize("case", BIASED, ids=str)
def test_biased_topk(case: Case, target: Target) -> None:
    inputs = build(case)
    x, bank, mask = inputs.x, inputs.bank, inputs.mask
    scale = reference.project(x, bank, "dot", out_dtype=F64).abs().nan_to_num(1.0, 1.0, 1.0).clamp(max=1e300)
    size = float(scale.max()) if scale.numel() else 1.0
    for bias in (
        gauss(case.m, dtype=F64) * size,
        torch.arange(case.m) % 3 - 1.0,
        gauss(case.m) * 1e-9 * size,
    ):
        bias = bias.to(bank.dtype)
        want = reference.topk(x, bank, case.k, "dot", mask, bias)
        on = [t if t is None else t.to(target.device) for t in (x, bank, mask, bias)]
        assert_same(tuple(vecbank.topk(*on[:2], case.k, "dot", allowed=on[2], bias=on[3])), tuple(want))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e38, 1e-45])
def test_bias_of_any_value(value: float, device: str) -> None:
    x, bank, bias = gauss(6, 9), gauss(40, 9), gauss(40)
    bias[[3, 17]] = value
    want = reference.topk(x, bank, 40, bias=bias)
    assert_same(tuple(vecbank.topk(x.to(device), bank.to(device), 40, bias=bias.to(device))), tuple(want))


def test_bias_gradient(device: str) -> None:
    x, bank, bias = (gauss(*s, dtype=F64).to(device).requires_grad_() for s in ((4, 5), (9, 5), (9,)))
    mask = torch.rand(4, 9).to(device) < 0.7
    assert gradcheck(lambda a, b, c: vecbank.topk(a, b, 3, bias=c).values, (x, bank, bias))
    assert gradcheck(lambda c: vecbank.topk(x.detach(), bank.detach(), 3, bias=c).values, (bias,))
    vecbank.topk(x, bank, 9, allowed=mask, bias=bias).values.nan_to_num(0, 0, 0).sum().backward()
    assert torch.equal(bias.grad, mask.sum(0).to(F64))  # a missing neighbour passes nothing, to no row


def test_bias_refuses_what_it_does_not_go_with() -> None:
    x, bank, bias = gauss(4, 3), gauss(5, 3), gauss(5)
    for metric in METRICS[1:]:
        with pytest.raises(ValueError, match="bias"):
            vecbank.topk(x, bank, 2, metric, bias=bias)
    for wrong in (gauss(4), gauss(5, 1), bias.double()):
        with pytest.raises((ValueError, TypeError), match="bias"):
            vecbank.topk(x, bank, 2, bias=wrong)
    with pytest.raises(ValueError, match="bias"):
        vecbank.topk(x, vecbank.Bank(bank, metric="dot"), 2, bias=bias)


def test_zero_bias_changes_nothing(device: str) -> None:
    x, bank = gauss(30, 17).to(device), gauss(300, 17).to(device)
    got = vecbank.topk(x, bank, 20, bias=torch.zeros(300, device=device))
    assert all(same(a, b) for a, b in zip(got, vecbank.topk(x, bank, 20), strict=True))
