"""Metrics that compare mapped rows: what was found by trying to break them."""

from __future__ import annotations

import pytest
import torch
from cases import into_ball
from helpers import assert_same, gauss
from test_metrics import COVARIANCE, angles

import vecbank
from vecbank import Bank, Mahalanobis, Mapped, Poincare


def test_a_mapped_row_does_not_depend_on_the_others() -> None:
    root = gauss(20, 20, dtype=torch.float64)
    bank = gauss(300, 20)
    for metric in (Mahalanobis(root @ root.mT / 20 + 0.1 * torch.eye(20)), "angular", "pearson"):
        whole = vecbank.topk(bank[:50], bank, 5, metric)
        for rows in (slice(0, 1), slice(3, 10), slice(49, 50)):
            part = vecbank.topk(bank[rows], bank, 5, metric)
            assert torch.equal(part.values, whole.values[rows]) and torch.equal(part.indices, whole.indices[rows])
        strided = bank.mT.contiguous().mT
        assert_same(tuple(vecbank.topk(strided[:9], strided, 5, metric)), tuple(part[:9] for part in whole))
    one = bank[:1].clone().requires_grad_()
    own = vecbank.nearest(one, bank, Mahalanobis(root @ root.mT / 20 + 0.1 * torch.eye(20)))
    own.values.sum().backward()
    assert own.values.item() == 0 and one.grad is not None and one.grad.eq(0).all()


@pytest.mark.parametrize("scale", [1e160, 1e-170, 1e-12])
def test_angles_of_rows_of_any_length(scale: float) -> None:
    x = torch.tensor([[1.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    want = angles(x, bank)
    for a, b in ((x * scale, bank), (x, bank * scale), (x * scale, bank / scale)):
        found = vecbank.topk(a, b, 2, "angular")
        torch.testing.assert_close(found.values, want.gather(1, found.indices), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(vecbank.project(a, b, "angular"), want, rtol=1e-12, atol=1e-12)
    small = x.float() * 1e-20
    torch.testing.assert_close(vecbank.project(small, bank.float(), "angular").double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("metric", ["angular", Poincare(0.5), "poincare", "pearson"], ids=repr)
def test_a_radius_is_within_itself(metric: str | vecbank.metrics.Metric) -> None:
    """Of the values that were returned, each on its own."""
    bank, x = (into_ball(gauss(n, 2, dtype=torch.float64, seed=n)) for n in (300, 40))
    values = vecbank.topk(x, bank, 3, metric).values
    for rank in range(3):
        radii = values[:, rank]
        counts = vecbank.radius_count(x, bank, radii, metric)
        hits = vecbank.radius(x, bank, radii, metric)
        assert torch.equal(hits.offsets.diff(), counts) and (counts >= rank + 1).all()
        if metric != "pearson":  # where scores are many that are equal
            assert (counts == rank + 1).all()
        places = vecbank.radius(x, bank, radii, metric, max_hits=5)
        assert torch.equal((places.indices.view(40, 5) >= 0).sum(1), counts.clamp(max=5))


def test_what_is_missing_has_the_worst_value() -> None:
    x, bank = torch.zeros(1, 3), torch.eye(3)
    assert vecbank.topk(x, bank, 4, "angular", order="worst", pad=True).values[0, 3] == -torch.inf
    assert vecbank.topk(x, bank, 4, "angular", pad=True).values[0, 3] == torch.inf
    nothing = torch.zeros(0, dtype=torch.bool)
    for metric in ("l2", "angular", "pearson"):
        checked = vecbank.verify(x, bank[:0], torch.full((1, 2), -1), metric, allowed=nothing)
        assert checked.right.all()


def test_vectors_of_no_width() -> None:
    x, bank = torch.zeros(2, 0), torch.zeros(3, 0)
    for metric in ("pearson", "angular", "poincare", Poincare(2.0), Mahalanobis(torch.zeros(0, 0))):
        assert vecbank.project(x, bank, metric).shape == (2, 3)
        assert vecbank.topk(x, bank, 2, metric).indices.shape == (2, 2)


def test_long_vectors_lie_near_the_boundary() -> None:
    for length in (1e20, 1e30, 3e38):
        point = Poincare(1.0).into_ball(torch.tensor([[length, 0.0]]))
        assert 0.99 < float(point.norm()) < 1


def test_a_bank_of_a_learned_map_has_its_parameters() -> None:
    bank = Bank(gauss(9, 4), Mapped(torch.nn.Linear(4, 2)))
    assert {"map.weight", "map.bias"} <= set(dict(bank.named_parameters()))


def test_parts_of_equal_metrics_are_merged() -> None:
    x, bank = gauss(5, 3), gauss(20, 3, seed=1)
    parts = [vecbank.search_part(x, bank[i : i + 10], 4, Mahalanobis(COVARIANCE), first_row=i) for i in (0, 10)]
    assert_same(tuple(vecbank.merge_topk(parts)), tuple(vecbank.topk(x, bank, 4, Mahalanobis(COVARIANCE))))


def test_covariances_are_held_to_their_own_precision() -> None:
    wide = gauss(200, 8)
    wide[:, 4:] = wide[:, :4] @ gauss(4, 4, seed=1)  # of rank 4
    with pytest.raises(ValueError, match="singular: its smallest eigenvalue"):
        Mahalanobis(torch.cov(wide.T))


def test_the_rational_quadratic_kernel_of_a_whitened_bank() -> None:
    x, bank = gauss(4, 3), gauss(9, 3, seed=1)
    whitened_bank = vecbank.whiten(bank, COVARIANCE)
    want = 1 / (1 + whitened_bank.project(x).square() / 2)
    torch.testing.assert_close(vecbank.kernels.rational_quadratic(x, whitened_bank), want)
    with pytest.raises(ValueError, match="must be a distance"):
        vecbank.kernels.rational_quadratic(x, Bank(bank, "pearson"))
