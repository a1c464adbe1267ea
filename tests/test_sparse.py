"""Sparse dictionaries against the dense forms written in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import gauss, ints
from test_kmeans import Largest
from torch import Tensor

import vecbank
from vecbank import (
    _sparse,
    sparse_decode,
    sparse_encode,
    sparse_encode_batch,
    sparse_encode_norm,
    sparse_encode_threshold,
)
from vecbank.sparse import adapt_bias_, firing_counts

D, K = 12, 60


pytestmark = pytest.mark.usefixtures("one_thread")


def problem(*lead: int, dtype: torch.dtype = torch.float64, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    x, w, b = gauss(*lead, D, dtype=dtype), gauss(K, D, dtype=dtype, seed=1), gauss(K, dtype=dtype, seed=2)
    if grad:
        x, w, b = x.requires_grad_(), w.requires_grad_(), b.requires_grad_()
    return x, w, b


def dense(values: Tensor, indices: Tensor, latents: int = K) -> Tensor:
    """A sparse code as the matrix it stands for."""
    out = values.new_zeros(*values.shape[:-1], latents + 1)
    return out.scatter_add(-1, indices % (latents + 1), values)[..., :latents]


def kept_dense(z: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, z, 0.0)


def top_mask(score: Tensor, k: int) -> Tensor:
    order = score.argsort(dim=-1, descending=True, stable=True)[..., :k]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, order, True)


# --- top-k ---


@pytest.mark.parametrize("lead", [(33,), (4, 5), (), (0,)])
@pytest.mark.parametrize("k", [1, 7, K])
@pytest.mark.parametrize("with_bias", [True, False])
def test_top_k_equals_the_dense_form(lead: tuple[int, ...], k: int, with_bias: bool) -> None:
    x, w, b = problem(*lead)
    bias = b if with_bias else None
    got = sparse_encode(x, w, bias, k)
    z = (x @ w.T + (b if with_bias else 0)).relu()
    assert got.values.shape == got.indices.shape == (*lead, k)
    torch.testing.assert_close(dense(*got), kept_dense(z, top_mask(z, k)))
    assert torch.equal(got.indices < 0, got.values == 0)
    assert (got.values.diff(dim=-1) <= 0).all()  # best first


def test_ties_go_to_the_lower_latent() -> None:
    x, w = ints(40, 4), ints(30, 4, seed=1)
    z = (x @ w.T).relu()
    for score in (None, torch.ones(30)):
        got = sparse_encode(x, w, None, 5, score=score)
        torch.testing.assert_close(dense(*got, 30), kept_dense(z, top_mask(z, 5)), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x, w, b = problem(50, dtype=dtype)
    got = sparse_encode(x, w, b, 6)
    want = sparse_encode(x.double(), w.double(), b.double(), 6)
    assert got.values.dtype == torch.float32 and torch.equal(got.indices, want.indices)
    torch.testing.assert_close(got.values, want.values.float())
    mixed = sparse_encode(x, w.float(), b.float(), 6)
    assert torch.equal(mixed.indices, want.indices)


def test_gradients_equal_those_of_the_dense_form() -> None:
    probe = gauss(9, D, dtype=torch.float64, seed=5)
    grads = []
    for form in ("sparse", "dense"):
        x, w, b = problem(9, grad=True)
        decoder = gauss(K, D, dtype=torch.float64, seed=3).requires_grad_()
        if form == "sparse":
            out = sparse_decode(*sparse_encode(x, w, b, 5), decoder)
        else:
            z = (x @ w.T + b).relu()
            out = kept_dense(z, top_mask(z.detach(), 5)) @ decoder
        (out * probe).sum().backward()
        grads.append((out.detach(), x.grad, w.grad, b.grad, decoder.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_the_same_bits_for_any_thread_count() -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        x, w, b = problem(300, dtype=torch.float32, grad=True)
        decoder = gauss(K, D, seed=3).requires_grad_()
        out = sparse_decode(*sparse_encode(x, w, b, 5), decoder)
        out.square().sum().backward()
        results.append((out.detach(), x.grad, w.grad, b.grad, decoder.grad))
    for other in results[1:]:
        # type: ignore[arg-type]
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", ["encode", "batch", "threshold", "norm"])
def test_gradcheck(name: str) -> None:
    x, w, b = problem(4, grad=True)
    x, w, b = (t.detach()[:14].clone().requires_grad_() for t in (x, w, b))
    theta = torch.full((14,), 0.3, dtype=torch.float64)
    forms: dict[str, Callable[..., Any]] = {
        "encode": lambda *a: sparse_encode(*a, 4),
        "batch": lambda *a: sparse_encode_batch(*a, 4),
        "threshold": lambda *a: sparse_encode_threshold(*a, theta),
        "norm": lambda *a: sparse_encode_norm(*a, theta),
    }
    form = forms[name]
    assert torch.autograd.gradcheck(lambda *a: dense(*form(*a)[:2], 14), (x, w, b))


def test_nothing_positive_gives_an_empty_code() -> None:
    x, w, b = problem(6)
    for got in (sparse_encode(x, w, b - 1e3, 4), sparse_encode_batch(x, w, b - 1e3, 4)):
        assert (got.indices == -1).all() and (got.values == 0).all()
    fired = sparse_encode_threshold(x, w, b - 1e3)
    assert (fired.indices == -1).all() and (fired.active == 0).all()
    assert (sparse_decode(*got, w) == 0).all()


# --- k per row, scores ---


def test_k_of_its_own_for_each_row() -> None:
    x, w, b = problem(8, 5)
    k = torch.randint(0, 9, (8, 5))
    got, z = sparse_encode(x, w, b, k), (x @ w.T + b).relu()
    assert got.values.shape[-1] == int(k.max())
    place = z.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    torch.testing.assert_close(dense(*got), kept_dense(z, place < k.unsqueeze(-1)))
    fixed = sparse_encode(x, w, b, k, max_k=12)
    assert fixed.values.shape[-1] == 12
    torch.testing.assert_close(dense(*fixed), dense(*got))


@pytest.mark.parametrize("as_function", [False, True])
def test_score_chooses_and_value_stays(as_function: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sparse, "_BLOCK_BYTES", 7 * K * 8)  # several blocks
    x, w, b = problem(33)
    z, factor = (x @ w.T + b).relu(), gauss(K, dtype=torch.float64, seed=7)
    got = sparse_encode(x, w, b, 6, score=(lambda z, rows: z * factor) if as_function else factor)
    score = torch.where(z > 0, z * factor, -torch.inf)
    want = kept_dense(z, top_mask(score, 6) & (z > 0))
    torch.testing.assert_close(dense(*got), want)


def test_masked_latents_are_never_chosen() -> None:
    x, w, b = problem(33)
    mask = gauss(K) > 0
    z = (x @ w.T + b).relu()
    want = kept_dense(z, top_mask(torch.where(mask, z, 0), 6) & mask)
    torch.testing.assert_close(dense(*sparse_encode(x, w, b, 6, allowed=mask)), want)
    got = sparse_encode(x, w, b, 6, allowed=mask, score=torch.ones(K, dtype=torch.float64))
    torch.testing.assert_close(dense(*got), want)


def test_a_score_sees_which_rows_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selection by influence on a loss (g-SAE): z + beta z |decoder . gradient|."""
    monkeypatch.setattr(_sparse, "_BLOCK_BYTES", 7 * K * 8)
    x, w, b = problem(33)
    decoder, grad = gauss(K, D, dtype=torch.float64, seed=3), gauss(33, D, dtype=torch.float64, seed=4)
    z = (x @ w.T + b).relu()
    for beta in (0.0, 3.0, 1e6):
        got = sparse_encode(
            x,
            w,
            b,
            6,
            score=lambda z, r, beta=beta: z * (1 + beta * vecbank.project(grad[r], decoder, "dot").abs()),
        )
        score = z + beta * z * (grad @ decoder.T).abs()
        torch.testing.assert_close(dense(*got), kept_dense(z, top_mask(score, 6)))
        if beta == 0:
            torch.testing.assert_close(dense(*got), dense(*sparse_encode(x, w, b, 6)))


def test_selection_by_influence_keeps_the_direction_that_drives_the_loss() -> None:
    """A toy net whose loss reads one faint direction only."""
    basis = torch.linalg.qr(gauss(16, 16, dtype=torch.float64)).Q
    strength = torch.ones(200, 16, dtype=torch.float64)
    strength[:, 15] = 0.3 + 0.1 * torch.rand(200)
    x, target = strength @ basis, strength[:, 15]
    grad = -2 * target.unsqueeze(1) * basis[15]  # of (prediction - target)^2 at an empty code
    loss = {}
    for beta in (0.0, 100.0):
        code = sparse_encode(
            x, basis, None, 8, score=lambda z, r, beta=beta: z * (1 + beta * (grad[r] @ basis.T).abs())
        )
        loss[beta] = float(((sparse_decode(*code, basis) @ basis[15]) - target).square().mean())
    assert loss[100.0] < 1e-12 < 0.05 < loss[0.0]


# --- batch-wide k ---


@pytest.mark.parametrize("k", [1, 4, K])
def test_batch_wide_k_equals_the_dense_form(k: int) -> None:
    x, w, b = problem(25)
    z = (x @ w.T + b).relu()
    got = sparse_encode_batch(x, w, b, k)
    torch.testing.assert_close(dense(*got), kept_dense(z, top_mask(z.flatten(), 25 * k).view_as(z)))
    assert (got.indices >= 0).sum() == min(25 * k, int((z > 0).sum()))


def test_batch_wide_k_lets_one_row_take_the_whole_budget() -> None:
    x, w, b = problem(10)
    x[3] *= 1e4
    b = b.abs() + 1
    z = (x @ w.T + b).relu()
    for k in (2, 3):
        got = sparse_encode_batch(x, w, b, k)
        torch.testing.assert_close(dense(*got), kept_dense(z, top_mask(z.flatten(), 10 * k).view_as(z)))
        assert (got.indices[3] >= 0).sum() > 16  # more than the first guess at the list's length
        assert (sparse_encode_batch(x, w, b, k, max_k=5).indices[3] >= 0).sum() == 5


def test_batch_wide_k_breaks_ties_by_row() -> None:
    x, w = torch.ones(6, 1), torch.ones(4, 1)
    got = sparse_encode_batch(x, w, None, 2)
    assert got.indices.tolist() == [[0, 1, 2, 3]] * 3 + [[-1] * 4] * 3


# --- thresholds ---


@pytest.mark.parametrize("max_k", [None, K, 40])
@pytest.mark.parametrize("theta", [0.0, 0.8, "each"])
def test_threshold_equals_the_dense_form(theta: Any, max_k: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sparse, "_BLOCK_BYTES", 7 * K * 8)
    x, w, b = problem(5, 5)
    limit = gauss(K, dtype=torch.float64, seed=8).abs() if theta == "each" else theta
    z = x @ w.T + b
    want = kept_dense(z, z > limit)
    got = sparse_encode_threshold(x, w, b, limit, max_k=max_k)
    torch.testing.assert_close(dense(got.values, got.indices), want)
    assert torch.equal(got.active, (want != 0).sum(-1).double())
    assert torch.equal(got.indices < 0, got.values == 0)
    if max_k is None:
        assert got.values.shape[-1] == int((want != 0).sum(-1).max())
        assert all((r[r >= 0].diff() > 0).all() for r in got.indices.view(-1, got.indices.shape[-1]))


def test_threshold_gradient_is_the_published_one() -> None:
    eps = 0.4
    probe, grads = gauss(30, D, dtype=torch.float64, seed=5), []
    for form in ("sparse", "capped", "dense"):
        x, w, b = problem(30, grad=True)
        decoder = gauss(K, D, dtype=torch.float64, seed=3).requires_grad_()
        theta = (0.2 + gauss(K, dtype=torch.float64, seed=8).abs()).requires_grad_()
        if form == "dense":
            z = x @ w.T + b
            gate = (z > theta).double()
            near = ((z - theta).abs() < eps / 2).double() / eps
            ramp = near.detach() * (theta - theta.detach())  # the gradient of the step, and nothing else
            code = z * gate - theta.detach() * ramp
            out, active = code @ decoder, (gate - ramp).sum(-1)
        else:
            values, indices, active = sparse_encode_threshold(
                x, w, b, theta, bandwidth=eps, max_k=K if form == "capped" else None
            )
            out = sparse_decode(values, indices, decoder)
        ((out * probe).sum() + 0.7 * active.sum()).backward()
        grads.append((out.detach(), active.detach(), x.grad, w.grad, b.grad, theta.grad, decoder.grad))
    for other in grads[:2]:
        for ours, theirs in zip(other, grads[2], strict=True):
            torch.testing.assert_close(ours, theirs)


# --- as long as the input ---


@pytest.mark.parametrize("max_k", [None, 9])
def test_norm_rule_equals_sort_and_cumulative_sum(max_k: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sparse, "_BLOCK_BYTES", 7 * 400 * 8)
    x, w = gauss(40, D, dtype=torch.float64), 0.2 * gauss(400, D, dtype=torch.float64, seed=1)
    b, norms = (
        0.1 * gauss(400, dtype=torch.float64, seed=2),
        0.1 + gauss(400, dtype=torch.float64, seed=3).abs(),
    )
    x[:10] *= 8  # rows that need more latents than the first guess
    z = (x @ w.T + b).relu()
    score, order = (z * norms).sort(dim=1, descending=True, stable=True)
    if max_k is not None:
        score, order = score[:, :max_k], order[:, :max_k]
    k = (score.square().cumsum(1).sqrt() - x.norm(dim=1, keepdim=True)).abs().argmin(1) + 1
    place = torch.full_like(z, 10_000).scatter_(1, order, torch.arange(order.shape[1]).double().expand_as(order))
    got = sparse_encode_norm(x, w, b, norms, max_k=max_k)
    torch.testing.assert_close(dense(*got, 400), kept_dense(z, place < k.unsqueeze(1)))


def test_norm_rule_finds_the_true_sparsity_of_an_orthonormal_dictionary() -> None:
    basis = torch.linalg.qr(gauss(64, 64, dtype=torch.float64)).Q
    k = torch.arange(50) % 9 + 1
    place = torch.rand(50, 64, dtype=torch.float64).argsort(1).argsort(1)
    code = (1 + torch.rand(50, 64, dtype=torch.float64)) * (place < k.unsqueeze(1))
    got = sparse_encode_norm(code @ basis, basis, None, torch.ones(64, dtype=torch.float64))
    # what the other latents hold is rounding noise
    assert torch.equal((got.values > 1e-9).sum(1), k)
    torch.testing.assert_close(dense(*got, 64), code)


# --- bookkeeping ---


def test_firing_counts() -> None:
    x, w, b = problem(40)
    fired = sparse_encode_threshold(x, w, b, 0.5, bandwidth=0.3)
    z = x @ w.T + b
    assert torch.equal(firing_counts(fired.indices, K, fired.values), (z > 0.5).sum(0))
    assert torch.equal(firing_counts(fired.indices, K), (z > 0.35).sum(0))


def test_biases_reach_their_target_frequency() -> None:
    x, w, b = problem(2000)
    b = torch.where(torch.arange(K) % 2 == 0, b + 3, b - 25)  # too eager, or dead
    for _ in range(300):
        fired = sparse_encode_threshold(x[:500], w, b)
        adapt_bias_(b, firing_counts(fired.indices, K), 500, 0.05, 0.1)
    rate = firing_counts(sparse_encode_threshold(x, w, b).indices, K) / 2000
    assert (rate < 0.1).all() and (rate > 0).all()
    ceiling = adapt_bias_(torch.tensor([-0.1, 0.5]), torch.tensor([0, 0]), 10, 0.1, 1.0, ceiling=0.0)
    assert ceiling.tolist() == [0.0, 0.5]


@pytest.mark.parametrize("name", ["encode", "batch", "threshold", "norm", "score"])
def test_nothing_of_size_n_times_k(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sparse, "_BLOCK_BYTES", 1 << 18)
    x, w = gauss(1500, 8).requires_grad_(), gauss(1000, 8, seed=1).requires_grad_()
    b = torch.full((1000,), -6.0, requires_grad=True)
    calls: dict[str, Callable[[], Any]] = {
        "encode": lambda: sparse_encode(x, w, b, 5),
        "batch": lambda: sparse_encode_batch(x, w, b, 5),
        "threshold": lambda: sparse_encode_threshold(x, w, b, 0.5),
        "norm": lambda: sparse_encode_norm(x, w, b, torch.ones(1000), max_k=16),
        "score": lambda: sparse_encode(x, w, b, 5, score=torch.ones(1000)),
    }
    with Largest() as seen:
        sparse_decode(*calls[name]()[:2], w).sum().backward()
    assert seen.numel <= 0.12 * 1500 * 1000


def test_compiles_whole() -> None:
    def step(x: Tensor, w: Tensor, b: Tensor, theta: Tensor) -> Tensor:
        top = sparse_decode(*sparse_encode(x, w, b, 4), w)
        batch = sparse_decode(*sparse_encode_batch(x, w, b, 4, max_k=16), w)
        fired = sparse_encode_threshold(x, w, b, theta, bandwidth=0.2, max_k=20)
        return top + batch + sparse_decode(*fired[:2], w) + fired.active.unsqueeze(-1)

    results = []
    for form in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        x, w, b = problem(10, dtype=torch.float32, grad=True)
        theta = torch.full((K,), 0.5, requires_grad=True)
        out = form(x, w, b, theta)
        out.square().sum().backward()
        results.append((out.detach(), x.grad, w.grad, b.grad, theta.grad))
    for a, b_ in zip(*results, strict=True):
        torch.testing.assert_close(a, b_, rtol=1e-5, atol=1e-5)


def test_editing_a_row_in_and_out_flips_the_class() -> None:
    """Supervised dictionary = class means; minus row a, plus row b is then of class b."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x, y = torch.from_numpy(digits.data), torch.from_numpy(digits.target).long()
    means = vecbank.segment_sum(x, y, 10) / torch.bincount(y).unsqueeze(1)
    b = (y + 1 + torch.arange(len(y)) % 9) % 10
    edit = sparse_decode(torch.tensor([[-1.0, 1.0]]).double().expand(len(y), 2), torch.stack([y, b], 1), means)
    assert (vecbank.nearest(x + edit, means).indices == b).double().mean() > 0.85


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, w, b: sparse_encode(x, w, b, 0), ValueError, "k must lie between 1 and"),
        (lambda x, w, b: sparse_encode(x, w, b, K + 1), ValueError, "k must lie between 1 and"),
        (lambda x, w, b: sparse_encode(x, w, b, 1.5), TypeError, "k must be an int"),
        (
            lambda x, w, b: sparse_encode(x, w, b, torch.ones(3).long()),
            ValueError,
            "k must have x's leading shape",
        ),
        (lambda x, w, b: sparse_encode(x, w, b[1:], 2), ValueError, "bias must have shape"),
        (lambda x, w, b: sparse_encode(x, w, b.float(), 2), TypeError, "bias must have the dtype"),
        (lambda x, w, b: sparse_encode(x, w.float(), None, 2), TypeError, "x and weight must share a dtype"),
        (lambda x, w, b: sparse_encode(x, w[0], None, 2), ValueError, "weight must have shape"),
        (
            lambda x, w, b: sparse_encode(x, w, b, 2, score=lambda z, r: z[:1]),
            ValueError,
            "score must return",
        ),
        (lambda x, w, b: sparse_encode_batch(x, w, b, 4, max_k=0), ValueError, "max_k"),
        (lambda x, w, b: sparse_encode_threshold(x, w, b, b[1:]), ValueError, "threshold"),
        (lambda x, w, b: sparse_encode_threshold(x, w, b, 0.0, bandwidth=-1.0), ValueError, "bandwidth"),
        (lambda x, w, b: sparse_encode_norm(x, w, b, b[1:]), ValueError, "norms"),
        (lambda x, w, b: sparse_encode_norm(x, w, b, b.abs(), b), ValueError, "target"),
        (lambda x, w, b: adapt_bias_(b, b[1:], 1, 0.1, 0.1), ValueError, "counts"),
    ],
)
def test_refuses_by_name(call: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(*problem(5))


@pytest.mark.parametrize("max_k", [None, 5])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("features", [slice(None), 0])
def test_batch_wide_k_leaves_out_rows_that_are_not_finite(bad: float, features: Any, max_k: int | None) -> None:
    """They have no latent, and the others share what they would without them."""
    x, w, b = gauss(6, 8), gauss(16, 8, seed=1), gauss(16, seed=2)
    others = torch.arange(6) != 1
    want = sparse_encode_batch(x[others], w, b, 3, max_k=max_k)
    x[1, features] = bad
    got = sparse_encode_batch(x, w, b, 3, max_k=max_k)
    assert (want.indices >= 0).sum() == 15
    assert (got.indices[1] == -1).all() and (got.values[1] == 0).all()
    assert torch.equal(got.indices[others], want.indices)
    assert torch.equal(got.values[others], want.values)
