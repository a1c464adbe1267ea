"""The gradient of a quantising step: one op against its formula, and the formula against the matrix it stands for."""

from __future__ import annotations

import pytest
import torch
from helpers import DEVICES, ISAS, gauss
from second_opinions import quantize_backward_by_torch

import vecbank
from vecbank._ops import ESTIMATORS
from vecbank._ops.rotation import rotated_gradient

op = torch.ops.vecbank.quantize_backward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1), (7, 3), (2, 300, 8), (90, 257)], ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("device", DEVICES)
def test_the_op_is_the_formula(device: str, estimator: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    grad, x, quantized = (gauss(*shape, seed=seed).to(device, dtype) for seed in range(3))
    scale = torch.tensor(0.37, device=device)
    got = op(grad, x, quantized, scale, ESTIMATORS[estimator])
    want = quantize_backward_by_torch(grad.double(), x.double(), quantized.double(), scale, ESTIMATORS[estimator])
    assert got.dtype == dtype and got.shape == x.shape
    torch.testing.assert_close(got.double(), want, rtol=8 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps)


def test_it_turns_by_the_rotation_of_the_paper() -> None:
    """s R' g with R = I - 2 w w' + 2 q u', which turns u = x / |x| into q = t / |t|; s = |t| / |x|."""
    grad, x, target = (gauss(4, 6, seed=seed).double() for seed in range(3))
    got = op(grad, x, target, torch.tensor(0.0), ESTIMATORS["rotation"])
    for i in range(4):
        u, q = x[i] / x[i].norm(), target[i] / target[i].norm()
        w = (u + q) / (u + q).norm()
        turn = torch.eye(6).double() - 2 * torch.outer(w, w) + 2 * torch.outer(q, u)
        scale = target[i].norm() / x[i].norm()
        torch.testing.assert_close(scale * turn @ x[i], target[i])
        torch.testing.assert_close(got[i], scale * turn.T @ grad[i])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rows_without_direction_are_finite(estimator: str) -> None:
    """Zero vectors, and a code opposite to x: the floors of the formula, not a division by zero."""
    x = torch.stack([torch.zeros(5), torch.ones(5), torch.ones(5), torch.zeros(5)])
    target = torch.stack([torch.ones(5), torch.zeros(5), -torch.ones(5), torch.zeros(5)])
    grad, scale = gauss(4, 5), torch.tensor(0.1)
    got = op(grad, x, target, scale, ESTIMATORS[estimator])
    assert got.isfinite().all()
    want = quantize_backward_by_torch(grad, x, target, scale, ESTIMATORS[estimator])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_bits_do_not_depend_on_threads_or_isa(isa: str, threads: int) -> None:
    data = [gauss(3000, 33, seed=seed) for seed in range(3)]
    want = op(*data, torch.tensor(0.2), 2)
    vecbank._C.set_isa(isa)
    torch.set_num_threads(threads)
    assert torch.equal(op(*data, torch.tensor(0.2), 2), want)
    parts = [op(*(t[rows] for t in data), torch.tensor(0.2), 2) for rows in torch.arange(3000).split(700)]
    assert torch.equal(torch.cat(parts), want)


def test_the_formula_is_differentiable_once_more() -> None:
    assert torch.autograd.gradcheck(
        lambda g: rotated_gradient(g, gauss(3, 4, seed=1).double(), gauss(3, 4, seed=2).double()),
        gauss(3, 4).double().requires_grad_(),
    )
