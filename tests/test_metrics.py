"""Metrics that compare mapped rows, and the Poincare distance: values, ranks, gradients, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from cases import into_ball
from helpers import assert_same, gauss
from torch import Tensor

import vecbank
from vecbank import Allowed, Angular, Bank, Mahalanobis, Mapped, Pearson, Poincare, reference

COVARIANCE = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.2], [0.0, -0.2, 3.0]], dtype=torch.float64)


def centred(t: Tensor) -> Tensor:
    return t.double() - t.double().mean(-1, keepdim=True)


def whitened(t: Tensor) -> Tensor:
    factor, one = torch.linalg.cholesky(COVARIANCE), torch.eye(3, dtype=torch.float64)
    inverse = torch.linalg.solve_triangular(factor, one, upper=False)
    return reference.project(t.double(), inverse, "dot")  # sums in a fixed order


def angles(x: Tensor, bank: Tensor) -> Tensor:
    """Kahan's form, accurate at both ends."""
    u, v = (torch.nn.functional.normalize(t.double(), dim=-1, eps=0.0) for t in (x, bank))
    u, v = u.unsqueeze(-2), v.unsqueeze(-3)
    found = 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))
    return torch.where(found.isnan(), math.pi / 2, found)


def poincare(x: Tensor, bank: Tensor, c: float) -> Tensor:
    """By Moebius addition."""
    u, v = -x.double().unsqueeze(-2), bank.double().unsqueeze(-3)
    uv, uu, vv = (u * v).sum(-1, keepdim=True), (u * u).sum(-1, keepdim=True), (v * v).sum(-1, keepdim=True)
    sum_ = ((1 + 2 * c * uv + c * vv) * u + (1 - c * uu) * v) / (1 + 2 * c * uv + c * c * uu * vv)
    return 2 / math.sqrt(c) * torch.atanh(math.sqrt(c) * sum_.norm(dim=-1))


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", ["pearson", Pearson(), Mahalanobis(COVARIANCE)], ids=repr)
def test_ranks_are_those_of_the_mapped_rows(metric: str | vecbank.metrics.Metric, dtype: torch.dtype) -> None:
    """To the bit, as the base metric ranks float64 rows: of a tensor, of a Bank, in parts, among candidate sets."""
    x, bank = gauss(2, 20, 3, dtype=dtype) + 50, gauss(300, 3, dtype=dtype, seed=1) + 50
    bank[7], bank[200] = bank[3], x[0, 4]
    bank[11, 0] = float("nan")
    bank[12] = 1.0
    mapped, base = (whitened, "l2") if isinstance(metric, Mahalanobis) else (centred, "cosine")
    a, b = mapped(x), mapped(bank)
    if base == "cosine":
        b[12] = 0.0  # a constant row
    mask = torch.rand(2, 20, 300) < 0.3
    want, few = reference.topk(a, b, 9, base), reference.topk(a, b, 9, base, mask)
    value = torch.float64 if dtype == torch.float64 else torch.float32

    def same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
        assert torch.equal(got[1], expected[1])
        torch.testing.assert_close(got[0], expected[0].to(value), rtol=1e-15, atol=1e-15 if value != dtype else 1e-14)

    for rows in (bank, Bank(bank, metric)):
        same(tuple(vecbank.topk(x, rows, 9, metric)), tuple(want))
        same(tuple(vecbank.topk(x, rows, 9, metric, allowed=mask)), tuple(few))
        same(tuple(vecbank.nearest(x, rows, metric)), (want.values[..., 0], want.indices[..., 0]))
        assert vecbank.verify(x, rows, want.indices, metric).right.all()
        same((vecbank.score_pairs(x, rows, want.indices, metric), want.indices), tuple(want))
        parts = [vecbank.search_part(x, bank[at : at + 100], 9, metric, first_row=at) for at in range(0, 300, 100)]
        same(tuple(vecbank.merge_topk(parts)), tuple(want))
    own = Bank(bank, metric)
    same(tuple(own.topk(x, 9, allowed=Allowed.mask(mask))), tuple(few))
    assert own.topk(x, 301, pad=True).indices[..., -1].eq(-1).all()
    worst = reference.topk(a, b, 5, base, order="worst")
    same(tuple(own.topk(x, 5, order="worst")), tuple(worst))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_angles(dtype: torch.dtype) -> None:
    x, bank = gauss(40, 23, dtype=dtype), gauss(500, 23, dtype=dtype, seed=1)
    bank[3], bank[4], bank[11], bank[9], x[8] = x[5], x[5] * 2, -x[7], 0.0, 0.0
    want = angles(x, bank)
    want[8, 9] = 0.0  # of two zero rows
    room = 8 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for rows in (bank, Bank(bank, "angular")):
        found = vecbank.topk(x, rows, 500, "angular")
        assert ((found.values.double() - want.gather(1, found.indices)).abs() <= room).all()
        assert (found.values.diff(dim=1) >= 0).all() and found.values.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.equal(vecbank.radius_count(x, rows, 1.3, "angular"), (want <= 1.3).sum(1))
        hits = vecbank.radius(x, rows, math.pi, "angular")
        assert hits.offsets[-1] == want.numel()
        assert vecbank.project(x, rows, "angular").dtype == dtype
        dense = vecbank.project(x, rows, "angular", out_dtype=torch.float64)
        assert ((dense - want).abs() <= (1e-2 if dtype == torch.float16 else 4e-7)).all() or dtype == torch.bfloat16
        assert dense[5, 3] == 0 and dense[5, 4] == 0 and abs(float(dense[7, 11]) - math.pi) < 1e-6
    without_zero = Bank(bank[:9], "angular")
    assert torch.equal(without_zero.topk(x, 3).indices, vecbank.topk(x, bank[:9], 3, "angular").indices)
    torch.testing.assert_close(without_zero.topk(x[8], 3).values.double(), torch.full((3,), math.pi / 2).double())


def test_small_angles_and_those_near_pi_are_told_apart() -> None:
    """Where cosines are 1 or -1 to the last bit."""
    turns = torch.tensor([3e-9, 1e-9, 2e-9, 1e-12], dtype=torch.float64)
    bank = torch.stack([turns.cos(), turns.sin()], -1)
    bank = torch.cat([bank, -bank])
    x = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    assert float((vecbank.project(x, bank, "cosine").abs() - 1).abs().max()) == 0
    found = vecbank.topk(x, bank, 8, "angular")
    assert found.indices[0, :4].tolist() == [3, 1, 2, 0]
    torch.testing.assert_close(found.values[0, :4], turns.sort().values, rtol=1e-7, atol=0)
    dense = vecbank.project(x, bank, "angular")[0]
    torch.testing.assert_close(dense[:4], turns, rtol=1e-7, atol=0)
    torch.testing.assert_close(math.pi - dense[4:], turns, rtol=0, atol=5e-16)


@pytest.mark.parametrize("c", [1.0, 0.25, 7.0])
def test_poincare_equals_the_closed_form(c: float) -> None:
    x, bank = (into_ball(gauss(n, 5, dtype=torch.float64, seed=n)) / math.sqrt(c) for n in (40, 90))
    want, metric = poincare(x, bank, c), Poincare(c)
    torch.testing.assert_close(vecbank.project(x, bank, metric), want, rtol=1e-10, atol=1e-12)
    for rows in (bank, Bank(bank, metric)):
        found = vecbank.topk(x, rows, 90, metric)
        torch.testing.assert_close(found.values, want.sort(1).values, rtol=1e-10, atol=1e-12)
        assert torch.equal(vecbank.radius_count(x, rows, 2.5, metric), (want <= 2.5).sum(1))
        assert vecbank.verify(x, rows, found.indices[:, :7], metric).right.all()
    if c == 1.0:
        assert_same(tuple(vecbank.topk(x, bank, 5, "poincare")), tuple(vecbank.topk(x, bank, 5, metric)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_poincare_near_the_boundary(dtype: torch.dtype) -> None:
    """At |x| = 1 - 1e-7, where 1 - |x|^2 in float32 has lost its digits."""
    x, bank = (
        torch.nn.functional.normalize(gauss(n, 8, dtype=torch.float64, seed=n), dim=1) * (1 - 1e-7) for n in (20, 60)
    )
    x, bank = x.to(dtype), bank.to(dtype)
    inside_x, inside_bank = (t.double().norm(dim=1) < 1 for t in (x, bank))
    x, bank = x[inside_x], bank[inside_bank]
    assert len(x) > 10 and len(bank) > 30
    ratio = torch.cdist(x.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    ratio = ratio / ((1 - x.double().square().sum(1, keepdim=True)) * (1 - bank.double().square().sum(1)))
    want = 2 * torch.asinh(ratio.sqrt())
    found = vecbank.topk(x, bank, len(bank), "poincare")
    torch.testing.assert_close(found.values.double(), want.sort(1).values, rtol=1e-6, atol=0)
    near = x.detach().clone().requires_grad_()
    vecbank.topk(near, bank, 5, "poincare").values.sum().backward()
    assert near.grad is not None and near.grad.isfinite().all()


GRADED: list[str | vecbank.metrics.Metric] = ["poincare", Poincare(0.5), "pearson", "angular", Mahalanobis(COVARIANCE)]


@pytest.mark.parametrize("metric", GRADED, ids=repr)
def test_gradients(metric: str | vecbank.metrics.Metric) -> None:
    x, bank = (gauss(n, 3, dtype=torch.float64, seed=n).mul_(0.2).requires_grad_() for n in (4, 6))
    pairs = torch.tensor([[1, 5], [0, 2], [3, 3], [-1, 4]])
    calls: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, b: vecbank.project(x, b, metric),
        lambda x, b: vecbank.topk(x, b, 3, metric).values,
        lambda x, b: vecbank.nearest(x, b, metric).values,
        lambda x, b: vecbank.score_pairs(x, b, pairs, metric)[pairs >= 0],
        lambda x, b: vecbank.radius(x, b, 0.1 if metric == "pearson" else 9.0, metric).values,
    ]
    for call in calls:
        assert torch.autograd.gradcheck(call, (x, bank))


def test_gradients_where_there_is_none() -> None:
    """At distance 0 and at opposite rows they are 0, not NaN."""
    rows = torch.tensor([[0.3, 0.4], [-0.3, -0.4], [0.6, 0.0]], dtype=torch.float64)
    for metric in ("poincare", "angular", "pearson"):
        for call in (
            lambda x, b, m=metric: vecbank.project(x, b, m),
            lambda x, b, m=metric: vecbank.topk(x, b, 3, m).values,
        ):
            x, bank = rows.clone().requires_grad_(), rows.clone().requires_grad_()
            call(x, bank).sum().backward()
            assert x.grad is not None and bank.grad is not None
            assert x.grad.isfinite().all() and bank.grad.isfinite().all()


def test_forward_mode_and_batches_of_poincare() -> None:
    x, bank = into_ball(gauss(2, 5, 3, dtype=torch.float64)), into_ball(gauss(2, 7, 3, dtype=torch.float64, seed=1))
    tangents = gauss(2, 5, 3, dtype=torch.float64, seed=2), gauss(2, 7, 3, dtype=torch.float64, seed=3)

    def both(x: Tensor, bank: Tensor) -> Tensor:
        return vecbank.project(x, bank, "poincare")

    value, change = torch.func.jvp(both, (x, bank), tangents)
    step = 1e-6
    more, less = (both(x + s * tangents[0], bank + s * tangents[1]) for s in (step, -step))
    torch.testing.assert_close(change, (more - less) / (2 * step), rtol=1e-6, atol=1e-7)
    a, b = x.requires_grad_(), bank.requires_grad_()
    weights = gauss(2, 5, 7, dtype=torch.float64, seed=4)
    got = torch.autograd.grad((both(a, b) * weights).sum(), (a, b))
    want = torch.autograd.grad((reference.project(a, b, "poincare") * weights).sum(), (a, b))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert torch.equal(value[1], both(x[1], bank[1]).detach())


def test_a_learned_covariance_and_a_learned_map() -> None:
    x, bank = gauss(5, 3, dtype=torch.float64), gauss(8, 3, dtype=torch.float64, seed=1)
    factor = torch.linalg.cholesky(COVARIANCE).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: vecbank.topk(x, bank, 2, Mahalanobis(f @ f.mT)).values, (factor,))
    layer = torch.nn.Linear(3, 4, bias=False)
    metric = Mapped(layer, "l2")
    kept = Bank(bank.float(), metric)
    before = kept.topk(x.float(), 8).values
    assert torch.equal(
        before, vecbank.topk(layer(x.float()).double(), layer(bank.float()).double(), 8, "l2").values.float()
    )
    before.sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(kept.topk(x.float(), 8).values, 2 * before)  # a Bank keeps nothing of a learned map


def test_whiten_is_the_quadratic_form() -> None:
    x, bank = gauss(7, 3), gauss(50, 3, seed=1)
    apart = x.double().unsqueeze(1) - bank.double()
    want = torch.einsum("nmi,ij,nmj->nm", apart, torch.linalg.inv(COVARIANCE), apart).sqrt()
    whitened_bank = vecbank.whiten(bank, COVARIANCE)
    torch.testing.assert_close(whitened_bank.project(x).double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whitened_bank.topk(x, 50).values.double(), want.sort(1).values, rtol=1e-6, atol=0)
    assert whitened_bank.vectors is bank or torch.equal(whitened_bank.vectors, bank)


@pytest.mark.parametrize("metric", ["pearson", "angular", Poincare(0.1), Mahalanobis(COVARIANCE)], ids=repr)
def test_a_bank_follows_its_vectors(metric: str | vecbank.metrics.Metric) -> None:
    vectors = into_ball(gauss(30, 3))
    bank, x = Bank(vectors, metric), into_ball(gauss(4, 3, seed=1))
    mapped = bank.prepare("search").topk(x, 5)
    assert_same(tuple(mapped), tuple(vecbank.topk(x, vectors, 5, metric)))
    bank.vectors[3] = x[0]
    assert bank.topk(x, 1).indices[0] == 3
    bank.update_(torch.tensor([9]), x[1:2])
    assert bank.topk(x, 1).indices[1] == 9
    assert_same(tuple(bank.topk(x, 5)), tuple(vecbank.topk(x, bank.vectors, 5, metric)))
    learnable = Bank(vectors, metric, learnable=True)
    learnable.topk(x, 2).values.sum().backward()
    assert learnable.vectors.grad is not None and learnable.vectors.grad.abs().sum() > 0
    assert bank.metric == metric and repr(metric)[:6] in repr(bank)


def test_large_banks_are_screened_and_explained() -> None:
    bank, x = gauss(20_000, 64), gauss(100, 64, seed=1)
    for metric, base in (("pearson", "cosine"), ("angular", "l2")):
        own = Bank(bank, metric)
        rows, queries = (
            centred(t) if metric == "pearson" else torch.nn.functional.normalize(t.double()) for t in (bank, x)
        )
        assert torch.equal(own.topk(x, 10).indices, vecbank.topk(queries, rows, 10, base).indices)
        assert sum(own.explain(x).screened.values()) > 0


def test_numpy_and_compiled() -> None:
    x, bank = gauss(6, 8), gauss(40, 8, seed=1)
    for metric in ("pearson", "angular"):
        found = vecbank.topk(x.numpy(), bank.numpy(), 3, metric)
        assert torch.equal(torch.from_numpy(found.indices), vecbank.topk(x, bank, 3, metric).indices)
        compiled = torch.compile(lambda x, b, m=metric: vecbank.topk(x, b, 3, m), fullgraph=True)
        assert torch.equal(compiled(x, bank).indices, vecbank.topk(x, bank, 3, metric).indices)
    inside, others = into_ball(x), into_ball(bank)
    compiled = torch.compile(lambda x, b: vecbank.nearest(x, b, "poincare"), fullgraph=True)
    assert_same(tuple(compiled(inside, others)), tuple(vecbank.nearest(inside, others, "poincare")))


# ---- Maps and kernels ---------------------------------------------------------------------------------------------


def positive(n: int, d: int, seed: int = 0) -> Tensor:
    roots = gauss(n, d, d, dtype=torch.float64, seed=seed)
    return roots @ roots.mT + 0.1 * torch.eye(d, dtype=torch.float64)


def test_log_euclidean_is_the_distance_of_logarithms() -> None:
    a, b = positive(5, 4), positive(7, 4, seed=1)
    values, vectors = torch.linalg.eigh(torch.cat([a, b]))
    logarithms = (vectors * values.log().unsqueeze(-2)) @ vectors.mT
    want = torch.linalg.matrix_norm(logarithms[:5].unsqueeze(1) - logarithms[5:])
    got = vecbank.project(vecbank.log_euclidean(a), vecbank.log_euclidean(b), "l2")
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert vecbank.log_euclidean(a.float()).dtype == torch.float32


def test_log_euclidean_has_a_gradient_where_eigenvalues_are_equal() -> None:
    near = torch.diag(torch.tensor([2.0, 2.0 + 1e-9, 3.0], dtype=torch.float64))
    for matrix in (torch.eye(3, dtype=torch.float64) * 2, near, positive(1, 3)[0]):
        root = matrix.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda m: vecbank.log_euclidean((m + m.mT) / 2), (root,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_vector_has_a_point_in_the_ball(dtype: torch.dtype) -> None:
    x = torch.cat([gauss(40, 5, dtype=dtype), gauss(10, 5, dtype=dtype, seed=1) * 1e4, torch.zeros(1, 5, dtype=dtype)])
    for c in (1.0, 0.3):
        points = Poincare(c).into_ball(x)
        assert points.dtype == dtype and points[-1].eq(0).all()
        vecbank.nearest(points, points, Poincare(c))  # none is refused
        if dtype == torch.float64:
            norms = x[:40].norm(dim=1)
            torch.testing.assert_close(points[:40].norm(dim=1), (norms * c**0.5).tanh() / c**0.5)
    given = torch.zeros(2, 5, dtype=torch.float64)
    given[1] = 0.3
    assert torch.autograd.gradcheck(Poincare(2.0).into_ball, (given.requires_grad_(),))


def test_kernels_of_distances() -> None:
    from sklearn.gaussian_process.kernels import RationalQuadratic

    x, bank = gauss(6, 4, dtype=torch.float64), gauss(9, 4, dtype=torch.float64, seed=1)
    theirs = torch.from_numpy(RationalQuadratic(length_scale=1.7, alpha=0.8)(x.numpy(), bank.numpy()))
    torch.testing.assert_close(vecbank.kernels.rational_quadratic(x, bank, alpha=0.8, length=1.7), theirs)
    torch.testing.assert_close(
        vecbank.kernels.inverse_power(x, bank, alpha=1.5), vecbank.project(x, bank, "l2") ** -1.5
    )
    torch.testing.assert_close(
        vecbank.kernels.inverse_power(x, Bank(bank, "l1"), alpha=2.0), vecbank.project(x, bank, "l1") ** -2.0
    )
    same = x.clone().requires_grad_()
    found = vecbank.kernels.inverse_power(same, x)
    assert found.diagonal().isinf().all()
    found[~found.isinf()].sum().backward()
    assert same.grad is not None and same.grad.isfinite().all()
    for similarity in ("dot", "pearson", Pearson(), Mapped(torch.nn.Identity(), "cosine")):
        with pytest.raises(ValueError, match="metric must be a distance, got the similarity"):
            vecbank.kernels.inverse_power(x, bank, metric=similarity)
        with pytest.raises(ValueError, match="metric must be a distance, got the similarity"):
            vecbank.kernels.inverse_power(x, Bank(bank, similarity))
    for call in (vecbank.kernels.rational_quadratic, vecbank.kernels.inverse_power):
        with pytest.raises(ValueError, match="alpha must be above 0 and finite, got 0"):
            call(x, bank, alpha=0.0)


# ---- Errors -------------------------------------------------------------------------------------------------------


def test_what_is_refused() -> None:
    x, bank = gauss(4, 3) * 3, gauss(9, 3, seed=1) * 3
    x[2] = torch.tensor([3.0, 0.0, 4.0])
    inside = into_ball(bank)
    big = x[2:3]
    refused: list[tuple[Callable[[], object], str]] = [
        (
            lambda: vecbank.topk(big, inside, 2, "poincare"),
            "x must lie inside the ball of radius 1 .* norm of 5 in row 0",
        ),
        (lambda: vecbank.nearest(inside, big, "poincare"), "bank must lie inside the ball"),
        (lambda: vecbank.project(big, inside, Poincare(0.01)).sum() and Bank(big, Poincare(0.04)), "radius 5 "),
        (lambda: Bank(big, "poincare"), "vectors must lie inside the ball"),
        (lambda: vecbank.radius(inside, inside, 1.0, Poincare(4.0)), r"ball of radius 0.5 \(curvature 4\)"),
        (lambda: Poincare(0.0), "curvature must be above 0 and finite, got 0"),
        (lambda: Poincare(-1.0), "curvature must be above 0 and finite, got -1"),
        (lambda: Poincare(float("nan")), "curvature must be above 0"),
        (lambda: Mahalanobis(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "indefinite: its smallest eigenvalue is -1"),
        (lambda: Mahalanobis(torch.ones(3, 3)), "singular: its smallest eigenvalue"),
        (lambda: Mahalanobis(torch.ones(3, 2)), r"covariance must be \(d, d\), got \(3, 2\)"),
        (lambda: Mahalanobis(torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "must be symmetric"),
        (lambda: Mahalanobis(torch.tensor([[float("inf")]])), "must be finite"),
        (
            lambda: vecbank.topk(x, bank, 2, Mahalanobis(torch.eye(4))),
            r"x must be \(..., 4\) for a covariance",
        ),
        (lambda: vecbank.whiten(bank, torch.eye(2)), r"bank must be \(..., 2\)"),
        (lambda: vecbank.topk(x, bank, 2, "pearsn"), "metric must be one of .*pearson, angular"),
        (lambda: Bank(bank, "pearsn"), "metric must be one of .*pearson, angular"),
        (lambda: vecbank.topk(x, bank, 2, "pearson", bias=bank[:, 0]), 'bias goes with the "dot" metric'),
        (lambda: Bank(bank, "pearson", bias=bank[:, 0]), 'bias goes with the "dot" metric'),
        (lambda: vecbank.topk(x, Bank(bank, "dot", bias=bank[:, 0]), 2, "angular"), "a Bank with a bias"),
        (lambda: vecbank.quantize(x, bank, "pearson"), "metric must be one of dot, .* here, got 'pearson'"),
        (lambda: Bank(bank, "angular").quantize(x), "quantize has no form by 'angular'"),
        (lambda: vecbank.radius(x, bank, -0.5, "angular"), 'negative for the distance "angular", got -0.5'),
        (lambda: Bank(bank, "pearson").prepare("search", "angular"), "this Bank is for 'pearson'"),
        (lambda: Bank(bank, "l2").prepare("search", "angular"), "this Bank is for 'l2'"),
        (lambda: Mapped(torch.nn.Identity(), "pearson"), "base must be one of"),
        (lambda: vecbank.topk(x, bank, 1, Mapped(lambda t: t[:1])), "map must keep all dimensions but the last"),
        (lambda: vecbank.residual.quantize(inside, [inside], "poincare"), "poincare"),
        (lambda: vecbank.residual.quantize(bank, [Bank(bank, "pearson")]), "no form by 'pearson'"),
        (lambda: vecbank.farthest_points(bank, 2, Poincare(1.0)), "metric must be"),
        (lambda: vecbank.log_euclidean(torch.ones(2, 3)), r"matrices must be \(..., n, n\)"),
        (
            lambda: vecbank.log_euclidean(-torch.eye(2)),
            "a smallest eigenvalue of -1 in matrix 0",
        ),
        (lambda: vecbank.log_euclidean(torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "must be symmetric"),
    ]
    for call, words in refused:
        with pytest.raises(ValueError, match=words):
            call()
    for call in (
        lambda: Mapped(3),
        lambda: Poincare("1"),
        lambda: Mahalanobis([[1.0]]),
        lambda: vecbank.log_euclidean(torch.eye(2).int()),
    ):
        with pytest.raises(TypeError):
            call()


def test_points_outside_are_no_neighbours_where_nobody_looks() -> None:
    """The ops themselves, and devices whose numbers are not read: such a point has no distance."""
    rows = torch.tensor([[0.5, 0.0], [1.0, 0.0], [2.0, 0.0]])
    code = vecbank.METRICS["poincare"]
    values, indices = torch.ops.vecbank.topk(rows, rows, None, 3, code)
    assert indices.tolist() == [[0, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert values[1:].isinf().all()


def test_equality_of_metrics() -> None:
    assert Poincare(0.5) == Poincare(0.5) and Poincare(0.5) != Poincare(0.6) and hash(Pearson()) == hash(Pearson())
    assert Angular() != Pearson() and Mahalanobis(COVARIANCE) == Mahalanobis(COVARIANCE)
    assert Bank(gauss(3, 3), "pearson").metric == "pearson" and Bank(gauss(3, 3), Pearson()).metric == Pearson()


def test_forward_mode_of_angles() -> None:
    """Outside of functional transforms too, where a faster form has none."""
    x, bank, tangent = gauss(4, 5), gauss(6, 5, seed=1), gauss(4, 5, seed=2)
    with torch.autograd.forward_ad.dual_level():
        dual = vecbank.project(torch.autograd.forward_ad.make_dual(x, tangent), bank, "angular")
        change = torch.autograd.forward_ad.unpack_dual(dual).tangent
    step = 1e-3
    more, less = (vecbank.project((x + s * tangent).double(), bank.double(), "angular") for s in (step, -step))
    torch.testing.assert_close(change.double(), (more - less) / (2 * step), rtol=1e-3, atol=1e-3)
