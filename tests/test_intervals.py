"""Codes of intervals: which one a coordinate lies in, what packing keeps, and bounds that are never too large."""

from __future__ import annotations

import pytest
import torch
from helpers import gauss

from vecbank import codes


@pytest.mark.parametrize("bits", [3, 0.5, [0, 1, 2, 3, 5, 8, 11], [4] * 7], ids=str)
def test_codes_name_the_interval_and_packing_keeps_them(bits: float | list[int]) -> None:
    x = gauss(500, 7) * torch.tensor([0.1, 1.0, 5.0, 0.0, 2.0, 100.0, 1e-3]) + 3
    codec = codes.interval_train(x, bits)
    assert len(codec.bits) == 7 and (list(codec.bits) == bits or sum(codec.bits) == round(7 * float(bits)))  # type: ignore[arg-type]
    found = codec.encode(x)
    for j, width in enumerate(codec.bits):
        assert int(found[:, j].max()) < 1 << width
        edges = codec.edges[j, : (1 << width) - 1]
        assert (edges.diff() >= 0).all() and codec.edges[j, (1 << width) - 1 :].isinf().all()
        naive = (x[:, j].double().unsqueeze(1) >= edges).sum(1)
        assert torch.equal(found[:, j], naive)
    packed = codec.encode(x, packed=True)
    assert packed.dtype == torch.uint8 and packed.shape == (500, codec.bytes_per_vector)
    assert torch.equal(codec.unpack(packed), found)
    assert codec.decode(found).shape == x.shape


def test_more_bits_are_closer_and_wide_dimensions_have_more() -> None:
    x = gauss(2000, 6) * torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
    errors = []
    for bits in (1, 2, 4, 6):
        codec = codes.interval_train(x, bits)
        assert list(codec.bits) == sorted(codec.bits, reverse=True)
        errors.append(float((codec.decode(codec.encode(x)) - x).square().mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.01 * errors[0]
    even = codes.interval_train(x, [2] * 6)
    assert errors[1] < float((even.decode(even.encode(x)) - x).square().mean())


@pytest.mark.parametrize("seed", range(4))
def test_bounds_are_never_above_the_distance(seed: int) -> None:
    """Of vectors that the codec was made of, of others far outside, and of those that lie on an edge."""
    sample = gauss(300, 5, seed=seed)
    codec = codes.interval_train(sample, [0, 1, 3, 4, 6])
    edge = torch.where(codec.edges.isinf(), 0.0, codec.edges)[:, :1].T.float()
    rows = torch.cat([sample, 100 * gauss(50, 5, seed=seed + 9), edge.expand(1, 5), torch.full((1, 5), torch.inf)])
    x = torch.cat([gauss(40, 5, seed=seed + 20), rows[:20], -30 * gauss(10, 5, seed=seed + 30)])
    bounds = codec.lower_bounds(x, codec.encode(rows))
    apart = (x.double().unsqueeze(1) - rows.double()).square().sum(-1)
    assert (bounds <= apart).all() and (bounds >= 0).all()
    assert float(bounds[:40, :300].mean()) > 0.3 * float(apart[:40, :300].mean())
    own = torch.arange(20)
    assert bounds[40 + own, own].eq(0).all()
    table = codec.tables(x)
    summed = sum(table[:, j].gather(1, codec.encode(rows)[:, j].expand(len(x), -1)) for j in range(5))
    torch.testing.assert_close(bounds, summed, rtol=1e-13, atol=0)


def test_what_is_refused() -> None:
    x = gauss(20, 3)
    codec = codes.interval_train(x, 2)
    for call, words in (
        (lambda: codes.interval_train(x[:0], 2), r"x must be \(N, d\) with N and d above 0, got \(0, 3\)"),
        (lambda: codes.interval_train(x * torch.nan, 2), "x must be finite"),
        (lambda: codes.interval_train(x, [1, 2]), "one for each of the 3 dimensions, got 2"),
        (lambda: codes.interval_train(x, 17), "bits must lie between 0 and 16, got 17"),
        (lambda: codes.interval_train(x, [1, 2, 17]), "bits must lie between 0 and 16"),
        (lambda: codec.encode(x[:, :2]), r"x must be \(..., 3\) like what the codec was made of, got \(20, 2\)"),
        (lambda: codec.encode(x * torch.nan), "NaN, which lies in no interval"),
        (lambda: codec.decode(torch.zeros(4, 2, dtype=torch.int64)), r"codes must be \(..., 3\), got \(4, 2\)"),
        (lambda: codec.lower_bounds(x[0], codec.encode(x)), r"x must be \(Q, d\) and codes \(N, d\)"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="got uint8: packed codes are unpacked first"):
        codec.lower_bounds(x, codec.encode(x, packed=True))
    uneven = codes.interval_train(x, [1, 2, 3])
    with pytest.raises(IndexError, match="codes of dimension 0 must lie between 0 and 1"):
        uneven.decode(torch.tensor([[5, 1, 1]]))
    with pytest.raises(IndexError, match="codes must lie between 0 and"):
        codec.decode(torch.full((2, 3), 99))
