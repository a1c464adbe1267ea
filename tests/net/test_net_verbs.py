"""The net over the verbs: masks of one to six dimensions with any strides; every axis empty, forward and backward.

`VECBANK_NET=full` tries ten times as many masks. The C++ half, for sanitizers, is `tests/cpp/test_mask.cpp`.
"""

from __future__ import annotations

import random
import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import METRICS
from helpers import FULL, Target, assert_same, gauss
from net_shapes import SIZES, any_mask, any_rows, empties
from torch import Tensor

import vecbank
from vecbank import Allowed, Bank, reference

ROUNDS = 300 if FULL else 30


@pytest.mark.parametrize("metric", METRICS)
def test_masks_of_any_shape(metric: str, target: Target) -> None:
    for seed in range(ROUNDS):
        dice = random.Random(f"{metric} {seed}")
        leading = tuple(dice.choice((1, 2, 3)) for _ in range(dice.randrange(6)))
        rows, width = dice.choice((1, 6, 40, 300)), dice.choice((1, 3, 8))
        x, bank = any_rows(dice, leading, width), gauss(rows, width, seed=seed)
        mask = any_mask(dice, leading, rows)
        k = dice.randint(1, min(rows, 5))
        note = f"seed {seed}: x {tuple(x.shape)} {x.stride()}, mask {tuple(mask.shape)} {mask.stride()}, k {k}"
        want = tuple(reference.topk(x, bank, k, metric, mask.expand(*leading, rows).contiguous()))
        there = [t.to(target.device) for t in (x, bank, mask)] if target.device != "cpu" else [x, bank, mask]
        assert_same(tuple(vecbank.topk(there[0], there[1], k, metric, allowed=there[2])), want, note)
        assert_same(tuple(Bank(there[1], metric).topk(there[0], k, allowed=there[2])), want, f"{note}, Bank")


def test_masks_of_batched_banks(target: Target) -> None:
    for seed in range(ROUNDS):
        dice = random.Random(seed)
        batches, n, rows = dice.choice((1, 2, 3)), dice.choice((1, 4)), dice.choice((1, 7, 200))
        x, bank = any_rows(dice, (batches, n), 5), gauss(batches, rows, 5, seed=seed)
        mask = any_mask(dice, (batches, n), rows)
        want = tuple(reference.topk(x, bank, 1, "l2", mask.expand(batches, n, rows).contiguous()))
        on = target.device
        assert_same(tuple(vecbank.topk(x.to(on), bank.to(on), 1, "l2", allowed=mask.to(on))), want, f"seed {seed}")


def test_masks_of_rows(target: Target) -> None:
    """`quantize_train`: which rows of x count."""
    for seed in range(ROUNDS):
        dice = random.Random(seed)
        leading = tuple(dice.choice((1, 2, 3)) for _ in range(dice.randrange(1, 5)))
        x, bank = any_rows(dice, leading, 3), gauss(7, 3, seed=seed)
        mask = any_mask(dice, leading[:-1], leading[-1]).expand(leading)
        on = target.device
        got = vecbank.quantize_train(x.to(on), bank.to(on), valid=mask.to(on))
        want = reference.quantize_train(x, bank, valid=mask.contiguous())
        assert_same((got.quantized, got.codes, got.counts), (want.quantized, want.codes, want.counts), f"seed {seed}")
        torch.testing.assert_close(got.loss.cpu(), want.loss)


def test_a_broadcast_mask_is_not_written_out() -> None:
    """(8, 4, 1, M) beside x (8, 4, N, d): 320 MB if it were."""
    x, bank = gauss(8, 4, 500, 2), gauss(20000, 2)
    mask = torch.rand(8, 4, 1, 20000) < 0.5
    vecbank.topk(x[:1], bank, 1, allowed=mask[:1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = vecbank.topk(x, bank, 1, allowed=mask)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 100e6, f"{grown / 1e6:.0f} MB"
    assert bool(mask.squeeze(2).gather(-1, found.indices.squeeze(-1)).all())


# ---- Empty axes ----------------------------------------------------------------------------------------------------
# Each verb on sizes some of which are 0: what it returns (the reference's answer), and gradients that are zeros.

Call = Callable[..., tuple[Tensor, ...]]


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def both(verb: str, *args: Any, **options: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The library's answer and the reference's."""
    return as_tuple(getattr(vecbank, verb)(*args, **options)), as_tuple(getattr(reference, verb)(*args, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("verb", ["project", "topk", "nearest", "quantize", "quantize_train"])
def test_empty_axes_of_a_search(verb: str, metric: str, dtype: torch.dtype) -> None:
    for batched in (False, True):
        for size in empties("BNMd" if batched else "NMd"):
            lead = (size["B"],) if batched else ()
            x = gauss(*lead, size["N"], size["d"], dtype=dtype).requires_grad_()
            bank = gauss(*lead, size["M"], size["d"], dtype=dtype).requires_grad_()
            if verb == "topk" and size["M"] == 0:
                with pytest.raises(ValueError, match="M = 0"):
                    vecbank.topk(x, bank, 1, metric)
                continue
            got, want = both(verb, x, bank, *([2] if verb == "topk" else []), metric)
            assert_same(got, tuple(t.to(g.dtype) for t, g in zip(want, got, strict=True)), f"{size}")
            held = as_tuple(getattr(vecbank, verb)(x, Bank(bank, metric), *([2] if verb == "topk" else [])))
            assert_same(held, got, f"{size}, Bank")
            moving = [t for t in got if t.requires_grad]
            if moving:
                sum(t.sum() for t in moving).backward()
                straight = verb.startswith("quantize") and x.numel() > 0
                assert x.grad is not None and bool((x.grad == (1 if straight else 0)).all()), f"{size}"
                assert bank.grad is None or not bool(bank.grad.any()), f"{size}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_empty_axes_of_selections(metric: str, dtype: torch.dtype) -> None:
    """Nothing within any radius, no pair and no candidate: results of the right shape, gradients of zeros."""
    for batched in (False, True):
        for size in empties("BNMd" if batched else "NMd"):
            lead = (size["B"],) if batched else ()
            n = size["N"] * size.get("B", 1)
            x = gauss(*lead, size["N"], size["d"], dtype=dtype).requires_grad_()
            bank = gauss(*lead, size["M"], size["d"], dtype=dtype).requires_grad_()
            full = size["M"] if size["d"] == 0 and metric != "cosine" else 0  # all scores are 0
            r = 0.0 if metric != "cosine" else 0.5
            found = vecbank.radius(x, bank, r, metric)
            assert found.offsets.tolist() == [full * i for i in range(n + 1)], f"{size}"
            assert_same(vecbank.radius_count(x, bank, r, metric), torch.full(x.shape[:-1], full))
            limited = vecbank.radius(x, bank, r, metric, max_hits=3)
            assert limited.indices.shape == (3 * n,) and int(limited.offsets[-1]) == 3 * n
            missing = torch.full((*x.shape[:-1], 2), -1)
            scores = vecbank.score_pairs(x, bank, missing, metric)
            among = vecbank.topk(x, bank, 2, metric, allowed=Allowed.exclude(missing) & Allowed.not_self(), pad=True)
            worst = vecbank.topk(x, bank, 2, metric, order="worst", pad=True)
            merged = vecbank.merge_topk([vecbank.search_part(x, bank, 2, metric)])
            assert_same(tuple(merged), tuple(vecbank.topk(x, bank, 2, metric, pad=True)))
            assert vecbank.verify(x, bank, among.indices, metric).right.shape == x.shape[:-1]
            for values in (found.values, limited.values, scores, among.values, worst.values):
                values.masked_fill(values.isinf(), 0).sum().backward()
            assert x.grad is not None and not bool(x.grad.any()), f"{size}"
            assert bank.grad is not None and not bool(bank.grad.any()), f"{size}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduce", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_empty_axes_of_a_lookup(weighted: bool, reduce: str, dtype: torch.dtype) -> None:
    for size in empties("NMdk"):
        codes = torch.full((size["N"], size["k"]), -1 if size["M"] == 0 else size["M"] - 1)
        bank = gauss(size["M"], size["d"], dtype=dtype).requires_grad_()
        weights = gauss(size["N"], size["k"], dtype=dtype).requires_grad_() if weighted else None
        got, want = both("lookup", codes, bank, weights, reduce=reduce)
        assert_same(got, want, f"{size}")
        got[0].sum().backward()
        mirror = bank.detach().double().requires_grad_()
        mirrored = None if weights is None else weights.detach().double().requires_grad_()
        truth = reference.lookup(codes, mirror, mirrored, reduce=reduce).sum()
        if truth.requires_grad:
            truth.backward()
        for own, true in ((bank, mirror), (weights, mirrored)):
            if own is not None and true is not None:
                assert own.grad is not None and own.grad.shape == own.shape
                wanted = torch.zeros_like(true) if true.grad is None else true.grad
                torch.testing.assert_close(own.grad.double(), wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_empty_axes_of_a_segment_sum(listed: bool, weighted: bool, dtype: torch.dtype) -> None:
    for size in empties("NMdk"):
        shape = (size["N"], size["k"]) if listed else (size["N"],)
        codes = torch.full(shape, size["M"] - 1)
        x = gauss(size["N"], size["d"], dtype=dtype).requires_grad_()
        weights = gauss(*shape, dtype=dtype).requires_grad_() if weighted else None
        got, want = both("segment_sum", x, codes, size["M"], weights)
        assert_same(got, want, f"{size}")
        got[0].sum().backward()
        assert x.grad is not None and x.grad.shape == x.shape, f"{size}"
        if weights is not None:
            assert weights.grad is not None and weights.grad.shape == weights.shape, f"{size}"


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_empty_axes_of_a_residual_cascade(metric: str) -> None:
    for size in empties("NMd"):
        x = gauss(size["N"], size["d"]).requires_grad_()
        books = [gauss(size["M"], size["d"], seed=s) for s in (1, 2)]
        got, want = both("residual_quantize", x, books, metric)
        assert_same(got, want, f"{size}")
        sum(t.sum() for t in got if t.requires_grad).backward()
        assert x.grad is not None and x.grad.shape == x.shape, f"{size}"


def test_the_table_of_sizes_is_not_empty() -> None:
    assert all(SIZES.values()) and len(list(empties("BNMd"))) == 15
