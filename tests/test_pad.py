"""`topk` with ``pad=True``: more rows asked for than the bank has, filled up with index -1 as FAISS does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import METRICS
from helpers import FLOATS, assert_same, gauss
from torch import Tensor, nn

import vecbank
from vecbank import Bank, TopK

ROWS, MORE = 5, 3
WORST = {"dot": -torch.inf, "cosine": -torch.inf, "l2": torch.inf, "sqeuclidean": torch.inf, "l1": torch.inf}


def padded(found: TopK, metric: str) -> tuple[Tensor, Tensor]:
    """What a padded search returns, from the one for all rows."""
    shape = (*found.values.shape[:-1], MORE)
    values = torch.cat([found.values, found.values.new_full(shape, WORST[metric])], -1)
    return values, torch.cat([found.indices, found.indices.new_full(shape, -1)], -1)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_all_rows_and_then_nothing(metric: str, dtype: torch.dtype, device: str) -> None:
    bank, mask = gauss(ROWS, 4, dtype=dtype).to(device), torch.tensor([1, 0, 1, 1, 0], device=device) > 0
    for x in (gauss(7, 4, dtype=dtype), gauss(4, dtype=dtype), gauss(2, 3, 4, dtype=dtype), gauss(0, 4, dtype=dtype)):
        x = x.to(device)
        for allowed in (None, mask):
            want = padded(vecbank.topk(x, bank, ROWS, metric, allowed=allowed), metric)
            assert_same(tuple(vecbank.topk(x, bank, ROWS + MORE, metric, allowed=allowed, pad=True)), want)
            assert_same(tuple(Bank(bank, metric).topk(x, ROWS + MORE, allowed=allowed, pad=True)), want)
    both, many = gauss(2, 3, 4, dtype=dtype).to(device), gauss(2, ROWS, 4, dtype=dtype).to(device)
    want = padded(vecbank.topk(both, many, ROWS, metric), metric)
    assert_same(tuple(vecbank.topk(both, many, ROWS + MORE, metric, pad=True)), want)


@pytest.mark.parametrize("metric", METRICS)
def test_pad_changes_nothing_where_the_bank_has_enough(metric: str, device: str) -> None:
    x, bank = gauss(7, 4).to(device), gauss(ROWS, 4).to(device)
    for k in (1, ROWS):
        assert_same(tuple(vecbank.topk(x, bank, k, metric, pad=True)), tuple(vecbank.topk(x, bank, k, metric)))


def test_a_bias_is_added(device: str) -> None:
    x, bank, bias = (t.to(device) for t in (gauss(7, 4), gauss(ROWS, 4), gauss(ROWS)))
    want = padded(vecbank.topk(x, bank, ROWS, "dot", bias=bias), "dot")
    assert_same(tuple(vecbank.topk(x, bank, ROWS + MORE, "dot", bias=bias, pad=True)), want)
    assert_same(tuple(Bank(bank, "dot", bias=bias).topk(x, ROWS + MORE, pad=True)), want)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_an_empty_bank_gives_nothing_but_padding(metric: str, dtype: torch.dtype, device: str) -> None:
    x = gauss(7, 4, dtype=dtype).to(device).requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for bank in (torch.empty(0, 4, dtype=dtype, device=device), Bank(gauss(0, 4, dtype=dtype).to(device), metric)):
        top = vecbank.topk(x, bank, 2, metric, pad=True)
        assert top.values.dtype == wide and bool((top.values == WORST[metric]).all())
        assert top.indices.dtype == torch.int64 and bool((top.indices == -1).all())
        top.values.sum().backward()
        assert x.grad is not None and not bool(x.grad.any())
    batched = vecbank.topk(gauss(2, 3, 4).to(device), gauss(2, 0, 4).to(device), 2, metric, pad=True)
    assert batched.values.shape == (2, 3, 2) and bool((batched.indices == -1).all())


@pytest.mark.parametrize("metric", METRICS)
def test_padding_passes_no_gradient(metric: str, device: str) -> None:
    grads = []
    for k, pad in ((ROWS, False), (ROWS + MORE, True)):
        x, bank = (t.to(device).requires_grad_() for t in (gauss(7, 4), gauss(ROWS, 4)))
        weights = gauss(7, ROWS + MORE).to(device)[:, :k]
        values = vecbank.topk(x, bank, k, metric, pad=pad).values
        torch.autograd.backward(values, weights)
        grads.append((x.grad, bank.grad))
    assert_same(grads[1], grads[0])


class Padded(nn.Module):
    def __init__(self, bank: Bank) -> None:
        super().__init__()
        self.bank = bank

    def forward(self, x: Tensor) -> Any:
        return self.bank.topk(x, ROWS + MORE, pad=True)


@pytest.mark.parametrize("rows", [ROWS, 0])
def test_traced(rows: int) -> None:
    module, x = Padded(Bank(gauss(rows, 4), "l2")), gauss(7, 4)
    want = tuple(module(x))
    torch._dynamo.reset()
    for dynamic in (False, True):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        assert_same(tuple(compiled(x)), want)
        assert type(compiled(x)) is TopK
    for strict in (False, True):
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=strict)
        assert_same(tuple(program.module()(x)), want)
        assert_same(tuple(program.module()(x[:3])), tuple(t[:3] for t in want))


def test_vmap() -> None:
    x, bank = gauss(2, 7, 4), gauss(ROWS, 4)
    values, indices = torch.vmap(lambda rows: tuple(vecbank.topk(rows, bank, ROWS + MORE, "l2", pad=True)))(x)
    assert_same((values, indices), tuple(vecbank.topk(x, bank, ROWS + MORE, "l2", pad=True)))
