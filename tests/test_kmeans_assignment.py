"""k-means compares samples with fewer centroids once few of them move; the answers are those of all comparisons."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import Target, seeded
from torch import Tensor

from vecbank.cluster import _assignment, kmeans
from vecbank.cluster._assignment import Assignment
from vecbank.cluster._samples import Samples, largest_of, prepared, sums_of

_kmeans = sys.modules[kmeans.__module__]
METRICS = ["l2", "cosine"]


def gaussian() -> Tensor:
    return torch.randn(900, 6, generator=seeded(1))


def integers() -> Tensor:
    """Equal distances everywhere, and equal samples."""
    return torch.randint(-2, 3, (900, 3), generator=seeded(2)).float()


def nearly_equal() -> Tensor:
    """Distances that differ in float64 and are equal in float32."""
    return 1.0 + 1e-7 * torch.randint(0, 4, (600, 5), generator=seeded(3)).float()


def with_zeros() -> Tensor:
    x = gaussian()
    x[::5] = 0
    return x


def half() -> Tensor:
    return gaussian().bfloat16()


def double() -> Tensor:
    return gaussian().double()


DATA = [gaussian, integers, nearly_equal, with_zeros, half, double]


@pytest.fixture(params=["always", "by the model"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Whether the moved centroids are always compared first."""
    if request.param == "always":
        monkeypatch.setattr(_assignment, "_GAIN", float("inf"))
    return request.param


def samples(x: Tensor, metric: str) -> Samples:
    return prepared(x, largest_of("x", x), None, metric == "cosine")


def check(found: tuple[Tensor, Tensor], data: Samples, centroids: Tensor) -> None:
    expected = data.assign(centroids)
    assert torch.equal(found[1], expected[1]) and torch.equal(found[0], expected[0])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("draw", DATA)
def test_any_moves(draw: Any, metric: str, way: str, target: Target) -> None:
    """Some centroids move, by little or much, some onto others or back to where they were; others stay."""
    x = draw().to(target.device)
    data, g = samples(x, metric), seeded(4)
    centroids = data.rows(torch.randperm(len(x), generator=g)[:40].to(x.device))
    found = Assignment(data, 40)
    first = centroids
    for move in range(8):
        check(found.step(centroids), data, centroids)
        centroids = centroids.clone()
        some = torch.randperm(40, generator=g)[: (40, 10, 1, 0, 3)[move % 5]].to(x.device)
        step = torch.randn(len(some), x.shape[1], generator=g).to(centroids) * (1e-6, 0.1, 1.0)[move % 3]
        centroids[some] = centroids[some] + step
        if move == 2:
            centroids[some] = centroids[(some + 1) % 40]
        if move == 6:
            centroids = first
    check(found.step(centroids), data, centroids)


def test_ties_go_to_the_lower_number(way: str) -> None:
    """A centroid that moves onto another one takes its samples only if its number is lower."""
    x = gaussian()
    data = samples(x, "l2")
    centroids = x[:30].clone()
    for mover, rest in ((0, 29), (29, 0)):
        found = Assignment(data, 30)
        found.step(centroids)
        moved = centroids.clone()
        moved[mover] = centroids[rest]
        distances, codes = found.step(moved)
        check((distances, codes), data, moved)
        assert bool((codes != 29).all()) and bool((codes == 0).any())


def test_few_samples_are_copied_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_assignment, "_GAIN", float("inf"))
    monkeypatch.setattr(_assignment, "_ELEMENTS", 60)
    x = gaussian()
    data = samples(x, "l2")
    found = Assignment(data, 50)
    found.step(x[:50])
    check(found.step(x[:50] * 1.5), data, x[:50] * 1.5)


OPTIONS = {
    "plain": {},
    "weights": {"weights": torch.rand(900, generator=seeded(5))},
    "weights of zero": {"weights": (torch.rand(900, generator=seeded(5)) < 0.1).float()},  # empty codes at every step
    "no iteration": {"iterations": 0},
    "tolerance": {"tolerance": 0.01},
    "to the end": {"tolerance": 0.0},
}


def same_as_plain(monkeypatch: pytest.MonkeyPatch, x: Tensor, k: int, **run: Any) -> None:
    """The same bits as when every sample is compared with every centroid and all sums are made anew, with and without
    a look at what may be left out.
    """

    def all_sums(data: Samples, codes: Tensor, k: int, wanted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return sums_of(data, codes, k, None if wanted is None else wanted.fill_(True))

    monkeypatch.setattr(_assignment, "_GAIN", float("inf"))
    found = kmeans(x, k, **run)
    with monkeypatch.context() as whole:
        whole.setattr(_assignment, "_GAIN", 0.0)
        without = kmeans(x, k, **run)
    with monkeypatch.context() as plain:
        plain.setattr(Assignment, "step", lambda self, centroids: self._data.assign(centroids))
        plain.setattr(_kmeans, "sums_of", all_sums)
        expected = kmeans(x, k, **run)
    for one in (found, without):
        assert torch.equal(one.centroids, expected.centroids) and torch.equal(one.codes, expected.codes)
        assert one[2:] == expected[2:]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("draw", [gaussian, integers, with_zeros, half])
def test_whole_runs(draw: Any, name: str, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the starts is equal, so codes are emptied and begin again from other samples."""
    x = draw()
    run = {"metric": metric, "init": x[torch.arange(60) % 40].to(torch.float32), "iterations": 40, "generator": 0}
    same_as_plain(monkeypatch, x, 60, **(run | OPTIONS[name]))


@pytest.mark.parametrize("iterations", [2, 3, 4, 60])
@pytest.mark.parametrize("seed", [15, 21, 24, 30, 48, 72])
def test_codes_that_are_emptied_late(seed: int, iterations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take samples of codes that nothing else has touched."""
    g, count = seeded(seed), (40, 80, 200)[seed % 3]
    x = torch.randn(count, 1 + seed % 2, generator=g) ** 3
    init = 0.05 * x[torch.randperm(count, generator=g)[:30]]
    same_as_plain(monkeypatch, x, 30, init=init, iterations=iterations, tolerance=0.0)


@pytest.mark.parametrize("seed", [18, 19, 20, 47, 73])
def test_samples_of_nearly_one_direction(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many codes as samples, which tie: a code that was given a sample may not be the one that keeps it."""
    g, count = seeded(seed), (40, 100, 200)[seed % 3]
    width = (2, 5, 17)[seed // 3 % 3]
    x = torch.randn(count, width, generator=g, dtype=torch.float64) + 1e6
    weights = (torch.rand(count, generator=g) < 0.5).double() if seed % 2 else None
    k = count if seed % 4 < 3 else count - 3
    init = x[torch.randint(0, count, (k,), generator=g)]
    same_as_plain(monkeypatch, x, k, init=init, iterations=12, tolerance=0.0, weights=weights, metric="cosine")


def test_a_code_without_weight_stays_finite() -> None:
    """What is left of a sum that a reseeded sample was taken from is not divided by no weight."""
    found = kmeans(torch.arange(64.0)[:, None], 64, metric="cosine", init=torch.zeros(64, 1), tolerance=0.0)
    assert bool(found.centroids.isfinite().all())


def test_sums_of_other_codes_are_left_out() -> None:
    data, codes = samples(gaussian(), "l2"), torch.arange(900) % 7
    wanted = torch.tensor([True, False, True, True, False, False, True])
    sums, sizes = sums_of(data, codes, 7, wanted)
    every, all_sizes = sums_of(data, codes, 7)
    assert torch.equal(sums, torch.where(wanted[:, None], every, 0.0)) and torch.equal(sizes, all_sizes)


def test_fewer_different_samples_than_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A code keeps the sample that it gave away: the two centroids are equal, and the lower number has it."""
    x = torch.randn(6, 3, generator=seeded(8))[torch.randint(0, 6, (50,), generator=seeded(9))]
    same_as_plain(monkeypatch, x, 12, init=x[:12], iterations=10, tolerance=0.0)


def test_fewer_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where few centroids move, most samples are compared with these alone."""
    x = torch.randn(4000, 8, generator=seeded(6))
    centroids = x[:2000].clone()
    compared = []
    real = _assignment.nearest

    def counting(x: Tensor, bank: Tensor, metric: str) -> Any:
        compared.append(len(x) * len(bank))
        return real(x, bank, metric)

    monkeypatch.setattr(_assignment, "nearest", counting)
    found = Assignment(samples(x, "l2"), 2000)
    found.step(centroids)
    moved = centroids.clone()
    moved[:20] += 0.01
    found.step(moved)
    assert compared[0] == 4000 * 2000 and sum(compared[1:]) < 0.05 * compared[0]
    before = len(compared)
    found.step(moved)
    assert len(compared) == before
