"""Gradients: right in float64, the edge rules of the contract, and double backward that works or raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import METRICS
from helpers import assert_same, gauss, ints, same, without_kernel
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import vecbank
from vecbank import reference
from vecbank._ops import distance_gradient

F64 = torch.float64


def leaf(*shape: int, seed: int = 0, dtype: torch.dtype = F64, device: str = "cpu") -> Tensor:
    return gauss(*shape, dtype=dtype, seed=seed).to(device).requires_grad_()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (0,)], ids=str)
def test_project(lead: tuple[int, ...], metric: str, device: str) -> None:
    x, bank = leaf(*lead, 5, device=device), leaf(6, 5, seed=1, device=device)
    assert gradcheck(lambda a, b: vecbank.project(a, b, metric), (x, bank))
    fixed = x.detach()
    assert gradcheck(lambda b: vecbank.project(fixed, b, metric), (bank,))
    rows = bank.detach()
    if lead != (0,):
        assert gradcheck(lambda a: vecbank.project(a, rows, metric), (x,))
        assert gradcheck(lambda a: vecbank.project(a, vecbank.Bank(rows, metric=metric)), (x,))


@pytest.mark.parametrize("metric", METRICS)
def test_project_batched(metric: str, device: str) -> None:
    x, bank = leaf(2, 3, 4, device=device), leaf(2, 5, 4, seed=1, device=device)
    assert gradcheck(lambda a, b: vecbank.project(a, b, metric), (x, bank))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [1, 8, 17, 64, 100])
def test_project_matches_the_reference(d: int, metric: str, device: str) -> None:
    """At sizes gradcheck cannot afford; with a norm below the constant, a zero row, a distance of zero."""
    x, bank = gauss(40, d, dtype=F64), gauss(30, d, dtype=F64, seed=1)
    bank[3], x[2] = 0, 0
    if metric == "cosine":  # as distances these would be next to nothing, which a dense product cannot resolve
        bank[5], x[7] = bank[5] * 1e-9 / d, x[7] * 1e-10
    x[11] = bank[11]
    grads = []
    for function, place in ((vecbank.project, device), (reference.project, "cpu")):
        a, b = (t.clone().to(place).requires_grad_() for t in (x, bank))
        out = function(a, b, metric)
        out.backward(gauss(40, 30, dtype=F64, seed=2).to(place))
        grads.append((a.grad.cpu(), b.grad.cpu()))
    for got, want in zip(*grads, strict=True):
        scale = want.abs().amax(-1, keepdim=True).clamp(min=1e-3)
        torch.testing.assert_close(got / scale, want / scale, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_project_gradient_dtypes(dtype: torch.dtype, metric: str, device: str) -> None:
    for bank_dtype in {dtype, torch.float32}:
        x, bank = (
            leaf(9, 20, dtype=dtype, device=device),
            leaf(12, 20, seed=1, dtype=bank_dtype, device=device),
        )
        vecbank.project(x, bank, metric).sum().backward()
        a, b = x.detach().double().requires_grad_(), bank.detach().double().requires_grad_()
        reference.project(a, b, metric).sum().backward()
        for got, want in ((x.grad, a.grad), (bank.grad, b.grad)):
            assert got.dtype == (dtype if got is x.grad else bank_dtype)
            tolerance = 24 * torch.finfo(dtype).eps * want.abs().max().item()
            torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance)


def _difficult() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """x, bank and upstream gradient, where a distance is far below what its vectors hold."""
    x, bank, grad = gauss(70, 24, dtype=F64), gauss(150, 24, dtype=F64, seed=1), gauss(70, 150, dtype=F64, seed=2)
    place, scale = torch.arange(70) % 3, torch.tensor([1e-3, 1.0, 1e6], dtype=F64)
    far, half, cut = bank.clone(), bank.clone(), grad.clone()
    cut[:, 40] = 0
    far[40] *= 1e8
    further = far.clone()
    further[40] *= 100
    half[:75] += 1e7
    centres = 1e5 * gauss(3, 24, dtype=F64, seed=3)
    near = bank[place * 40] + 0.01 * x
    apart = bank + 100 * centres[torch.arange(150) % 3] / 1e5  # so near that float64 is enough, but of equal rows
    equals = torch.cat([apart[:10], x[10:] + apart[place[10:]]])
    return {
        "far": (x, far, cut),
        "further": (x, further, cut),
        "half of them far": (x, half, torch.cat([torch.zeros(70, 75, dtype=F64), grad[:, 75:]], 1)),
        "offset": (1e8 + 100 * x, 1e8 + 100 * bank, grad),
        "scales": (x * scale[place, None], bank * scale[torch.arange(150) % 3, None], grad),
        "clusters": (x + centres[place], bank + centres[torch.arange(150) % 3], grad),
        "clusters and equal": (equals, apart, grad),
        "near": (near, bank, grad),
        "near and peaked": (near, bank, torch.softmax(-torch.cdist(near, bank).square(), -1)),
        "equal": (bank[:70].clone(), bank, grad),
        "small": (1e-12 * x, 1e-12 * bank, 1e-12 * grad),
        "narrow": (x[:, :3].contiguous() + 1e4, bank[:, :3].contiguous() + 1e4, grad),
    }


@pytest.mark.parametrize("metric", ["l2", "sqeuclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(_difficult()))
@pytest.mark.parametrize("way", ["kernel", "torch"])
def test_distance_gradient_on_difficult_data(
    way: str, name: str, dtype: torch.dtype, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For both sides, batched too, right to a few of the last units of the largest: also where torch.cdist, which
    multiplies out about the origin, has no digit right.
    """
    if way == "torch":
        without_kernel(monkeypatch)
    elif dtype == F64:
        pytest.skip("the kernel is not for float64")
    x, bank, grad = (t.to(dtype) for t in _difficult()[name])
    work = dtype if dtype.itemsize > 2 else torch.float32
    truth = _long_sums if dtype == F64 else by_differences  # the truth of float64 needs more digits
    want = [truth(*side, metric) for side in _sides(grad.double(), x.double(), bank.double())]
    short = [t.to(work) for t in (grad, x, bank)]

    def check(got: Tensor, right: Tensor) -> None:
        units = 8 if got.dtype == work else 1
        assert (got.double() - right).abs().max() <= units * torch.finfo(got.dtype).eps * right.abs().max()

    for lead in (1, 2):
        a, b = (t.expand(lead, *t.shape).clone().requires_grad_() for t in (x, bank))
        vecbank.project(a, b, metric).backward(grad.expand(lead, *grad.shape))
        assert a.grad.dtype == b.grad.dtype == dtype
        for got, right in zip((a.grad, b.grad), want, strict=True):
            check(got, right.expand_as(got))
    for least in (None, torch.zeros(70)):  # without the forward pass's word, one side at a time
        for i, right in enumerate(want):
            args = (*short, METRICS.index(metric), i == 0, i == 1, least)
            check(torch.ops.vecbank.project_backward(*args)[i], right)
    monkeypatch.setattr(distance_gradient, "_FEW_TERMS", 0)  # as problems whose differences take long
    pair = (torch.stack([t, t]) for t in short)
    for got, right in zip(torch.ops.vecbank.project_backward(*pair, METRICS.index(metric)), want, strict=True):
        check(got, right.expand_as(got))
    monkeypatch.setattr(distance_gradient, "SMALL_BLOCK_BYTES", 1)  # blocks of one close pair
    for got, right in zip(torch.ops.vecbank.project_backward(*short, METRICS.index(metric)), want, strict=True):
        check(got, right)


@pytest.mark.parametrize("metric", ["l2", "sqeuclidean"])
@pytest.mark.parametrize("shape", [(20, 25, 40), (300, 90, 8)], ids=str)
def test_distance_gradient_by_differences(
    shape: tuple[int, int, int], metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a few rows, for which torch.cdist sums differences too, and of narrow ones: the sums of differences."""
    without_kernel(monkeypatch)
    n, m, d = shape
    x, bank, grad = gauss(n, d) + 1e4, gauss(m, d, seed=1) + 1e4, gauss(n, m, seed=2)
    got = torch.ops.vecbank.project_backward(grad, x, bank, METRICS.index(metric))
    for side, right in zip(got, (by_differences(*s, metric) for s in _sides(grad, x, bank)), strict=True):
        torch.testing.assert_close(side, right, rtol=1e-6, atol=1e-6 * right.abs().max().item())


def test_distance_gradient_chooses_by_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in the inputs' dtype on ordinary data and beside a few close pairs, in float64 beside many."""
    without_kernel(monkeypatch)
    monkeypatch.setattr(distance_gradient, "SMALL_BLOCK_BYTES", 1)  # as large problems
    seen: list[tuple[torch.dtype, int]] = []
    products, pairs = distance_gradient._Distance._products, distance_gradient._Distance._pairs

    def record(self: Any, g: Tensor, *rest: Any) -> bool:
        seen.append((g.dtype, 0))
        return products(self, g, *rest)

    def record_pairs(self: Any, which: tuple[Tensor, ...], *rest: Any) -> None:
        seen.append((torch.int64, which[0].shape[0]))
        pairs(self, which, *rest)

    monkeypatch.setattr(distance_gradient._Distance, "_products", record)
    monkeypatch.setattr(distance_gradient._Distance, "_pairs", record_pairs)
    x, bank, grad = gauss(64, 100), gauss(70, 100, seed=1), gauss(64, 70, seed=2)
    centres = 100 * gauss(4, 100, seed=3)
    f32, f64 = (torch.float32, 0), (F64, 0)
    for near, rows, want in (
        (x, bank, [f32]),
        (bank[:64] + 0.1 * x, bank, [f32, (torch.int64, 64)]),
        (x + centres[torch.arange(64) % 4], bank + centres[torch.arange(70) % 4], [f32, f64]),
    ):
        seen.clear()
        torch.ops.vecbank.project_backward(grad, near, rows, METRICS.index("l2"))
        assert seen == want


def _sides(grad: Tensor, x: Tensor, bank: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [(grad, x, bank), (grad.T.contiguous(), bank, x)]


def by_differences(grad: Tensor, rows: Tensor, others: Tensor, metric: str) -> Tensor:
    """torch.cdist's own backward."""
    if metric == "sqeuclidean":
        return 2 * torch.ops.aten._cdist_backward(grad, rows, others, 2.0, torch.ones_like(grad))
    score = torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.ops.aten._cdist_backward(grad, rows, others, 2.0, score)


def _long_sums(grad: Tensor, rows: Tensor, others: Tensor, metric: str) -> Tensor:
    apart = rows.numpy().astype(np.longdouble)[:, None] - others.numpy().astype(np.longdouble)
    norms = np.sqrt((apart * apart).sum(-1))
    factor = 2 * np.ones_like(norms) if metric == "sqeuclidean" else 1 / np.where(norms > 0, norms, np.inf)
    return torch.from_numpy(((grad.numpy() * factor)[..., None] * apart).sum(1).astype(np.float64))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (3, 5, 0), (0, 0, 0)], ids=str)
def test_empty_axes(shape: tuple[int, int, int], metric: str, device: str) -> None:
    """Zeros of the inputs' shapes: for every verb that takes rows and a bank, in a batch and out of it."""
    n, m, d = shape
    for lead in ((), (2,), (0,)):
        pair = [gauss(*lead, n, d).to(device), gauss(*lead, m, d).to(device)]
        calls: list[Callable[[Tensor, Tensor], Tensor]] = [
            lambda a, b: vecbank.project(a, b, metric),
            lambda a, b: vecbank.nearest(a, b, metric).values,
            lambda a, b: vecbank.quantize(a, b, metric)[0] * 0,  # straight through
            lambda a, b: vecbank.quantize_train(a, b, metric)[2],
        ]
        if m > 0:
            calls.append(lambda a, b: vecbank.topk(a, b, 2, metric).values)
        for call in calls:
            a, b = (t.clone().requires_grad_() for t in pair)
            call(a, b).sum().backward()
            for t in (a, b):
                assert t.grad is None or (t.grad.shape == t.shape and not t.grad.nan_to_num().any())
            assert a.grad is not None
    x, book = gauss(n, d).to(device).requires_grad_(), gauss(m, d).to(device)
    total, _, losses = torch.ops.vecbank.residual_quantize(x, [book, book], [], METRICS.index(metric))
    (total.sum() + losses.sum()).backward()
    assert x.grad.shape == (n, d)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("shape", [(0, 2, 5, 4), (3, 0, 5, 4), (3, 2, 0, 4), (3, 2, 5, 0)], ids=str)
def test_empty_axes_of_gathers(shape: tuple[int, int, int, int], weighted: bool, device: str) -> None:
    n, k, m, d = shape
    codes = torch.full((n, k), -1 if m == 0 else 0, device=device)
    for reduce in ("none", "sum", "mean"):
        bank, weights = leaf(m, d, device=device), leaf(n, k, device=device) if weighted else None
        vecbank.lookup(codes, bank, weights, reduce=reduce).sum().backward()
        assert bank.grad.shape == (m, d) and (weights is None or weights.grad.shape == (n, k))
        assert bank.grad.sum() == (0 if m == 0 or weighted else bank.grad[:1].sum())
    x, weights = leaf(n, d, device=device), leaf(n, k, device=device) if weighted else None
    vecbank.segment_sum(x, codes, m, weights).sum().backward()
    assert x.grad.shape == (n, d) and (weights is None or weights.grad.shape == (n, k))


@pytest.mark.parametrize("metric", METRICS)
def test_selected_values(metric: str, device: str) -> None:
    x, bank = leaf(4, 5, device=device), leaf(9, 5, seed=1, device=device)
    mask = torch.rand(4, 9).to(device) < 0.6
    assert gradcheck(lambda a, b: vecbank.topk(a, b, 3, metric)[0], (x, bank))
    assert gradcheck(lambda a, b: vecbank.topk(a, b, 9, metric)[0], (x, bank))
    assert gradcheck(lambda a, b: vecbank.nearest(a, b, metric)[0], (x, bank))
    assert gradcheck(
        lambda a, b: vecbank.topk(a, b, 2, metric, allowed=mask | (torch.arange(9, device=device) < 2))[0], (x, bank)
    )
    x, bank = leaf(2, 3, 4, device=device), leaf(2, 6, 4, seed=1, device=device)
    assert gradcheck(lambda a, b: vecbank.topk(a, b, 3, metric)[0], (x, bank))
    assert gradcheck(lambda a, b: vecbank.nearest(a, b, metric)[0], (x, bank))


@pytest.mark.parametrize("metric", METRICS)
def test_missing_neighbours_pass_no_gradient(metric: str, device: str) -> None:
    """Index -1 is nobody: not the last row, and not a NaN."""
    x, bank = leaf(3, 4, device=device), leaf(6, 4, seed=1, device=device)
    mask = torch.tensor([True, False, True, False, False, False], device=device).expand(3, 6).clone()
    mask[2] = False
    top = vecbank.topk(x, bank, 5, metric, allowed=mask)
    assert top.indices[2].tolist() == [-1] * 5
    top.values.masked_fill(top.indices < 0, 0).sum().backward()
    a, b = x.detach().cpu().requires_grad_(), bank.detach().cpu().requires_grad_()
    reference.project(a, b, metric)[:2, [0, 2]].sum().backward()
    torch.testing.assert_close(x.grad.cpu(), a.grad)
    torch.testing.assert_close(bank.grad.cpu(), b.grad)
    x.grad = bank.grad = None
    vecbank.topk(x, bank, 5, metric, allowed=mask).values.backward(torch.ones(3, 5, dtype=F64, device=device))
    torch.testing.assert_close(x.grad.cpu(), a.grad)  # even where the caller did not mask them
    torch.testing.assert_close(bank.grad.cpu(), b.grad)


def test_indices_carry_no_gradient(device: str) -> None:
    x, bank = leaf(3, 4, device=device), leaf(6, 4, device=device)
    for result in (vecbank.topk(x, bank, 2), vecbank.nearest(x, bank), vecbank.quantize(x, bank)):
        assert result[0].requires_grad and not result[1].requires_grad


@pytest.mark.parametrize("metric", METRICS[2:])
def test_distance_zero_has_gradient_zero(metric: str, device: str) -> None:
    # Whole numbers: `project` is exact on them, so that its zero is a zero.
    bank = ints(5, 3, dtype=F64).to(device).requires_grad_()
    x = bank.detach().clone().requires_grad_()
    for values in (
        vecbank.nearest(x, bank, metric).values,
        vecbank.topk(x, bank, 1, metric).values,
        vecbank.project(x, bank, metric).diagonal(),
    ):
        x.grad = bank.grad = None
        values.sum().backward()
        assert same(values, torch.zeros_like(values))
        assert not x.grad.any() and not bank.grad.any()


def test_short_norm_is_a_constant(device: str) -> None:
    """Below 1e-8 the cosine is linear in the vector: x.b / (1e-8 |b|)."""
    x = torch.tensor([[3e-10, 4e-10], [0.0, 0.0]], dtype=F64, device=device, requires_grad=True)
    bank = torch.tensor([[3.0, 4.0]], dtype=F64, device=device)
    for values in (vecbank.project(x, bank, "cosine"), vecbank.nearest(x, bank, "cosine").values):
        (grad,) = torch.autograd.grad(values.sum(), x)
        torch.testing.assert_close(grad.cpu(), torch.tensor([[0.6e8, 0.8e8]] * 2, dtype=F64))


@pytest.mark.parametrize("learnable", [False, True])
def test_quantize_is_straight_through(learnable: bool, device: str) -> None:
    x, rows = leaf(7, 3, device=device), gauss(5, 3, dtype=F64, seed=1).to(device)
    bank = vecbank.Bank(rows, metric="l2", learnable=learnable)
    plain = rows.clone().requires_grad_(learnable)
    grad = gauss(7, 3, dtype=F64, seed=2).to(device)
    for source in (bank, plain):
        x.grad = None
        vecbank.quantize(x, source)[0].backward(grad)
        assert torch.equal(x.grad, grad)
    for given in (bank.vectors.grad, plain.grad):
        assert given is None or not given.any()


def test_quantize_without_a_queries_gradient(device: str) -> None:
    """A learnable book beside fixed queries: there is nothing to pass on."""
    bank = leaf(5, 3, device=device)
    rows, _ = vecbank.quantize(gauss(4, 3, dtype=F64).to(device), bank)
    if rows.requires_grad:
        rows.sum().backward()
        assert bank.grad is None or not bank.grad.any()


def test_quantize_gradient_has_the_dtype_of_x(device: str) -> None:
    x = leaf(4, 3, dtype=torch.bfloat16, device=device)
    rows, _ = vecbank.quantize(x, gauss(5, 3).to(device))
    assert rows.dtype == torch.float32
    rows.backward(torch.full_like(rows, 0.5))
    assert x.grad.dtype == torch.bfloat16 and x.grad.tolist() == [[0.5] * 3] * 4


CODES = torch.tensor([[0, 3, 3], [-1, 1, 3], [-1, -1, -1], [2, 0, -1]])


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduce", ["none", "sum", "mean"])
def test_lookup(reduce: str, weighted: bool, device: str) -> None:
    bank, weights, codes = leaf(5, 4, device=device), leaf(4, 3, device=device), CODES.to(device)
    if weighted:
        assert gradcheck(lambda b, w: vecbank.lookup(codes, b, w, reduce=reduce), (bank, weights))
        rows = bank.detach()
        assert gradcheck(lambda w: vecbank.lookup(codes, rows, w, reduce=reduce), (weights,))
    else:
        assert gradcheck(lambda b: vecbank.lookup(codes, b, reduce=reduce), (bank,))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_segment_sum(weighted: bool, device: str) -> None:
    x, weights = leaf(12, 4, device=device), leaf(12, device=device)
    codes = CODES.flatten().to(device)
    if weighted:
        assert gradcheck(lambda a, w: vecbank.segment_sum(a, codes, 5, w), (x, weights))
    else:
        assert gradcheck(lambda a: vecbank.segment_sum(a, codes, 5), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scatter_in_backward_is_the_ordered_one(dtype: torch.dtype, device: str) -> None:
    """The gradient to the bank is ``segment_sum``, bit for bit: thousands of rows on a few codes."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-1, 7, (3000,), generator=generator)
    bank, grad = leaf(7, 9, dtype=dtype, device=device), gauss(3000, 9, dtype=dtype, seed=1) * 50
    vecbank.lookup(codes.to(device), bank).backward(grad.to(device))
    assert_same(bank.grad, reference.segment_sum(grad, codes, 7))
    bank.grad = None
    weights = gauss(1000, 3, dtype=dtype, seed=2)
    out = vecbank.lookup(codes.reshape(1000, 3).to(device), bank, weights.to(device), reduce="sum")
    out.backward(grad[:1000].to(device))
    spread = grad[:1000].repeat_interleave(3, 0)
    assert_same(bank.grad, reference.segment_sum(spread, codes, 7, weights.flatten()))


def test_missing_code_passes_no_gradient(device: str) -> None:
    bank = torch.full((3, 2), torch.nan, dtype=F64, device=device)
    bank[0] = 1.0
    bank.requires_grad_()
    weights = torch.ones(2, 2, dtype=F64, device=device, requires_grad=True)
    codes = torch.tensor([[0, -1], [-1, -1]], device=device)
    vecbank.lookup(codes, bank, weights, reduce="sum").sum().backward()
    assert bank.grad.tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    assert weights.grad.tolist() == [[2.0, 0.0], [0.0, 0.0]]
    x = torch.full((2, 2), torch.nan, dtype=F64, device=device, requires_grad=True)
    vecbank.segment_sum(x, torch.tensor([-1, 1], device=device), 3).sum().backward()
    assert x.grad.tolist() == [[0.0, 0.0], [1.0, 1.0]]


def _twice() -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    x, bank, codes = leaf(3, 4), leaf(5, 4, seed=1), CODES
    cases: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {}
    for metric in METRICS:
        cases[f"project {metric}"] = (lambda a, b, m=metric: vecbank.project(a, b, m), (x, bank))
        cases[f"topk {metric}"] = (lambda a, b, m=metric: vecbank.topk(a, b, 2, m)[0], (x, bank))
        cases[f"nearest {metric}"] = (lambda a, b, m=metric: vecbank.nearest(a, b, m)[0], (x, bank))
    for reduce in ("none", "sum", "mean"):
        cases[f"lookup {reduce}"] = (lambda b, r=reduce: vecbank.lookup(codes, b, reduce=r), (bank,))
        cases[f"lookup {reduce} weighted"] = (
            lambda b, w, r=reduce: vecbank.lookup(codes, b, w, reduce=r),
            (bank, leaf(4, 3)),
        )
    cases["segment_sum"] = (lambda a: vecbank.segment_sum(a, codes.flatten(), 5), (leaf(12, 2),))
    cases["segment_sum weighted"] = (
        lambda a, w: vecbank.segment_sum(a, codes.flatten(), 5, w),
        (leaf(12, 2), leaf(12)),
    )
    cases["quantize"] = (lambda a, b: vecbank.quantize(a, b)[0] * a, (x, bank))
    return cases


@pytest.mark.parametrize("name", list(_twice()))
def test_double_backward_works_or_raises(name: str) -> None:
    function, inputs = _twice()[name]
    out = function(*inputs)
    grads = torch.autograd.grad(
        (out * gauss(*out.shape, dtype=F64, seed=9)).pow(2).sum(),
        inputs,
        create_graph=True,
        allow_unused=True,
    )
    total = sum((g * g).sum() for g in grads if g is not None)
    try:
        second = torch.autograd.grad(total, inputs, allow_unused=True)
    except (RuntimeError, NotImplementedError):
        return  # said so
    if name == "quantize":  # straight-through: no true second derivative to compare with
        return
    assert all(g is None or bool(g.isfinite().all()) for g in second)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("stages", [0, 1, 3])
@pytest.mark.parametrize("metric", METRICS)
def test_second_derivative_of_the_losses(metric: str, stages: int, device: str) -> None:
    """The rows are held still, so that mean (x - b)^2 has the second derivative 2 / n in x, and none in the books;
    `stages` 0 is `quantize_train`. Rows without a code have none.
    """
    x, books = leaf(7, 3, device=device), [leaf(5, 3, seed=s + 1, device=device) for s in range(max(stages, 1))]
    with torch.no_grad():
        x[4] = torch.nan
    if stages == 0:
        quantized, _, losses, *_ = vecbank.quantize_train(x, books[0], metric)
    else:
        quantized, _, losses = torch.ops.vecbank.residual_quantize(x, books, [], METRICS.index(metric))
    weights = torch.arange(1.0, max(stages, 1) + 1, dtype=F64, device=device)
    (first,) = torch.autograd.grad((losses * weights).sum() + quantized.sum(), x, create_graph=True)
    upstream = gauss(7, 3, dtype=F64, seed=9).to(device)
    got = torch.autograd.grad((first * upstream).sum(), (x, *books), allow_unused=True)
    want = upstream * (2 * weights.sum() / 18)
    want[4] = 0
    torch.testing.assert_close(got[0], want)
    assert got[1:] == (None,) * len(books)


def test_graph_is_freed_and_retained(device: str) -> None:
    x, bank = leaf(4, 5, device=device), leaf(6, 5, device=device)
    out = vecbank.project(x, bank, "cosine").sum()
    out.backward(retain_graph=True)
    first = x.grad.clone()
    x.grad = None
    out.backward()
    assert torch.equal(x.grad, first)


def test_changed_in_place_before_backward_raises(device: str) -> None:
    x, bank = leaf(4, 5, device=device), gauss(6, 5, dtype=F64).to(device)
    out = vecbank.project(x, bank, "cosine").sum()
    bank.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()
