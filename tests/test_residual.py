"""Residual quantisation: the cascade in one call, its gradients, its beam search and its inverse."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import METRICS
from helpers import FLOATS, Target, assert_same, gauss
from second_opinions import residual_quantize_by_stages
from torch import Tensor

import vecbank
from vecbank import reference, residual_lookup, residual_quantize


def books_of(sizes: tuple[int, ...], d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [gauss(m, d, dtype=dtype, seed=20 + i) / (i + 1) for i, m in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [(7,), (40, 9, 100), (17,) * 5], ids=str)
@pytest.mark.parametrize("n,d", [(1, 3), (50, 8), (701, 5), (90, 130)])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_matches_the_reference(
    dtype: torch.dtype, metric: str, n: int, d: int, sizes: tuple[int, ...], target: Target
) -> None:
    x = gauss(n, d, dtype=dtype).to(target.device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    books = books_of(sizes, d, wide)
    want = reference.residual_quantize(x.cpu(), books, metric)
    got = residual_quantize(x, [b.to(target.device) for b in books], metric)
    assert_same((got.quantized, got.codes), (want.quantized, want.codes))
    torch.testing.assert_close(got.losses.cpu(), want.losses, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("data", ["integers", "equal", "offset", "nan", "inf", "empty book", "no rows"])
def test_awkward_data(data: str, target: Target) -> None:
    x, books = gauss(300, 6), books_of((20, 30), 6)
    if data == "integers":
        x, books = (x * 2).round(), [(b * 2).round() for b in books]
    elif data == "equal":
        books = [b[:1].expand(200, 6).contiguous() for b in books]
    elif data == "offset":
        x, books[0] = 1000 + 0.01 * x, 1000 + 0.01 * books[0]
    elif data in ("nan", "inf"):
        x[3, 2] = books[1][4, 0] = float(data)
    elif data == "empty book":
        books[1] = books[1][:0]
    else:
        x = x[:0]
    want = reference.residual_quantize(x, books)
    got = residual_quantize(x.to(target.device), [b.to(target.device) for b in books])
    assert_same((got.quantized, got.codes), (want.quantized, want.codes), data)
    torch.testing.assert_close(got.losses.cpu(), want.losses, rtol=1e-6, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_same_bits_whatever_runs_it(threads: int) -> None:
    x, books = gauss(3001, 24), books_of((60, 61, 62), 24)
    want = residual_quantize(x, books)
    torch.set_num_threads(threads)
    for isa in vecbank._C.available_isas():
        vecbank._C.set_isa(isa)
        assert_same(tuple(residual_quantize(x, books)), tuple(want))
        assert_same(tuple(residual_quantize(x, [vecbank.Bank(b, metric="l2") for b in books])), tuple(want))
    split = [residual_quantize(part, books) for part in x.split(700)]
    assert_same((torch.cat([s.quantized for s in split]), torch.cat([s.codes for s in split])), tuple(want)[:2])


def test_is_quantize_stage_by_stage(device: str) -> None:
    x, books = gauss(5, 40, 12).to(device), [b.to(device) for b in books_of((30, 20), 12)]
    got, rest = residual_quantize(x, books), x
    for s, book in enumerate(books):
        row, code = vecbank.quantize(rest, book)
        assert torch.equal(got.codes[..., s], code)
        rest = rest - row
    assert torch.equal(residual_lookup(got.codes, books), got.quantized)
    fewer = residual_quantize(x, books, num_stages=1)
    assert fewer.codes.shape == (5, 40, 1) and torch.equal(fewer.codes[..., 0], got.codes[..., 0])
    assert torch.equal(residual_lookup(fewer.codes, books), fewer.quantized)


def test_ways_to_give_books(device: str) -> None:
    x, books = gauss(60, 8).to(device), torch.stack(books_of((16, 16, 16), 8)).to(device)
    assert_same(tuple(residual_quantize(x, books)), tuple(residual_quantize(x, list(books))))
    shared = residual_quantize(x, books[0], num_stages=2)
    assert_same(tuple(shared), tuple(residual_quantize(x, books[:1].repeat(2, 1, 1))))
    assert torch.equal(residual_lookup(shared.codes, books[0]), shared.quantized)
    half = residual_quantize(x.bfloat16(), books.bfloat16())
    assert_same(tuple(half), tuple(residual_quantize(x.bfloat16(), books.bfloat16().float())))
    left_out = torch.cat([shared.codes[:, :1], torch.full_like(shared.codes[:, :1], -1)], 1)
    assert torch.equal(residual_lookup(left_out, books[0]), vecbank.lookup(shared.codes[:, 0], books[0]))


def test_gradients(device: str) -> None:
    """Straight through for the rows; 2 r / count for each stage's loss; none to the books."""
    x = gauss(30, 4, dtype=torch.float64).to(device).requires_grad_()
    books = [b.to(device).requires_grad_() for b in books_of((9, 8), 4, torch.float64)]
    seed = gauss(30, 4, dtype=torch.float64, seed=5).to(device)
    got = residual_quantize(x, books)
    ((got.quantized * seed).sum() + 3 * got.losses[0] + 5 * got.losses[1]).backward()
    first = x.detach() - vecbank.lookup(got.codes[:, 0], books[0].detach())
    second = first - vecbank.lookup(got.codes[:, 1], books[1].detach())
    torch.testing.assert_close(x.grad, seed + 2 * (3 * first + 5 * second) / 120)
    assert all(b.grad is None or not b.grad.any() for b in books)
    residual_lookup(got.codes, books).sum().backward()
    counts = torch.bincount(got.codes[:, 1], minlength=8).double()
    torch.testing.assert_close(books[1].grad, counts.unsqueeze(1).expand(8, 4))


@pytest.mark.parametrize("beam", [2, 5])
def test_beam_search(beam: int, device: str) -> None:
    """Never worse than its own greedy start can be by more than rounding, and exhaustive when wide enough."""
    x, books = gauss(64, 5).to(device), [b.to(device) for b in books_of((4, 3, 4), 5)]
    greedy, wide = residual_quantize(x, books), residual_quantize(x, books, beam=12)
    combos = torch.tensor(list(itertools.product(range(4), range(3), range(4))), device=device)
    best = torch.cdist(x.double(), residual_lookup(combos, books).double()).min(1).values
    error = (x - wide.quantized).double().norm(dim=1)
    torch.testing.assert_close(error, best, rtol=1e-5, atol=1e-5)
    found = residual_quantize(x, books, beam=beam)
    assert torch.equal(residual_lookup(found.codes, books), found.quantized)
    assert found.losses[-1] <= greedy.losses[-1] and wide.losses[-1] <= found.losses[-1]
    torch.testing.assert_close(found.losses[-1], (x - found.quantized).square().mean())


def test_beam_and_an_empty_book() -> None:
    x, books = gauss(5, 4), [gauss(6, 4, seed=1), gauss(0, 4)]
    assert_same(tuple(residual_quantize(x, books, beam=3)), tuple(residual_quantize(x, books)))


def test_beam_gradient_goes_straight_through() -> None:
    x, books = gauss(10, 5).requires_grad_(), books_of((4, 3), 5)
    found = residual_quantize(x, books, beam=3)
    found.quantized.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_compiles(device: str) -> None:
    x, books = gauss(40, 6).to(device), [b.to(device) for b in books_of((9, 8), 6)]
    compiled = torch.compile(lambda t: residual_quantize(t, books), fullgraph=True, backend="aot_eager")
    assert_same(tuple(compiled(x)), tuple(residual_quantize(x, books)))


@pytest.mark.parametrize(
    "call,text",
    [
        (lambda x, b: residual_quantize(x, b[0]), "num_stages must be given"),
        (lambda x, b: residual_quantize(x, b, num_stages=3), "num_stages must lie between 1 and"),
        (lambda x, b: residual_quantize(x, []), "at least one stage"),
        (lambda x, b: residual_quantize(x, b, "manhattan"), "metric must be one of"),
        (lambda x, b: residual_quantize(x, b, beam=0), "beam must be at least 1"),
        (lambda x, b: residual_quantize(x, b, "cosine", beam=2), "beam search adds up squared distances"),
        (lambda x, b: residual_quantize(x[:, :3], b), "last dimension|dimension"),
        (lambda x, b: residual_quantize(x, [b[0], b[1].double()]), "dtype"),
        (lambda x, b: residual_quantize(x, b[0][0][None, None, None]), "codebooks must be"),
        (
            lambda x, b: residual_lookup(torch.zeros(2, 3, dtype=torch.int64), b),
            "codes must lie between 1 and the number of codebooks 2",
        ),
        (lambda x, b: residual_lookup(torch.full((2, 2), 99), b), "99|codes"),
    ],
)
def test_errors(call, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((ValueError, TypeError, IndexError, RuntimeError), match=text):
        call(gauss(5, 4), books_of((6, 7), 4))


def test_stage_by_stage_is_the_same(device: str) -> None:
    x, books = gauss(300, 12).to(device), [b.to(device) for b in books_of((30, 1, 20), 12)]
    x[5, 3] = torch.nan
    for code in (0, 1, 2):
        want = torch.ops.vecbank.residual_quantize(x, books, [], code)
        got = residual_quantize_by_stages(x, books, [], code)
        assert_same(got[:2], tuple(want)[:2])
        torch.testing.assert_close(got[2], want[2])
