"""The answer does not depend on ISA, threads, batch split, Bank or tensor, row order or repetition."""

from __future__ import annotations

import pytest
import torch
from cases import METRICS, SAMPLE, Case, build
from helpers import ISAS, assert_same, gauss, run, same

import vecbank

pytestmark = pytest.mark.usefixtures("both_ways")

THREADS = (1, 2, 4)
# What needs several threads, a split bank or a full buffer to show itself.
LARGE = [
    Case("topk", "l2", lead=(3,), m=30000, d=12, k=20),
    Case("topk", "dot", lead=(1,), m=30000, d=12, k=3000, data="ties"),
    Case("topk", "cosine", lead=(300,), m=900, d=20, k=64),
    Case("nearest", "l2", lead=(2,), m=40000, d=9, data="same"),
    Case("nearest", "dot", lead=(1000,), m=200, d=16, data="ties"),
    Case("quantize", "l2", "bf16+f32", lead=(500,), m=300, d=33, data="offset"),
]


@pytest.mark.parametrize("case", SAMPLE + LARGE, ids=str)
def test_isas_and_threads(case: Case) -> None:
    inputs = build(case)
    x, bank, allowed = inputs.x, inputs.bank, inputs.allowed
    want = None
    for isa in ISAS:
        vecbank._C.set_isa(isa)
        for threads in THREADS:
            torch.set_num_threads(threads)
            prepared = vecbank.Bank(bank, metric=case.metric)  # packed under this ISA and thread count
            for source in (bank, prepared):
                got = run(case, x, source, allowed)
                want = want or got
                assert_same(got, want, f"{isa}, {threads} threads, {type(source).__name__}")


def test_pack_of_one_isa_serves_another() -> None:
    x, bank = gauss(20, 17), gauss(300, 17)
    for metric in METRICS:
        answers = []
        for packer in ISAS:
            vecbank._C.set_isa(packer)
            prepared = vecbank.Bank(bank, metric=metric)
            for user in ISAS:
                vecbank._C.set_isa(user)
                answers.append(tuple(prepared.topk(x, 30)))
        for answer in answers:
            assert_same(answer, answers[0])


@pytest.mark.parametrize("case", [c for c in SAMPLE + LARGE if not c.batched and len(c.lead) == 1], ids=str)
def test_batch_splits(case: Case, device: str) -> None:
    inputs = build(case, device)
    whole = run(case, inputs.x, inputs.bank, inputs.mask)
    for size in (1, 7, 64):
        if size == 1 and case.lead[0] > 40:
            continue
        rows = [slice(i, i + size) for i in range(0, case.lead[0], size)] or [slice(0, 0)]
        masks = [inputs.mask if inputs.mask is None or inputs.mask.dim() < 2 else inputs.mask[r] for r in rows]
        parts = [run(case, inputs.x[r], inputs.bank, m) for r, m in zip(rows, masks, strict=True)]
        assert_same(tuple(torch.cat(p) for p in zip(*parts, strict=True)), whole, f"pieces of {size}")


@pytest.mark.parametrize("metric", METRICS)
def test_batched_bank_is_a_loop(metric: str, device: str) -> None:
    x, bank = gauss(3, 11, 9).to(device), gauss(3, 40, 9).to(device)
    for name in ("project", "nearest", "quantize"):
        function = getattr(vecbank, name)
        whole = function(x, bank, metric)
        parts = [function(a, b, metric) for a, b in zip(x, bank, strict=True)]
        if name == "project":
            assert_same(whole, torch.stack(parts))
        else:
            assert_same(tuple(whole), tuple(torch.stack(p) for p in zip(*parts, strict=True)))
    whole = vecbank.topk(x, bank, 7, metric)
    parts = [vecbank.topk(a, b, 7, metric) for a, b in zip(x, bank, strict=True)]
    assert_same(tuple(whole), tuple(torch.stack(p) for p in zip(*parts, strict=True)))


@pytest.mark.parametrize("metric", METRICS)
def test_rows_in_another_order(metric: str, device: str) -> None:
    """Untied data: the same rows win, under their new numbers, with the same values."""
    x, bank = gauss(25, 19).to(device), gauss(700, 19).to(device)
    order = torch.randperm(700).to(device)
    before, after = vecbank.topk(x, bank, 40, metric), vecbank.topk(x, bank[order], 40, metric)
    assert same(before.values, after.values)
    assert torch.equal(before.indices, order[after.indices])
    near = vecbank.nearest(x, bank[order], metric)
    assert torch.equal(order[near.indices], before.indices[:, 0])


@pytest.mark.parametrize("metric", METRICS)
def test_padding_with_rows_that_lose(metric: str, device: str) -> None:
    """More rows behind the winners move tiles and splits about, and change nothing."""
    x, bank = gauss(12, 8).to(device), gauss(37, 8).to(device)
    want = vecbank.topk(x, bank, 10, metric)
    nan = torch.full((1, 8), torch.nan, device=device)
    for extra in (1, 15, 16, 100, 5000):
        got = vecbank.topk(x, torch.cat([bank, nan.expand(extra, 8)]), 10, metric)
        assert_same(tuple(got), tuple(want))


@pytest.mark.parametrize("metric", METRICS)
def test_dense_and_gradients_repeat(metric: str) -> None:
    """Same input, same bits: from call to call and whatever the number of threads."""
    x, bank = gauss(210, 40), gauss(333, 40)
    weights = gauss(210, 333, seed=2)
    first: list[torch.Tensor] = []
    for threads in (*THREADS, *THREADS):
        torch.set_num_threads(threads)
        a, b = x.clone().requires_grad_(), bank.clone().requires_grad_()
        out = vecbank.project(a, b, metric)
        top = vecbank.topk(a, b, 5, metric).values
        grads = torch.autograd.grad((top * weights[:, :5]).sum(), (a, b))
        got = [out.detach(), top.detach(), *grads]
        if threads == 1:
            # ATen's own products answer for the dense backward: their order may follow the thread count.
            got += torch.autograd.grad((out * weights).sum(), (a, b))
        for g, f in zip(got, first, strict=False):
            assert same(g, f)
        first = first or got


def test_scatter_repeats() -> None:
    codes = torch.randint(-1, 50, (20000,), generator=torch.Generator().manual_seed(1))
    x = gauss(20000, 12) * 1e3
    want = None
    for threads in (*THREADS, *THREADS):
        for isa in ISAS:
            torch.set_num_threads(threads)
            vecbank._C.set_isa(isa)
            got = (
                vecbank.segment_sum(x, codes, 50),
                vecbank.lookup(codes.reshape(-1, 8), x[:50], reduce="mean"),
            )
            want = want or got
            assert_same(got, want)
