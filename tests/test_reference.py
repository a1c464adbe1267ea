"""The reference against plain Python floats: every other test leans on it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import METRICS, WIDTHS, into_ball
from helpers import gauss, same

from vecbank import _reference_roots, reference


def ordered(terms: list[float]) -> float:
    lanes = [0.0] * 8
    for i, term in enumerate(terms):
        lanes[i % 8] += term
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))


def score(x: list[float], b: list[float], metric: str) -> float:
    if metric == "l1":
        return ordered([abs(p - q) for p, q in zip(x, b, strict=True)])
    if metric == "poincare":
        inside = [1 - ordered([p * p for p in v]) for v in (x, b)]
        square = ordered([(p - q) * (p - q) for p, q in zip(x, b, strict=True)])
        return 2 * math.asinh(math.sqrt(square / (inside[0] * inside[1])))
    if metric in ("l2", "sqeuclidean"):
        square = ordered([(p - q) * (p - q) for p, q in zip(x, b, strict=True)])
        return math.sqrt(square) if metric == "l2" else square
    dot = ordered([p * q for p, q in zip(x, b, strict=True)])
    if metric == "dot":
        return dot
    norms = [max(math.sqrt(ordered([p * p for p in v])), 1e-8) for v in (x, b)]
    return dot / (norms[0] * norms[1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", WIDTHS)
def test_order_of_summation(d: int, metric: str) -> None:
    x, bank = gauss(3, d, dtype=torch.float64), gauss(9, d, dtype=torch.float64)
    want = torch.tensor([[score(a, b, metric) for b in bank.tolist()] for a in x.tolist()], dtype=torch.float64)
    assert same(reference.project(x, bank, metric), want)


@pytest.mark.parametrize("d", WIDTHS)
def test_poincare(d: int) -> None:
    """The distance is computed in steps that round alike everywhere, four units from the mathematical one."""
    x, bank = into_ball(gauss(3, d, dtype=torch.float64)), into_ball(gauss(9, d, dtype=torch.float64) * 1e4)
    want = torch.tensor([[score(a, b, "poincare") for b in bank.tolist()] for a in x.tolist()], dtype=torch.float64)
    got = reference.project(x, bank, "poincare")
    assert ((got - want).abs() <= 8 * 2.0**-53 * want).all()
    outside = reference.project(x, bank * 2e4, "poincare")
    assert outside.isnan().all()


@pytest.mark.parametrize("metric", METRICS)
def test_selection(metric: str) -> None:
    x, bank = gauss(4, 5), gauss(30, 5)
    bank[7] = bank[3]
    bank[11, 2] = float("nan")
    mask = torch.rand(4, 30) < 0.5
    scores = reference.project(x, bank, metric, out_dtype=torch.float64)
    sign = -1.0 if metric in reference.SIMILARITIES else 1.0
    top = reference.topk(x, bank, 30, metric, mask)
    for i in range(4):
        row = [(sign * scores[i, j].item(), j) for j in range(30) if mask[i, j] and j != 11]
        order = [j for _, j in sorted(row)]
        assert top.indices[i].tolist() == order + [-1] * (30 - len(order))
        assert top.values[i, : len(order)].tolist() == scores[i, order].float().tolist()
        assert bool((top.values[i, len(order) :] == sign * torch.inf).all())
    near = reference.nearest(x, bank, metric)
    full = reference.topk(x, bank, 1, metric)
    assert same(near.values, full.values[:, 0]) and same(near.indices, full.indices[:, 0])


def test_square_root_is_rounded_to_nearest() -> None:
    values = gauss(5000, dtype=torch.float64).abs()
    want = torch.tensor([math.sqrt(v) for v in values.tolist()], dtype=torch.float64)
    assert torch.equal(_reference_roots._sqrt(values), want)


@pytest.mark.filterwarnings("ignore:overflow")
def test_sixteen_bits_are_reached_in_one_rounding() -> None:
    values = gauss(200_000, dtype=torch.float64) * 10 ** (14 * torch.rand(200_000, dtype=torch.float64) - 9)
    middle = torch.tensor([1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-11 - 2.0**-40, 65519.99999999, 65520.0, 1e300, -1e300])
    values = torch.cat([values, middle.double(), torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0]).double()])
    assert same(reference._round(values, torch.float16), torch.from_numpy(values.numpy().astype(np.float16)))
    exact = torch.tensor([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8 - 2.0**-40, 1 + 2.0**-8], dtype=torch.float64)
    assert reference._round(exact, torch.bfloat16).tolist() == [1 + 2.0**-7, 1.0, 1.0]


@pytest.mark.parametrize("metric", METRICS)
def test_gradient(metric: str) -> None:
    x, bank = gauss(3, 4, dtype=torch.float64), gauss(5, 4, dtype=torch.float64)
    x.requires_grad_(), bank.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: reference.project(a, b, metric), (x, bank))


def test_scatter_in_plain_python() -> None:
    n = 2500  # two blocks of 1024 rows, and a part of one
    x, codes = gauss(n, 3) * 10.0 ** torch.randint(-9, 9, (n, 1)), torch.randint(-1, 6, (n,))
    weights = gauss(n)
    total = [[0.0] * 3 for _ in range(6)]
    for block in range(0, n, 1024):
        part: dict[int, list[float]] = {}
        cut = slice(block, block + 1024)
        for row, code, weight in zip(x[cut].tolist(), codes[cut].tolist(), weights[cut].tolist(), strict=True):
            if code >= 0:
                part[code] = [t + v * weight for t, v in zip(part.get(code, [0.0] * 3), row, strict=True)]
        for code, sums in part.items():
            total[code] = [t + v for t, v in zip(total[code], sums, strict=True)]
    want = torch.tensor(total, dtype=torch.float64).float()
    assert same(reference.segment_sum(x, codes, 6, weights), want)
    assert same(reference.lookup(codes, want)[codes < 0], torch.zeros(int((codes < 0).sum()), 3))
