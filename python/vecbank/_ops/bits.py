"""`hamming_topk`, `hamming_scores`, `hamming_radius` and `hamming_radius_count`: searches of bits, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from .define import define
from .fakes import check, same_device
from .selection import check_sets, within

MOST_PLANES = 30  # core/bits.h, as all of this
MOST_DISTANCE = 2**31 - 2
NO_DISTANCE = 2**31 - 1  # of a rank that no row fills


def largest_distance(bits: int, x_planes: int, bank_planes: int) -> int:
    """The largest distance there can be."""
    return bits * (2**x_planes - 1) * (2**bank_planes - 1)


def _check_words(x: Tensor, bank: Tensor, bits: int, x_planes: int, bank_planes: int) -> None:
    same_device(x, bank)
    check(bank.dim() == 2, f"bank must be (M, W), got {tuple(bank.shape)}")
    check(x.dim() >= 1, "x must have at least one dimension, got a scalar")
    check(bits >= 1, f"bits must be at least 1, got {bits}")
    for name, t, planes in (("x", x, x_planes), ("bank", bank, bank_planes)):
        check(t.dtype == torch.uint8, f"{name} must be packed bits, uint8, got {t.dtype}")
        check(1 <= planes <= MOST_PLANES, f"planes must lie between 1 and {MOST_PLANES}, got {planes}")
        size = planes * ((bits + 7) // 8)
        check(t.shape[-1] == size, f"{name} {tuple(t.shape)} must have {size} bytes for {planes} planes of {bits} bits")
    check(
        largest_distance(bits, x_planes, bank_planes) <= MOST_DISTANCE,
        f"{bits} bits of {x_planes} and {bank_planes} planes have distances that int32 does not hold",
    )


def _hamming_topk(
    x: Tensor,
    bank: Tensor,
    bits: int,
    x_planes: int,
    bank_planes: int,
    k: int,
    sets: list[Tensor],
    program: list[int],
) -> tuple[Tensor, Tensor]:
    _check_words(x, bank, bits, x_planes, bank_planes)
    check(k >= 1, f"k must be at least 1, got {k}")
    check_sets(x, bank, sets, program)
    shape = (*x.shape[:-1], k)
    return x.new_empty(shape, dtype=torch.int32), x.new_empty(shape, dtype=torch.int64)


def _hamming_scores(x: Tensor, bank: Tensor, bits: int, x_planes: int, bank_planes: int) -> Tensor:
    _check_words(x, bank, bits, x_planes, bank_planes)
    return x.new_empty((*x.shape[:-1], bank.shape[0]), dtype=torch.int32)


def _hamming_radius_count(
    x: Tensor,
    bank: Tensor,
    bits: int,
    x_planes: int,
    bank_planes: int,
    radii: Tensor,
    sets: list[Tensor],
    program: list[int],
) -> Tensor:
    _check_words(x, bank, bits, x_planes, bank_planes)
    return within(x, bank, radii, torch.int64, sets, program)


def _hamming_radius(
    x: Tensor,
    bank: Tensor,
    bits: int,
    x_planes: int,
    bank_planes: int,
    radii: Tensor,
    sets: list[Tensor],
    program: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    counts = _hamming_radius_count(x, bank, bits, x_planes, bank_planes, radii, sets, program)
    hits = torch.library.get_ctx().new_dynamic_size()  # they depend on the data
    offsets = counts.new_empty(counts.shape[0] + 1)
    return offsets, x.new_empty(hits, dtype=torch.int64), x.new_empty(hits, dtype=torch.int32)


define("hamming_topk", fake=_hamming_topk)
define("hamming_scores", fake=_hamming_scores)
define("hamming_radius", fake=_hamming_radius)
define("hamming_radius_count", fake=_hamming_radius_count)
