"""Laws that hold for all inputs, tried on what hypothesis comes up with."""

from __future__ import annotations

import pytest
import torch
from cases import METRICS
from data import KINDS, fill
from helpers import assert_same, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import vecbank
from vecbank import reference

# Derandomised: the same examples every time, so that a failure in CI is a failure here.
SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
FINITE = [kind for kind in KINDS if kind != "nonfinite"]
sizes = st.tuples(st.integers(0, 12), st.integers(1, 70), st.integers(1, 40))
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
metrics = st.sampled_from(METRICS)


def draw(kind: str, size: tuple[int, int, int], metric: str, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    return fill(kind, *size, metric, dtype, dtype, torch.Generator().manual_seed(seed))


@SETTINGS
@given(st.sampled_from(KINDS), sizes, metrics, dtypes, seeds, st.data())
def test_equals_the_reference(kind, size, metric, dtype, seed, data) -> None:
    x, bank = draw(kind, size, metric, dtype, seed)
    k = data.draw(st.integers(1, size[1]), label="k")
    mask = None
    if data.draw(st.booleans(), label="masked"):
        mask = torch.rand(size[:2], generator=torch.Generator().manual_seed(seed)) < 0.5
    assert_same(tuple(vecbank.topk(x, bank, k, metric, allowed=mask)), tuple(reference.topk(x, bank, k, metric, mask)))
    assert_same(tuple(vecbank.quantize(x, bank, metric)), tuple(reference.quantize(x, bank, metric)))


@SETTINGS
@given(st.sampled_from(KINDS), sizes, metrics, dtypes, seeds)
def test_topk_prefix_and_nearest(kind, size, metric, dtype, seed) -> None:
    """The first j of topk(k) are topk(j); nearest is topk(1); topk(M) names every valid row once."""
    x, bank = draw(kind, size, metric, dtype, seed)
    full = vecbank.topk(x, bank, size[1], metric)
    for k in {1, size[1] // 2, size[1] - 1} - {0}:
        part = vecbank.topk(x, bank, k, metric)
        assert_same(tuple(part), (full.values[:, :k], full.indices[:, :k]))
    near = vecbank.nearest(x, bank, metric)
    assert_same(tuple(near), (full.values[:, 0], full.indices[:, 0]))
    assert torch.equal(vecbank.quantize(x, bank, metric).codes, near.indices)
    for row in full.indices.tolist():
        found = [i for i in row if i >= 0]
        assert len(set(found)) == len(found)


@SETTINGS
@given(st.sampled_from(KINDS), sizes, metrics, seeds)
def test_values_are_sorted(kind, size, metric, seed) -> None:
    x, bank = draw(kind, size, metric, torch.float32, seed)
    values = vecbank.topk(x, bank, size[1], metric).values
    steps = values[:, 1:] - values[:, :-1] if metric in METRICS[2:] else values[:, :-1] - values[:, 1:]
    assert not (steps < 0).any()


@SETTINGS
@given(st.sampled_from(FINITE), sizes, metrics, seeds)
def test_permutation_of_queries(kind, size, metric, seed) -> None:
    x, bank = draw(kind, size, metric, torch.float32, seed)
    order = torch.randperm(size[0], generator=torch.Generator().manual_seed(seed))
    whole, moved = vecbank.topk(x, bank, 1, metric), vecbank.topk(x[order], bank, 1, metric)
    assert_same(tuple(moved), tuple(t[order] for t in whole))


@SETTINGS
@given(st.sampled_from(["gauss", "ties", "ints", "clustered", "offset"]), sizes, metrics, seeds)
def test_permutation_of_rows(kind, size, metric, seed) -> None:
    """Values do not move at all; among equal scores the lower index wins in either order."""
    x, bank = draw(kind, size, metric, torch.float32, seed)
    order = torch.randperm(size[1], generator=torch.Generator().manual_seed(seed))
    k = max(1, size[1] // 3)
    assert same(vecbank.topk(x, bank, k, metric).values, vecbank.topk(x, bank[order], k, metric).values)


@SETTINGS
@given(sizes, seeds, st.integers(-8, 8), st.integers(-8, 8))
def test_cosine_does_not_see_scale(size, seed, a, b) -> None:
    """Powers of two leave every rounding as it was: the same bits."""
    x, bank = draw("gauss", size, "cosine", torch.float32, seed)
    k = max(1, size[1] // 2)
    want = vecbank.topk(x, bank, k, "cosine")
    assert_same(tuple(vecbank.topk(x * 2.0**a, bank * 2.0**b, k, "cosine")), tuple(want))
    torch.testing.assert_close(vecbank.project(x * 2.0**a, bank * 3.7, "cosine"), vecbank.project(x, bank, "cosine"))


@SETTINGS
@given(sizes, seeds, st.sampled_from(["dot", "l2", "sqeuclidean", "l1"]), st.integers(-30, 30))
def test_powers_of_two_scale_the_values(size, seed, metric, a) -> None:
    x, bank = draw("gauss", size, metric, torch.float32, seed)
    want, got = vecbank.topk(x, bank, 1, metric), vecbank.topk(x * 2.0**a, bank * 2.0**a, 1, metric)
    assert torch.equal(got.indices, want.indices)
    assert torch.equal(got.values, want.values * 2.0 ** (a if metric in ("l2", "l1") else 2 * a))


@SETTINGS
@given(sizes, seeds, st.booleans())
def test_lookup_and_segment_sum_are_adjoint(size, seed, weighted) -> None:
    """<lookup(codes, bank), g> = <bank, segment_sum(g, codes)>, to rounding."""
    n, m, d = size
    generator = torch.Generator().manual_seed(seed)
    bank, g = (torch.randn(s, d, generator=generator, dtype=torch.float64) for s in (m, n))
    codes = torch.randint(-1, m, (n,), generator=generator)
    weights = torch.randn(n, generator=generator, dtype=torch.float64) if weighted else None
    left = (vecbank.lookup(codes, bank, weights) * g).sum()
    right = (bank * vecbank.segment_sum(g, codes, m, weights)).sum()
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


@SETTINGS
@given(sizes, seeds, dtypes, st.booleans())
def test_segment_sum_equals_the_reference(size, seed, dtype, weighted) -> None:
    n, m, d = 10 * size[0], size[1], size[2]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator).to(dtype)
    codes = torch.randint(-1, m, (n,), generator=generator)
    weights = torch.randn(n, generator=generator).to(dtype) if weighted else None
    assert_same(vecbank.segment_sum(x, codes, m, weights), reference.segment_sum(x, codes, m, weights))


@SETTINGS
@given(sizes, seeds, st.sampled_from(["l2", "sqeuclidean", "l1", "cosine"]))
def test_a_row_is_its_own_nearest(size, seed, metric) -> None:
    _, bank = draw("gauss", size, metric, torch.float32, seed)
    near = vecbank.nearest(bank, bank, metric)
    if metric == "cosine":  # parallel rows (always, at d = 1) tie
        torch.testing.assert_close(near.values, torch.ones(size[1]))
    else:
        assert torch.equal(near.indices, torch.arange(size[1])) and not near.values.any()


@SETTINGS
@given(sizes, metrics, seeds)
def test_masking_out_the_winner_promotes_the_next(size, metric, seed) -> None:
    x, bank = draw("gauss", (size[0], max(2, size[1]), size[2]), metric, torch.float32, seed)
    two = vecbank.topk(x, bank, 2, metric)
    mask = torch.ones(size[0], len(bank), dtype=torch.bool).scatter(1, two.indices[:, :1], False)
    assert_same(tuple(vecbank.topk(x, bank, 1, metric, allowed=mask)), (two.values[:, 1:], two.indices[:, 1:]))


@pytest.mark.parametrize("metric", METRICS)
def test_splitting_the_bank_and_merging(metric: str) -> None:
    """Top-k of a whole is the top-k of the top-k of its parts."""
    generator = torch.Generator().manual_seed(4)
    x, bank = fill("gauss", 9, 500, 13, metric, torch.float64, torch.float64, generator)
    whole = vecbank.topk(x, bank, 12, metric)
    parts = [vecbank.topk(x, bank[i : i + 100], 12, metric) for i in range(0, 500, 100)]
    values = torch.cat([p.values for p in parts], 1)
    indices = torch.cat([p.indices + 100 * i for i, p in enumerate(parts)], 1)
    best = values.topk(12, largest=metric in METRICS[:2]).indices
    assert_same(tuple(whole), (values.gather(1, best), indices.gather(1, best)))
