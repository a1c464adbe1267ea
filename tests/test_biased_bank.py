"""A Bank with a bias, the encoder of a sparse autoencoder: the same answers as the bias beside a plain tensor."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same, gauss
from torch import Tensor

import vecbank
from vecbank import Bank

N, M, D = 40, 700, 12


def encoder(dtype: torch.dtype = torch.float32, **more: Any) -> tuple[Tensor, Tensor, Tensor, Bank]:
    x, rows, bias = gauss(N, D, dtype=dtype), gauss(M, D, dtype=dtype, seed=1), gauss(M, dtype=dtype, seed=2)
    return x, rows, bias, Bank(rows, "dot", bias=bias, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("learnable", [False, True])
def test_topk_has_the_bits_of_the_bias_beside_a_tensor(dtype: torch.dtype, learnable: bool) -> None:
    x, rows, bias, bank = encoder(dtype, learnable=learnable)
    for k in (1, 7, M):
        assert_same(tuple(bank.topk(x, k)), tuple(vecbank.topk(x, rows, k, bias=bias)))
    assert (not bank._packs) == learnable


def test_sparse_encode_takes_it() -> None:
    x, rows, bias, bank = encoder()
    assert_same(tuple(vecbank.sparse_encode(x, bank, None, 9)), tuple(vecbank.sparse_encode(x, rows, bias, 9)))
    plain = Bank(rows, "dot")
    assert_same(tuple(vecbank.sparse_encode(x, plain, None, 9)), tuple(vecbank.sparse_encode(x, rows, None, 9)))


def test_gradients_reach_a_learnable_one() -> None:
    x, rows, bias, bank = encoder(torch.float64, learnable=True)
    vecbank.sparse_encode(x, bank, None, 5).values.square().sum().backward()
    rows.requires_grad_(), bias.requires_grad_()
    vecbank.sparse_encode(x, rows, bias, 5).values.square().sum().backward()
    assert bank.bias is not None
    assert_same((bank.vectors.grad, bank.bias.grad), (rows.grad, bias.grad))


def test_project_adds_it() -> None:
    x, rows, bias, bank = encoder(torch.float64)
    torch.testing.assert_close(bank.project(x), x @ rows.T + bias)
    assert bank.project(x.float().bfloat16().double(), out_dtype=torch.float32).dtype == torch.float32


def test_it_travels_with_the_bank() -> None:
    x, rows, bias, bank = encoder()
    want = tuple(bank.topk(x, 5))
    assert list(bank.state_dict()) == ["vectors", "bias"]
    for other in (copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))):
        assert_same(tuple(other.topk(x, 5)), want)
    fresh = Bank(torch.zeros_like(rows), "dot", bias=torch.zeros_like(bias))
    fresh.load_state_dict(bank.state_dict())
    assert_same(tuple(fresh.topk(x, 5)), want)
    moved = rows.clone()
    moved[3] *= 4
    bank.update_(torch.tensor([3]), moved[3:4])
    assert_same(tuple(bank.topk(x, 5)), tuple(vecbank.topk(x, moved, 5, bias=bias)))
    assert "biased" in repr(bank) and "biased" not in repr(Bank(rows))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x, rows, bias, bank: Bank(rows, "l2", bias=bias), "dot metric"),
        (lambda x, rows, bias, bank: Bank(rows, "dot", bias=bias[1:]), r"bias must be \(M,\)"),
        (lambda x, rows, bias, bank: Bank(rows, "dot", bias=bias.double()), r"bias must be \(M,\)"),
        (lambda x, rows, bias, bank: bank.nearest(x), "a Bank with a bias"),
        (lambda x, rows, bias, bank: bank.quantize(x), "a Bank with a bias"),
        (lambda x, rows, bias, bank: vecbank.topk(x, bank, 3, "l2"), "a Bank with a bias"),
        (lambda x, rows, bias, bank: vecbank.topk(x, bank, 3, bias=bias), "a Bank brings its own"),
        (lambda x, rows, bias, bank: vecbank.sparse_encode(x, bank, bias, 3), "bias must be None beside a Bank"),
        (lambda x, rows, bias, bank: vecbank.sparse_encode(x, Bank(rows, "cosine"), None, 3), 'metric "dot"'),
        (lambda x, rows, bias, bank: vecbank.residual_quantize(x, [bank], metric="dot"), "without a bias"),
    ],
)
def test_what_does_not_go_together(call: Callable[..., Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(*encoder())
