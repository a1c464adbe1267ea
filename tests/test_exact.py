"""topk, nearest and quantize return the reference's bits on every row of the table, wherever they run."""

from __future__ import annotations

import pytest
import torch
from cases import METRICS, TABLE, Case, build
from helpers import Target, assert_same, expected, gauss, run

import vecbank
from vecbank import reference

SCREENS = ("float32", "int16", "int8")


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_table(case: Case, target: Target) -> None:
    inputs = build(case, target.device)
    want = expected(case)
    assert_same(run(case, inputs.x, inputs.bank, inputs.allowed), want, "plain tensor")
    for way, name in ((2, "every pair scored"), (3, "gathered"), (1, "screened")) if target.device == "cpu" else ():
        vecbank._C.force_ways(search=way)  # small cases go by the first of their own accord
        assert_same(run(case, inputs.x, inputs.bank, inputs.allowed), want, f"plain tensor, {name}")
    if not case.batched:
        bank = vecbank.Bank(inputs.bank, metric=case.metric)
        assert_same(run(case, inputs.x, bank, inputs.allowed), want, "Bank")
        for screen in SCREENS if target.device == "cpu" else ():
            if screen == "int16" and not vecbank._C.has_int16():
                continue
            forced = vecbank.Bank(inputs.bank, metric=case.metric, screen=screen)
            assert_same(run(case, inputs.x, forced, inputs.allowed), want, f"Bank with the {screen} screen")


@pytest.mark.parametrize("metric", METRICS)
def test_defaults_and_names(metric: str, device: str) -> None:
    """Named results, the documented default metrics, and a Bank's own metric where none is given."""
    x, bank = gauss(7, 12).to(device), gauss(40, 12).to(device)
    assert_same(vecbank.topk(x, bank, 3), tuple(reference.topk(x.cpu(), bank.cpu(), 3, "dot")))
    assert_same(vecbank.nearest(x, bank), tuple(reference.nearest(x.cpu(), bank.cpu(), "l2")))
    assert_same(vecbank.quantize(x, bank), tuple(reference.quantize(x.cpu(), bank.cpu(), "l2")))
    own = vecbank.Bank(bank, metric=metric)
    top, near, code = vecbank.topk(x, own, 3), vecbank.nearest(x, own), vecbank.quantize(x, own)
    assert_same((top.values, top.indices), tuple(reference.topk(x.cpu(), bank.cpu(), 3, metric)))
    assert_same((near.values, near.indices), tuple(reference.nearest(x.cpu(), bank.cpu(), metric)))
    assert_same((code.quantized, code.codes), tuple(reference.quantize(x.cpu(), bank.cpu(), metric)))


@pytest.mark.parametrize("metric", METRICS)
def test_whatever_precision_products_may_have(metric: str, device: str) -> None:
    """torch may round the factors of its float32 products to bfloat16; no search goes by them."""
    x, bank = gauss(300, 40).to(device), gauss(900, 40, seed=1).to(device)
    prepared = vecbank.Bank(bank, metric=metric)
    want = tuple(reference.topk(x.cpu(), bank.cpu(), 5, metric))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for rows in (bank, prepared):
            for n in (1, 9, 300):
                assert_same(vecbank.topk(x[:n], rows, 5, metric), tuple(part[:n] for part in want))
                assert_same(vecbank.nearest(x[:n], rows, metric), tuple(part[:n, 0] for part in want))
        batches = vecbank.topk(x.reshape(30, 10, 40), bank.reshape(30, 30, 40), 2, metric)
        assert_same(
            batches, tuple(reference.topk(x.cpu().reshape(30, 10, 40), bank.cpu().reshape(30, 30, 40), 2, metric))
        )
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_lower_index(metric: str, device: str) -> None:
    """Equal rows far apart, so that they meet in a merge: of blocks, of threads, of split banks."""
    row = gauss(1, 24)
    bank = torch.cat([gauss(4999, 24, seed=1) * 1e-3, row, gauss(7000, 24, seed=2) * 1e-3, row, row])
    x = row.expand(3, 24)
    for k in (1, 2, 3, 64, 65):
        top = vecbank.topk(x.to(device), bank.to(device), k, metric)
        assert top.indices[:, :3].tolist() == [[4999, 12000, 12001][:k]] * 3
    assert vecbank.nearest(x.to(device), bank.to(device), metric).indices.tolist() == [4999] * 3


def test_zeros_of_either_sign_tie(device: str) -> None:
    bank = torch.tensor([[-0.0, 1.0], [0.0, 1.0], [-0.0, -0.0]]).to(device)
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -0.0]]).to(device)
    for metric in METRICS[:2]:
        assert vecbank.topk(x, bank, 3, metric).indices.tolist() == [[0, 1, 2]] * 3


def test_ranking_is_by_the_unrounded_score(device: str) -> None:
    """Scores that are one float32 but not one float64: values may repeat, the order may not err."""
    x = torch.tensor([[1.0, 2.0**-30]])
    bank = torch.tensor([[1.0, float(i)] for i in (3, 1, 4, 0, 2)])
    top = vecbank.topk(x.to(device), bank.to(device), 5, "dot")
    assert top.indices.tolist() == [[2, 0, 4, 1, 3]]
    assert top.values.tolist() == [[1.0] * 5]


def test_l2_selects_by_its_square(device: str) -> None:
    """Squares that differ and have one root: ``l2`` takes what ``sqeuclidean`` takes."""
    squares = torch.arange(64, dtype=torch.float64).flip(0) * 2.0**-52  # 1 + squares: two to one root
    bank = torch.stack([torch.ones_like(squares), squares.sqrt()], dim=1)
    x = torch.zeros(1, 2, dtype=torch.float64)
    a = vecbank.topk(x.to(device), bank.to(device), 64, "l2")
    b = vecbank.topk(x.to(device), bank.to(device), 64, "sqeuclidean")
    assert torch.equal(a.indices, b.indices)
    assert_same(tuple(a), tuple(reference.topk(x, bank, 64, "l2")))


@pytest.mark.parametrize("metric", METRICS)
def test_nan_never_wins_and_the_worst_infinity_may(metric: str, device: str) -> None:
    inf, nan = float("inf"), float("nan")
    bank = torch.tensor([[nan, 1.0], [-inf, 1.0], [2.0, 2.0], [nan, nan], [inf, 1.0]])
    x = torch.tensor([[1.0, 1.0], [nan, 1.0]])
    top = vecbank.topk(x.to(device), bank.to(device), 5, metric)
    assert_same(tuple(top), tuple(reference.topk(x, bank, 5, metric)))
    expect = {"dot": [4, 2, 1, -1, -1], "cosine": [2, -1, -1, -1, -1]}.get(metric, [2, 1, 4, -1, -1])
    assert top.indices.tolist() == [expect, [-1] * 5]
    worst = -inf if metric in METRICS[:2] else inf
    assert top.values[1].tolist() == [worst] * 5


def test_query_without_a_valid_row(device: str) -> None:
    nan = float("nan")
    x = torch.tensor([[1.0, 2.0], [nan, 0.0]]).to(device)
    bank = torch.tensor([[1.0, 1.0], [3.0, 3.0]]).to(device)
    rows, codes = vecbank.quantize(x, bank)
    assert codes.tolist() == [0, -1]
    assert rows[0].tolist() == [1.0, 1.0] and bool(rows[1].isnan().all())
    rows, codes = vecbank.quantize(x, torch.full_like(bank, nan))
    assert codes.tolist() == [-1, -1] and bool(rows.isnan().all())
    # Left out of sums too, and a zero row when looked up.
    assert vecbank.segment_sum(x, torch.tensor([0, -1], device=device), 2).tolist() == [
        [1.0, 2.0],
        [0.0, 0.0],
    ]
    assert vecbank.lookup(codes, bank).tolist() == [[0.0, 0.0]] * 2


def test_quantize_returns_rows_unchanged(device: str) -> None:
    """Bits of the bank, not of ``x + (row - x)``: rows far smaller than the query would lose theirs."""
    bank = (gauss(9, 5) * 1e-6).to(device)
    x = (gauss(30, 5) * 1e6).to(device).requires_grad_()
    rows, codes = vecbank.quantize(x, bank)
    assert torch.equal(rows.detach(), bank[codes])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_result_dtypes(dtype: torch.dtype, device: str) -> None:
    banks = {dtype, torch.float32} if dtype in (torch.bfloat16, torch.float16) else {dtype}
    for bank_dtype in banks:
        x, bank = gauss(5, 6, dtype=dtype).to(device), gauss(9, 6, dtype=bank_dtype).to(device)
        value = torch.float64 if dtype == torch.float64 else torch.float32
        top, near, code = vecbank.topk(x, bank, 2), vecbank.nearest(x, bank), vecbank.quantize(x, bank)
        assert (top.values.dtype, near.values.dtype) == (value, value)
        assert {top.indices.dtype, near.indices.dtype, code.codes.dtype} == {torch.int64}
        assert code.quantized.dtype == bank_dtype
        assert vecbank.project(x, bank).dtype == dtype
        assert vecbank.lookup(code.codes, bank).dtype == bank_dtype


def test_half_queries_are_read_exactly_beside_a_float32_bank(device: str) -> None:
    """A bank rounded to 16 bits would tie these rows."""
    bank = (torch.ones(8, 3) + torch.arange(8).unsqueeze(1) * 2.0**-20).to(device)
    x = torch.ones(2, 3, dtype=torch.bfloat16).to(device)
    assert vecbank.topk(x, bank, 8, "dot").indices.tolist() == [list(range(7, -1, -1))] * 2


def test_the_answer_is_exact_whatever_exact_says(device: str) -> None:
    """The keyword is ignored for one release, with a warning at the caller's line."""
    x, bank = gauss(50, 48).to(device), gauss(700, 48).to(device)
    prepared = vecbank.Bank(bank, "l2")
    for exact in (False, True):
        with pytest.warns(FutureWarning, match="topk ignores exact") as caught:
            assert_same(tuple(vecbank.topk(x, bank, 9, "l2", exact=exact)), tuple(vecbank.topk(x, bank, 9, "l2")))
        assert caught[0].filename == __file__
        with pytest.warns(FutureWarning, match="nearest ignores exact"):
            assert_same(tuple(vecbank.nearest(x, bank, exact=exact)), tuple(vecbank.nearest(x, bank)))
        with pytest.warns(FutureWarning, match="exact"):
            assert_same(tuple(prepared.topk(x, 9, exact=exact)), tuple(prepared.topk(x, 9)))
        with pytest.warns(FutureWarning, match="exact"):
            assert_same(tuple(prepared.nearest(x, exact=exact)), tuple(prepared.nearest(x)))
    for function in (vecbank.topk, vecbank.nearest):
        assert "exact:" not in (function.__doc__ or "")


def test_masked_out_rows_never_return(device: str) -> None:
    x, bank = gauss(6, 8).to(device), gauss(50, 8).to(device)
    mask = torch.zeros(50, dtype=torch.bool, device=device)
    mask[[3, 41]] = True
    top = vecbank.topk(x, bank, 4, "l2", allowed=mask)
    assert bool((top.indices[:, :2].sort().values == torch.tensor([3, 41], device=device)).all())
    assert bool((top.indices[:, 2:] == -1).all()) and bool((top.values[:, 2:] == torch.inf).all())


def test_overflowing_rows_are_counted(device: str) -> None:
    """All rows equal: every row is a candidate, no buffer holds them, and the counters say so."""
    if device != "cpu":
        pytest.skip("counters are the CPU's")
    vecbank._C.reset_counters()
    assert not any(vecbank._C.counters().values())
    bank = gauss(1, 16).expand(30000, 16).contiguous()
    near = vecbank.nearest(gauss(40, 16), bank)
    assert near.indices.tolist() == [0] * 40
    assert any(vecbank._C.counters().values())


def test_inputs_are_left_alone(device: str) -> None:
    x, bank = gauss(9, 8).to(device), gauss(20, 8).to(device)
    before = x.clone(), bank.clone()
    for metric in METRICS:
        vecbank.topk(x, bank, 3, metric)
        vecbank.nearest(x, bank, metric)
        vecbank.quantize(x, bank, metric)
        vecbank.project(x, bank, metric)
    assert torch.equal(x, before[0]) and torch.equal(bank, before[1])
