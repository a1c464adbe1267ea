"""k-means at the ends of the float range: the same clusters, centroids and inertia as of the same data at 1."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import Target, assert_same, seeded
from torch import Tensor

from vecbank.cluster import kmeans

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "random": {"init": "random", "restarts": 2},
    "batches": {"batch_size": 60, "iterations": 4},
    "cosine": {"metric": "cosine"},
    "cosine batches": {"metric": "cosine", "batch_size": 60, "iterations": 4},
    "weights": {"weights": torch.rand(240, generator=seeded(5)) + 0.1},
    "exact": {"tolerance": 0.0},
}


def blobs(dtype: torch.dtype = torch.float32, offset: float = 0.0, spread: float = 0.05) -> Tensor:
    g = seeded(4)
    centroids = torch.randn(12, 6, generator=g, dtype=torch.float64)
    x = centroids[torch.arange(240) % 12] + spread * torch.randn(240, 6, generator=g, dtype=torch.float64)
    return (offset + x / x.abs().max() / 2).to(dtype)


def times(x: Tensor, power: int) -> Tensor:
    return x * 2.0 ** (power // 2) * 2.0 ** (power - power // 2)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    ("dtype", "power"),
    [(torch.float32, p) for p in (-110, -80, -30, 62, 90, 127)]
    + [(torch.bfloat16, p) for p in (-110, 62, 127)]
    + [(torch.float16, 15)]
    + [(torch.float64, p) for p in (-900, -560, 400, 511)],
    ids=str,
)
def test_scale_changes_nothing_else(name: str, dtype: torch.dtype, power: int, target: Target) -> None:
    x = blobs(dtype)
    options = {k: v.to(target.device) if isinstance(v, Tensor) else v for k, v in OPTIONS[name].items()}
    want = kmeans(x.to(target.device), 12, generator=seeded(), **options)
    scaled = (x.double() * 2.0**power).to(dtype).to(target.device)
    got = kmeans(scaled, 12, generator=seeded(), **options)
    assert want.inertia > 0 and len(want.codes.unique()) == 12
    assert_same(got.codes, want.codes)
    cosine = "cosine" in name
    assert_same(got.centroids, want.centroids if cosine else times(want.centroids, power))
    assert got.inertia == (want.inertia if cosine else math.ldexp(want.inertia, 2 * power))
    assert got.iterations == want.iterations


@pytest.mark.parametrize("offset", [1.0, -3.0])
@pytest.mark.parametrize("power", [-100, 70, 120])
def test_offset_and_a_tiny_spread(offset: float, power: int) -> None:
    x = blobs(offset=0.0) * 2.0**-12 + offset
    want = kmeans(x, 12, generator=seeded(), tolerance=0.0)
    got = kmeans(x * 2.0**power, 12, generator=seeded(), tolerance=0.0)
    assert_same((got.centroids, got.codes), (want.centroids * 2.0**power, want.codes))
    assert len(want.codes.unique()) == 12 and got.inertia == math.ldexp(want.inertia, 2 * power) > 0


@pytest.mark.parametrize("options", [{}, {"batch_size": 60, "iterations": 4}, {"metric": "cosine"}], ids=str)
@pytest.mark.parametrize(
    ("dtype", "power"), [(torch.float32, 127), (torch.float32, -130), (torch.float64, 1020)], ids=str
)
def test_scale_of_weights_changes_nothing_else(options: dict[str, Any], dtype: torch.dtype, power: int) -> None:
    x, weights = blobs(), (torch.randint(1, 16, (240,), generator=seeded(5)) / 16).to(dtype)
    want = kmeans(x, 12, generator=seeded(), weights=weights, **options)
    heavy = times(weights.double(), power).to(dtype)
    got = kmeans(x, 12, generator=seeded(), weights=heavy, **options)
    assert_same((got.centroids, got.codes), (want.centroids, want.codes))
    assert got.inertia == math.ldexp(want.inertia, power) and 0 < got.inertia < math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("batch_size", [None, 240])
def test_a_cluster_of_light_samples_has_a_centroid(dtype: torch.dtype, metric: str, batch_size: int | None) -> None:
    """Weights 1e40 or 1e300 times apart: the centroid of the light ones is their mean all the same."""
    label = torch.arange(240) % 3
    x = torch.eye(3, 6, dtype=torch.float64)[label] + 0.01 * torch.randn(
        240, 6, generator=seeded(), dtype=torch.float64
    )
    x = x.to(dtype)
    light, heavy = (1e-42, 3e38) if dtype == torch.float32 else (1e-300, 1.0)
    weights = torch.tensor([heavy, light, heavy], dtype=dtype)[label]
    start = torch.eye(3, 6, dtype=dtype)
    got = kmeans(x, 3, init=start, weights=weights, metric=metric, batch_size=batch_size, iterations=1)
    rows = x.double()
    if metric == "cosine":
        rows = rows / rows.norm(dim=1, keepdim=True)
    means = torch.stack([rows[label == c].mean(0) for c in range(3)])
    if metric == "cosine":
        means = means / means.norm(dim=1, keepdim=True)
    assert torch.equal(got.codes, label)
    torch.testing.assert_close(got.centroids.double(), means, rtol=1e-6, atol=1e-6)


def test_starts_far_from_small_or_large_data() -> None:
    for power in (-100, 100):
        x = blobs() * 2.0**power
        start = blobs()[:5]
        want = kmeans(blobs(), 12, init=start, generator=seeded())
        got = kmeans(x, 12, init=start * 2.0**power, generator=seeded())
        assert_same((got.centroids, got.codes), (want.centroids * 2.0**power, want.codes))
    unit = kmeans(blobs(), 5, init=start, metric="cosine")
    far = kmeans(blobs(), 5, init=start * 2.0**100, metric="cosine")
    assert_same((far.centroids, far.codes), (unit.centroids, unit.codes))
    with pytest.raises(ValueError, match="init must not be 2\\^60 times as large as x"):
        kmeans(blobs() * 2.0**-100, 5, init=start)


def test_centroids_that_their_dtype_rounds() -> None:
    """Subnormal samples: the centroids are rounded, and the codes and the inertia are those of what is returned."""
    x = torch.randint(0, 9, (60, 3), generator=seeded()).float() * 2.0**-149
    got = kmeans(x, 7, generator=seeded())
    squares = (x.double().unsqueeze(1) - got.centroids.double()).square().sum(2)
    assert torch.equal(got.codes, squares.argmin(1)) and len(got.codes.unique()) == 7
    assert got.inertia == pytest.approx(float(squares.min(1).values.sum()), rel=1e-12)


def test_an_inertia_that_no_float_holds() -> None:
    x = blobs(torch.float64)
    with pytest.raises(ValueError, match="no float64 can hold the inertia"):
        kmeans(x * 2.0**600, 3, generator=seeded())
    assert kmeans(x * 2.0**-600, 3, generator=seeded()).inertia == 0.0  # rounds to it


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"metric": "cosine"}, {"batch_size": 2}, {"weights": torch.ones(4)}], ids=str)
def test_no_features_and_no_samples(dtype: torch.dtype, options: dict[str, Any]) -> None:
    got = kmeans(torch.zeros(4, 0, dtype=dtype), 2, generator=seeded(), **options)
    assert got.centroids.shape == (2, 0) and got.codes.tolist() == [0] * 4
    assert got.inertia == 0.0  # without a direction a sample counts for nothing
    with pytest.raises(ValueError, match="k must not exceed the number of samples N = 0"):
        kmeans(torch.zeros(0, 3, dtype=dtype), 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    x = blobs()
    bad, weights = x.clone(), torch.ones(240)
    bad[7, 3] = weights[9] = value
    with pytest.raises(ValueError, match="x must be finite"):
        kmeans(bad, 3)
    with pytest.raises(ValueError, match="init must be finite"):
        kmeans(x, 8, init=bad[:8])
    with pytest.raises(ValueError, match="weights must be finite"):
        kmeans(x, 3, weights=weights)


@pytest.mark.parametrize("options", [{}, {"metric": "cosine"}, {"batch_size": 3}, {"init": "random"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_fewer_samples_that_count_than_centroids(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Weights of 0, duplicates, as many centroids as samples: finite centroids, and no error left where it counts."""
    x = blobs(dtype)[[0, 1, 2, 2, 2, 3, 3]]
    weights = torch.tensor([1.0, 0.5, 1.0, 1.0, 0, 0, 0])
    for k in (4, 7):
        got = kmeans(x, k, weights=weights, generator=seeded(), **options)
        assert bool(torch.isfinite(got.centroids).all()) and math.isfinite(got.inertia)
        if "init" not in options and k == 7:
            assert got.inertia < 1e-6
