"""Values and choices of the sparse encoders are those of float64 scores, whatever the batch, threads and processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import METRICS
from helpers import CODE, Target, assert_same, gauss, op
from torch import Tensor

import vecbank
from vecbank import _sparse, reference, sparse_encode, sparse_encode_batch, sparse_encode_norm, sparse_encode_threshold
from vecbank.nn import SparseAutoencoder

pytestmark = pytest.mark.usefixtures("one_thread")

N, K, D = 200, 300, 40
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def problem(dtype: torch.dtype = torch.float32, n: int = N) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a wider matrix, and products that nearly cancel: float32 gets few digits of them right."""
    x = torch.cat([gauss(n, D - 1) / 30 + 1, torch.ones(n, 1), gauss(n, 3)], 1).to(dtype)[:, :D]
    return x, (gauss(K, D, seed=1) + 3).to(dtype), (-120 + gauss(K, seed=2)).to(dtype)


def truth(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The score of every pair in float64, in the contract's order, and its value."""
    z = reference.project(x, w, "dot", out_dtype=torch.float64) + b.double()
    return z, z.to(torch.float64 if w.dtype == torch.float64 else torch.float32)


def code(values: Tensor, keep: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Padded lists of what is kept, in the order given."""
    values, keep = values.gather(1, order), keep.gather(1, order)
    place = (~keep).to(torch.int8).argsort(dim=1, stable=True)[:, : int(keep.sum(1).max())]
    kept = keep.gather(1, place)
    return values.gather(1, place).where(kept, 0), order.gather(1, place).where(kept, -1)


def ranks(score: Tensor) -> Tensor:
    return score.argsort(dim=1, descending=True, stable=True)


def want_threshold(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    values = truth(x, w, b)[1]
    return code(values, values > 8, torch.arange(K).expand_as(values))


def want_capped(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    z, values = truth(x, w, b)
    order = ranks(z)[:, :9]
    return code(values, values > 8, order)


def factors(device: str | torch.device = "cpu") -> Tensor:
    return (0.5 + gauss(K, seed=3).abs()).double().to(device) / 12


def want_score(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    z, values = truth(x, w, b)
    order = ranks(torch.where(values > 0, z * factors(), -torch.inf))[:, :7]
    return code(values, values > 0, order)


def want_score_of_values(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    values = truth(x, w, b)[1]
    return code(values, values > 0, ranks(torch.where(values > 0, values.double() * factors(), -torch.inf))[:, :7])


def want_norm(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    z, values = truth(x, w, b)
    score = torch.where(values > 0, z * factors(), -torch.inf)
    order = ranks(score)
    length = score.gather(1, order).clamp_min(0).square().cumsum(1).sqrt()
    k = (length - x.double().norm(dim=1, keepdim=True)).abs().argmin(1, keepdim=True) + 1
    place = torch.empty_like(order).scatter_(1, order, torch.arange(K).expand_as(order))
    return code(values, (values > 0) & (place < k), order)


FORMS: dict[str, tuple[Callable[..., Any], Callable[..., tuple[Tensor, Tensor]]]] = {
    "threshold": (lambda *a: sparse_encode_threshold(*a, 8.0), want_threshold),
    "threshold, at most 9": (lambda *a: sparse_encode_threshold(*a, 8.0, max_k=9), want_capped),
    "norm": (lambda x, *a: sparse_encode_norm(x, *a, factors(x.device)), want_norm),
    "score": (lambda x, *a: sparse_encode(x, *a, 7, score=factors(x.device)), want_score),
    "function": (
        lambda x, *a: sparse_encode(x, *a, 7, score=lambda z, rows: z.double() * factors(x.device)),
        want_score_of_values,
    ),
}


def trimmed(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    width = int((indices >= 0).sum(1).max())
    return values[:, :width], indices[:, :width]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_values_and_choices_are_the_exact_ones(name: str, dtype: torch.dtype, target: Target) -> None:
    x, w, b = problem(dtype)
    form, want = FORMS[name]
    got = form(*(t.to(target.device) for t in (x, w, b)))
    assert_same(trimmed(*got[:2]), want(x, w, b))
    assert 3 < (got[1] >= 0).sum(1).double().mean() < 100


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_batch_splits_and_threads_change_nothing(
    name: str, dtype: torch.dtype, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w, b = (t.to(target.device) for t in problem(dtype))
    form = FORMS[name][0]
    whole = trimmed(*form(x, w, b)[:2])
    for threads, size in ((1, 7), (2, 1), (3, 64), (2, N)):
        torch.set_num_threads(threads)
        if size == 64:
            monkeypatch.setattr(_sparse, "_BLOCK_BYTES", 23 * K * 4)
        parts = [form(x[i : i + size], w, b)[:2] for i in range(0, N, size)]
        width = max(p[0].shape[1] for p in parts)
        pad = torch.nn.functional.pad
        values = torch.cat([pad(v, (0, width - v.shape[1])) for v, _ in parts])
        indices = torch.cat([pad(i, (0, width - i.shape[1]), value=-1) for _, i in parts])
        assert_same(trimmed(values, indices), whole, f"{threads} threads, pieces of {size}")
    assert_same(trimmed(*form(x.contiguous(), w.t().contiguous().t(), b)[:2]), whole, "other strides")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_encoders_give_a_pair_the_same_value(dtype: torch.dtype) -> None:
    x, w, b = problem(dtype)
    values = truth(x, w, b)[1]
    found = {
        "top": sparse_encode(x, w, b, 8),
        "per row": sparse_encode(x, w, b, torch.arange(N) % 9),
        "masked": sparse_encode(x, w, b, 8, allowed=gauss(K) > 0),
        "batch": sparse_encode_batch(x, w, b, 5),
        **{name: form(x, w, b) for name, (form, _) in FORMS.items()},
    }
    for name, (got, indices, *_) in found.items():
        there = indices >= 0
        assert there.any()
        assert_same(got[there], values.gather(1, indices.clamp_min(0))[there], name)


@pytest.mark.parametrize("kind", ["nan row", "inf row", "huge row", "nan latent", "inf latent", "huge latent", "tiny"])
def test_rows_that_float32_cannot_screen(kind: str) -> None:
    x, w, b = problem()
    x, w = x.clone(), w.clone()
    if kind == "tiny":
        x, w, b = x * 1e-20, w * 1e-22, b * 1e-42
    else:
        what, where = kind.split()
        (x if where == "row" else w)[5, 2] = {"nan": torch.nan, "inf": torch.inf, "huge": 3e38}[what]
    z, values = truth(x, w, b)
    got = sparse_encode_threshold(x, w, b, 0.0)
    assert_same(trimmed(*got[:2]), code(values, values > 0, torch.arange(K).expand_as(values)))
    score = torch.where(values > 0, z * factors(), -torch.inf)
    assert_same(
        trimmed(*sparse_encode(x, w, b, 7, score=factors())), code(values, score > -torch.inf, ranks(score)[:, :7])
    )


@pytest.mark.parametrize("scale", [1.0, 1e-60, 1e60])
def test_scores_that_tie_or_have_no_sign(scale: float) -> None:
    """Zeros and negative factors, a factor that is NaN, and many equal scores: more than the screen's list holds."""
    x, w, b = problem()
    w[10:200], b[10:200] = w[9], b[9]
    factor = (gauss(K, seed=3).round() * scale).double()
    factor[3] = torch.nan
    z, values = truth(x, w, b)
    score = torch.where((values > 0) & ~factor.isnan(), z * factor, -torch.inf)
    want = code(values, score > -torch.inf, ranks(score)[:, :7])
    assert_same(trimmed(*sparse_encode(x, w, b, 7, score=factor)), want)


@pytest.mark.parametrize("max_k", [None, K])
def test_the_threshold_itself_does_not_fire(max_k: int | None) -> None:
    """Values are compared as they are returned: one equal to its threshold stays out, its neighbour comes in."""
    x, w, b = problem()
    values = truth(x, w, b)[1]
    for row in (0, 50, 150):
        edge = values[row].clamp_min(0)
        for theta, count in ((edge, 0), (edge.nextafter(torch.tensor(-1.0)).clamp_min(0), int((edge > 0).sum()))):
            got = sparse_encode_threshold(x, w, b, theta, max_k=max_k)
            assert int((got.indices[row] >= 0).sum()) == count == int(got.active[row])


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "jumprelu"])
def test_an_autoencoder_encodes_row_by_row_what_it_encodes_at_once(activation: str) -> None:
    x = gauss(N, D)
    model = SparseAutoencoder(D, K, 8, activation=activation)
    model.train()
    model(x)  # a level to fire at
    model.eval()
    with torch.no_grad():
        values, indices = model.encode(x)
        for i in range(N):
            assert_same(trimmed(*model.encode(x[i : i + 1])), trimmed(values[i : i + 1], indices[i : i + 1]))


# --- the op they stand on ---


@pytest.mark.parametrize("metric", CODE)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_exact_projection(metric: str, dtype: torch.dtype, target: Target) -> None:
    x, w = gauss(77, 19).to(dtype), gauss(600, 19, seed=1).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    want = reference.project(x, w, metric, out_dtype=wide)
    indices = torch.randint(-1, 600, (77, 530), generator=torch.Generator().manual_seed(0))
    some = torch.where(indices < 0, 0.0, want.gather(1, indices.clamp_min(0)))
    for threads in (1, 3):
        torch.set_num_threads(threads)
        a, bank, chosen = (t.to(target.device) for t in (x, w, indices))
        assert_same(op("exact_scores")(a, bank, CODE[metric], wide), want)
        assert_same(op("exact_scores")(a, bank, CODE[metric], wide, chosen), some)
        assert_same(op("exact_scores")(a.t().contiguous().t(), bank.t().contiguous().t(), CODE[metric], wide), want)


def test_listed_pairs_are_checked() -> None:
    x, w = gauss(4, 6), gauss(9, 6)
    scores = op("exact_scores")
    for bad in (9, -2):
        with pytest.raises(RuntimeError, match="out of range|code"):
            scores(x, w, 0, None, torch.full((4, 2), bad))
    with pytest.raises(RuntimeError, match="indices go with a bank"):
        scores(x, w, 0, None, torch.zeros(3, 2).long())
    with pytest.raises(RuntimeError, match="int64"):
        scores(x, w, 0, None, torch.zeros(4, 2))
    empty = scores(x, w[:0], 0, None, torch.full((4, 2), -1))
    assert empty.shape == (4, 2) and (empty == 0).all()
    for none in (torch.empty(4, 0).long(), torch.zeros(4, 3).long()[:, :0]):
        x = gauss(4, 6).requires_grad_()
        found = scores(x, w, 0, None, none)
        assert found.shape == (4, 0)
        found.sum().backward()
        assert x.grad is not None and not x.grad.any()


@pytest.mark.parametrize("metric", METRICS)
def test_derivatives_of_listed_pairs(metric: str) -> None:
    """Those of the whole matrix, gathered: reverse and forward."""
    indices = torch.tensor([[0, 3], [8, -1], [3, 3], [5, 2]])
    x, w = gauss(4, 6, dtype=torch.float64), gauss(9, 6, dtype=torch.float64)
    tx, tw, grad = gauss(4, 6, dtype=torch.float64), gauss(9, 6, dtype=torch.float64), gauss(4, 2, dtype=torch.float64)

    def some(x: Tensor, w: Tensor) -> Tensor:
        found: Tensor = op("exact_scores")(x, w, CODE[metric], None, indices)
        return found

    def every(x: Tensor, w: Tensor) -> Tensor:
        found: Tensor = op("project")(x, w, None, CODE[metric])
        return found.gather(1, indices.clamp_min(0)) * (indices >= 0)

    for way in (
        lambda f: torch.autograd.functional.vjp(f, (x, w), grad),
        lambda f: torch.func.jvp(f, (x, w), (tx, tw)),
    ):
        torch.testing.assert_close(way(some), way(every))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_capped_threshold_compiles_and_exports_to_the_same_bits(dtype: torch.dtype) -> None:
    class Encoder(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return sparse_encode_threshold(x, w, b, 8.0, max_k=90)[:2]

    x, w, b = problem(dtype, n=20)
    want = Encoder()(x, w, b)
    assert (want[1] < 0).any() and (want[1] >= 0).any()
    assert_same(torch.compile(Encoder(), fullgraph=True, backend="aot_eager")(x, w, b), want)
    assert_same(torch.export.export(Encoder(), (x, w, b)).module()(x, w, b), want)


ENCODERS: dict[str, Any] = {
    "top-k": lambda x, weight, bias: vecbank.sparse_encode(x, weight, bias, 3),
    "scored": lambda x, weight, bias: vecbank.sparse_encode(x, weight, bias, 3, score=torch.arange(9.0)),
    "batch": lambda x, weight, bias: vecbank.sparse_encode_batch(x, weight, bias, 3),
    "threshold": lambda x, weight, bias: vecbank.sparse_encode_threshold(x, weight, bias, 0.5),
    "threshold, bounded": lambda x, weight, bias: vecbank.sparse_encode_threshold(x, weight, bias, 0.5, max_k=3),
    "norm": lambda x, weight, bias: vecbank.sparse_encode_norm(x, weight, bias, torch.ones(9)),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_takes_a_bank(name: str) -> None:
    x, weight, bias = gauss(20, 6), gauss(9, 6), gauss(9)
    want = ENCODERS[name](x, weight, bias)
    assert_same(tuple(ENCODERS[name](x, vecbank.Bank(weight, "dot", bias=bias), None)), tuple(want))
    with pytest.raises(ValueError, match="weight as a Bank must"):
        ENCODERS[name](x, vecbank.Bank(weight, "l2"), None)


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_of_no_width_have_the_bias_alone(name: str) -> None:
    x, weight, bias = (t.requires_grad_() for t in (gauss(20, 0), gauss(9, 0), gauss(9)))
    code = ENCODERS[name](x, weight, bias)
    for values, indices in zip(code[0], code[1], strict=True):
        taken = indices >= 0
        assert torch.equal(values[taken], bias[indices[taken]]) and not bool(values[~taken].any())
    assert bool((code[1] >= 0).any())
    code[0].sum().backward()
    assert x.grad.shape == x.shape and weight.grad.shape == weight.shape and bool(bias.grad.any())
    assert ENCODERS[name](x[0], weight, bias)[0].dim() == 1


@pytest.mark.parametrize("max_k", [None, 9])
def test_one_threshold_for_all_latents(max_k: int | None) -> None:
    """A number, a tensor without dimensions, which may learn, or one for each latent: the same code."""
    x, weight = gauss(20, 6), gauss(9, 6)
    one, each = torch.tensor(0.5).requires_grad_(), torch.full((9,), 0.5).requires_grad_()
    codes = [
        vecbank.sparse_encode_threshold(x, weight, None, theta, bandwidth=0.4, max_k=max_k)
        for theta in (0.5, one, each)
    ]
    for code in codes[1:]:
        assert_same(tuple(code), tuple(codes[0]))
        (code.values.sum() + code.active.sum()).backward()
    torch.testing.assert_close(one.grad, each.grad.sum())


def test_a_number_of_latents_for_each_row_in_any_integer_dtype() -> None:
    x, weight, k = gauss(5, 6), gauss(9, 6), torch.tensor([0, 1, 2, 3, 2])
    want = tuple(vecbank.sparse_encode(x, weight, None, k))
    for dtype in (torch.uint8, torch.int32, torch.uint16):
        assert_same(tuple(vecbank.sparse_encode(x, weight, None, k.to(dtype))), want)
