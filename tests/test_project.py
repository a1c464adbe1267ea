"""The dense contract of ``project``: exact on integers, else within twice ATen's error from float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import BALL, DTYPES, METRICS, PROJECT, Case, build
from helpers import FLOATS, Target, assert_same, gauss, ints
from torch import Tensor

import vecbank
from vecbank import reference


def aten(x: Tensor, bank: Tensor, metric: str, out_dtype: torch.dtype) -> Tensor:
    """What a user writes today, in the same dtype (a float32 bank makes it float32)."""
    x = x.to(bank.dtype)
    if metric == "dot":
        return (x @ bank.transpose(-1, -2)).to(out_dtype)
    if metric == "cosine":
        normal = F.normalize(bank, dim=-1, eps=1e-8).transpose(-1, -2)
        return (F.normalize(x, dim=-1, eps=1e-8) @ normal).to(out_dtype)
    if x.dtype in (torch.bfloat16, torch.float16):  # cdist has no 16-bit kernel on the CPU
        x, bank = x.float(), bank.float()
    flat = x if bank.dim() == 3 else x.reshape(-1, x.shape[-1])
    if metric == BALL:
        ratio = torch.cdist(flat, bank).square()
        ratio = ratio / ((1 - flat.square().sum(-1, keepdim=True)) * (1 - bank.square().sum(-1).unsqueeze(-2)))
        return torch.acosh(1 + 2 * ratio).reshape(*x.shape[:-1], bank.shape[-2]).to(out_dtype)
    distance = torch.cdist(flat, bank, 1.0 if metric == "l1" else 2.0, compute_mode="use_mm_for_euclid_dist")
    distance = distance.reshape(*x.shape[:-1], bank.shape[-2])
    return (distance.square() if metric == "sqeuclidean" else distance).to(out_dtype)


def truth(x: Tensor, bank: Tensor, metric: str) -> Tensor:
    """Float64 for narrower input; for float64 input, the same in numpy's long double."""
    if x.dtype != torch.float64:
        return reference.project(x, bank, metric, out_dtype=torch.float64)
    a, b = x.numpy().astype(np.longdouble), bank.numpy().astype(np.longdouble)
    a, b = a[..., :, None, :] if bank.dim() == 3 else a[..., None, :], b[:, None] if bank.dim() == 3 else b
    if metric == BALL:
        own, other = (1 - (a**2).sum(-1)), (1 - (b**2).sum(-1))
        score = 2 * np.arcsinh(np.sqrt(((a - b) ** 2).sum(-1) / (own * other)))
    elif metric == "l2":
        score = np.sqrt(((a - b) ** 2).sum(-1))
    elif metric == "sqeuclidean":
        score = ((a - b) ** 2).sum(-1)
    elif metric == "l1":
        score = np.abs(a - b).sum(-1)
    else:
        score = (a * b).sum(-1)
        if metric == "cosine":
            norms = (np.maximum(np.sqrt((v * v).sum(-1)), np.longdouble(1e-8)) for v in (a, b))
            score = score / math.prod(norms)
    return torch.from_numpy(np.asarray(score, dtype=np.float64)).reshape(*x.shape[:-1], bank.shape[-2])


def ulp(value: float, dtype: torch.dtype) -> float:
    info = torch.finfo(dtype)
    return 2.0 ** max(math.floor(math.log2(max(value, info.tiny))), math.log2(info.tiny)) * info.eps


def assert_within_contract(got: Tensor, x: Tensor, bank: Tensor, metric: str, device: str = "cpu") -> None:
    """All three on the CPU; `device` is where ATen's own error is taken from."""
    want = truth(x, bank, metric)
    assert got.shape == want.shape
    if not want.numel():
        return
    finite = want.abs() < torch.finfo(got.dtype).max
    assert torch.equal(got[~finite].double().abs(), torch.full_like(want[~finite], torch.inf))
    want, mine = want[finite], got[finite].double()
    if not want.numel():
        return
    # ATen's normalize gives NaN for short float16 rows (its eps is zero there): those entries allow no error.
    expression = aten(x.to(device), bank.to(device), metric, got.dtype).cpu()
    theirs = (expression[finite].double() - want).abs().nan_to_num(0.0).max().item()
    allowed = 2 * theirs + 2 * ulp(want.abs().max().item(), got.dtype)
    error = (mine - want).abs().max().item()
    assert error <= allowed, f"error {error:.3g}, ATen's {theirs:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize("case", PROJECT, ids=str)
def test_table(case: Case, target: Target) -> None:
    inputs = build(case)
    x, bank = inputs.x, inputs.bank
    on = (x.to(target.device), bank.to(target.device)) if target.device != "cpu" else (x, bank)
    got = vecbank.project(*on, case.metric)
    assert got.dtype == x.dtype
    assert_within_contract(got.cpu(), x, bank, case.metric, target.device)
    if case.data == "ints" and case.metric in ("dot", "sqeuclidean", "l1"):
        assert_same(got, reference.project(x, bank, case.metric))
    if not case.batched:
        prepared = vecbank.project(on[0], vecbank.Bank(on[1], metric=case.metric))
        assert_within_contract(prepared.cpu(), x, bank, case.metric, target.device)
    for way in (1, 2, 4) if target.device == "cpu" else ():
        vecbank._C.force_ways(project=way)
        assert_within_contract(vecbank.project(x, bank, case.metric), x, bank, case.metric)


@pytest.mark.parametrize("metric", ["dot", "sqeuclidean", "l1"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_integers_are_exact(dtype: str, metric: str, target: Target) -> None:
    x_dtype, bank_dtype = DTYPES[dtype]
    for n, m, d in ((1, 1, 1), (13, 33, 17), (150, 100, 64), (5, 2000, 9), (33, 17, 257)):
        x, bank = ints(n, d, dtype=x_dtype), ints(m, d, dtype=bank_dtype, seed=1)
        got = vecbank.project(x.to(target.device), bank.to(target.device), metric)
        assert_same(got, reference.project(x, bank, metric), f"{n} x {m} x {d}")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("out_dtype", FLOATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_out_dtype(dtype: str, out_dtype: torch.dtype, metric: str, device: str) -> None:
    """Rounded straight to the dtype asked for: a wide output of 16-bit input keeps what the product knew."""
    x_dtype, bank_dtype = DTYPES[dtype]
    x, bank = gauss(9, 24, dtype=x_dtype), gauss(21, 24, dtype=bank_dtype, seed=1)
    got = vecbank.project(x.to(device), bank.to(device), metric, out_dtype=out_dtype)
    assert got.dtype == out_dtype
    want = truth(x, bank, metric)
    work = torch.float64 if x_dtype == torch.float64 else torch.float32
    unit = max(torch.finfo(out_dtype).eps, 64 * torch.finfo(work).eps)
    assert (got.cpu().double() - want).abs().max() <= unit * want.abs().max()


def test_default_metric_is_cosine(device: str) -> None:
    x, bank = gauss(4, 6).to(device), gauss(5, 6).to(device)
    assert torch.equal(vecbank.project(x, bank), vecbank.project(x, bank, "cosine"))
    assert torch.equal(vecbank.project(x, vecbank.Bank(bank, metric="l2")), vecbank.project(x, bank, "l2"))


def test_short_norms_count_as_the_constant(device: str) -> None:
    """Under 1e-8 a norm is 1e-8: the score shrinks with the vector, and a zero vector scores zero."""
    bank = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-10, 4e-10]], dtype=torch.float64).to(device)
    x = torch.tensor([[6e-10, 8e-10], [0.0, 0.0], [0.6, 0.8]], dtype=torch.float64).to(device)
    got = vecbank.project(x, bank, "cosine").cpu()
    want = torch.tensor([[0.1, 0.0, 0.005], [0.0, 0.0, 0.0], [1.0, 0.0, 0.05]], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("metric", METRICS[2:])
@pytest.mark.parametrize("dtype", FLOATS)
def test_distances_are_never_negative_or_nan(dtype: torch.dtype, metric: str, device: str) -> None:
    bank = (gauss(40, 30) * 1e-3 + 7).to(dtype).to(device)
    got = vecbank.project(bank, bank, metric)
    assert bool((got >= 0).all())


@pytest.mark.parametrize("metric", METRICS)
def test_nan_stays_in_its_row_and_column(metric: str, device: str) -> None:
    x, bank = gauss(20, 9), gauss(50, 9)
    bad_x, bad_bank = x.clone(), bank.clone()
    bad_x[3, 4] = bad_bank[17, 0] = float("nan")
    clean = vecbank.project(x.to(device), bank.to(device), metric).cpu()
    got = vecbank.project(bad_x.to(device), bad_bank.to(device), metric).cpu()
    hit = torch.zeros(20, 50, dtype=torch.bool)
    hit[3], hit[:, 17] = True, True
    assert torch.equal(got.isnan(), hit)
    torch.testing.assert_close(got[~hit], clean[~hit])


@pytest.mark.parametrize("metric", METRICS)
def test_empty(metric: str, device: str) -> None:
    for lead, m, d in (((0,), 5, 3), ((2, 0), 5, 3), ((4,), 0, 3), ((), 0, 3), ((0,), 0, 3)):
        x, bank = torch.ones(*lead, d, device=device), torch.ones(m, d, device=device)
        assert vecbank.project(x, bank, metric).shape == (*lead, m)
        assert vecbank.project(x, vecbank.Bank(bank, metric=metric)).shape == (*lead, m)


@pytest.mark.parametrize("metric", METRICS)
def test_result_is_contiguous_and_new(metric: str, device: str) -> None:
    x, bank = gauss(4, 6).t().contiguous().t().to(device), gauss(5, 6).to(device)
    got = vecbank.project(x, bank, metric)
    assert got.is_contiguous() and got.shape == (4, 5)
