"""The gradient of `project` in one kernel: its values on every instruction set, and what it is for."""

from __future__ import annotations

import pytest
import torch
from cases import METRICS
from helpers import CODE, ISAS, assert_same, gauss
from test_gradient_paths import near, truth
from torch import Tensor

import vecbank
from vecbank._ops import project_gradient, small_gradient

HALF_AND_SINGLE = torch.float32, torch.bfloat16, torch.float16
KERNEL = torch.ops.vecbank.project_backward_small
SHAPES = [(1, 1, 2), (9, 17, 16), (33, 40, 24), (5, 300, 129)]


def problem(*lead: int, n: int, m: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(gauss(*lead, *size, seed=i).to(dtype) for i, size in enumerate(((n, m), (n, d), (m, d))))  # type: ignore[return-value]


@pytest.mark.parametrize("metric", METRICS)
def test_values(metric: str) -> None:
    for n, m, d in SHAPES:
        for lead in ((), (2,)):
            given = [problem(*lead, n=n, m=m, d=d, dtype=dtype) for dtype in HALF_AND_SINGLE]
            grad, x, bank = given[0]
            # A gradient of a type of its own; a bank of float32 with 16-bit x.
            given += [(grad.double(), x, bank), (grad.half(), x, bank), (grad, x.bfloat16(), bank)]
            for args in given:
                want = truth(*args, metric)
                for isa in ISAS:
                    vecbank._C.set_isa(isa)
                    near(KERNEL(*args, CODE[metric]), want)


@pytest.mark.parametrize("metric", METRICS)
def test_layouts_change_no_bit(metric: str) -> None:
    for lead in ((), (3,)):
        args = problem(*lead, n=12, m=20, d=16)
        want = KERNEL(*args, CODE[metric])
        columns = [t.mT.contiguous().mT for t in args]
        apart = [torch.stack([t, t], -2).flatten(-3, -2)[..., ::2, :] for t in args]
        for given in (columns, apart, [args[0], columns[1], apart[2]]):
            assert_same(KERNEL(*given, CODE[metric]), want)
        ones = torch.ones(()).expand_as(args[0])  # as sum().backward() hands it on
        assert_same(KERNEL(ones, *args[1:], CODE[metric]), KERNEL(ones.clone(), *args[1:], CODE[metric]))
        for i in range(2):
            got = KERNEL(*args, CODE[metric], i == 0, i == 1)
            assert_same(got[i], want[i])
            assert got[1 - i].numel() == 0


@pytest.mark.parametrize("metric", METRICS)
def test_threads_and_batches_change_no_bit(metric: str) -> None:
    args = problem(9, n=130, m=260, d=70)
    want = KERNEL(*args, CODE[metric])
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert_same(KERNEL(*args, CODE[metric]), want)
        for b in (0, 8):
            assert_same(KERNEL(*(t[b] for t in args), CODE[metric]), tuple(t[b] for t in want))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [1e-36, 1e-20, 1.0, 1e18, 1e25])
def test_distances_that_float32_cannot_square(size: float, isa: str) -> None:
    """And a distance of 0, which has no gradient."""
    vecbank._C.set_isa(isa)
    grad, x, bank = problem(n=20, m=30, d=40)
    x, bank = x * size, bank * size
    bank[3], bank[7, :5] = x[4], torch.inf
    finite = torch.arange(30) != 7
    got = KERNEL(grad, x, bank, CODE["l2"])
    near((got[1][finite],), truth(grad[:, finite], x, bank[finite], "l2")[1:])
    near((KERNEL(grad[:, finite], x, bank[finite], CODE["l2"])), truth(grad[:, finite], x, bank[finite], "l2"))
    assert got[0][:, :5].isnan().all() and got[1][7, :5].isnan().all()
    same = KERNEL(grad[:1, :1], x[4:5], bank[3:4], CODE["l2"])
    assert not same[0].any() and not same[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norms_below_the_floor(dtype: torch.dtype) -> None:
    grad, x, bank = problem(n=9, m=8, d=20, dtype=dtype)
    x[2], x[3], bank[5] = 0.0, x[3] * 1e-10, 0.0
    want = truth(grad, x, bank, "cosine")
    for got, right in zip(KERNEL(grad, x, bank, CODE["cosine"]), want, strict=True):
        for row, exact in zip(got, right, strict=True):  # those of rows below the floor are 1e8 times as large
            near((row,), (exact,))


@pytest.mark.parametrize("sizes", [(0, 3, 2), (3, 0, 2), (3, 2, 0)], ids=str)
@pytest.mark.parametrize("lead", [(), (2,), (0,)], ids=str)
def test_empty(lead: tuple[int, ...], sizes: tuple[int, int, int]) -> None:
    n, m, d = sizes
    args = problem(*lead, n=n, m=m, d=d)
    for metric, code in CODE.items():
        out = KERNEL(*args, code)
        for got, rows in zip(out, args[1:], strict=True):
            assert got.shape == rows.shape and not got.any()
        x, bank = (t.clone().requires_grad_() for t in args[1:])
        grads = torch.autograd.grad(vecbank.project(x, bank, metric), (x, bank), args[0])
        assert_same(grads, out)


@pytest.mark.parametrize("lead", [(), (2,)], ids=str)
def test_l1_of_large_problems_is_summed_in_blocks(lead: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_gradient, "BLOCK_NUMBERS", 0)
    monkeypatch.setattr(project_gradient, "BLOCK_NUMBERS", 0)
    args = problem(*lead, n=150, m=40, d=30)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        given = tuple(t.to(dtype) for t in args)
        want = truth(*given, "l1")
        for i in range(2):
            got = torch.ops.vecbank.project_backward(*given, CODE["l1"], i == 0, i == 1)
            near(got[i : i + 1], want[i : i + 1])


@pytest.mark.parametrize("metric", METRICS)
def test_what_it_is_for(metric: str) -> None:
    fits, code = small_gradient.in_one_kernel, CODE[metric]
    assert fits(16, 64, 16, 1, code) and fits(1, 1, 1, 1, code)
    assert not fits(10_000, 1000, 64, 1, code)  # more than stays near the cache
    for isa in ISAS:
        vecbank._C.set_isa(isa)
        assert fits(16, 64, 16, 1, code)
        if metric in ("dot", "cosine"):
            assert not fits(400, 400, 1000, 1, code)  # a library multiplies faster
