"""Searches of packed bits put together from torch's own ops, a block of queries and rows at a time: for devices without
a kernel, and for pairs that are listed.

The whole numbers that planes stand for have the dot product T - 2 S, where S is the distance and T the largest one. So
a matrix product counts the bits, exactly: its terms and sums are whole numbers that the dtype holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ._ops.bits import NO_DISTANCE, largest_distance
from ._ops.blocks import BLOCK_BYTES
from ._ops.sets import Lowered
from ._signs import weighted_signs

_QUERIES = 1024  # of a block


class Bits(NamedTuple):
    """Queries x (..., x_planes * W) and bank rows (M, bank_planes * W), checked."""

    x: Tensor
    words: Tensor
    bits: int
    x_planes: int
    bank_planes: int
    allowed: Lowered | None = None

    @property
    def largest(self) -> int:
        return largest_distance(self.bits, self.x_planes, self.bank_planes)

    def sets(self) -> tuple[list[Tensor], list[int]]:
        return ([], []) if self.allowed is None else (self.allowed.sets, self.allowed.program)

    def sizes(self) -> tuple[int, int, int]:
        return self.bits, self.x_planes, self.bank_planes


class _Block(NamedTuple):
    first: int  # query
    last: int
    columns: slice
    distances: Tensor  # (last - first, columns) int32
    may: Tensor | None  # bool: these pairs count


def _blocks(b: Bits) -> Iterator[_Block]:
    """All rows for some queries, then for the next ones."""
    exact = b.largest < 2**24 and max(b.x_planes, b.bank_planes) <= 10  # TF32 too holds the factors
    dtype = torch.float32 if exact else torch.float64
    lead, rows = b.x.shape[:-1], b.words.shape[0]
    n = lead.numel()
    x = b.x.reshape(n, b.x.shape[-1])
    some = min(max(n, 1), _QUERIES)
    step = max(64, min(BLOCK_BYTES // (8 * some), BLOCK_BYTES // (4 * b.bits)))
    for first in range(0, n, some):
        last = min(n, first + some)
        queries = weighted_signs(x[first:last], b.bits, b.x_planes, dtype)
        for start in range(0, rows, step):
            end = min(rows, start + step)
            products = queries @ weighted_signs(b.words[start:end], b.bits, b.bank_planes, dtype).T
            distances = ((b.largest - products) * 0.5).to(torch.int32)
            may = None
            if b.allowed is not None:
                columns = torch.arange(start, end, device=b.x.device).unsqueeze(0)
                may = b.allowed.holds(first, last, lead, b.words, columns)
            yield _Block(first, last, slice(start, end), distances, may)


def scores(b: Bits) -> Tensor:
    out = torch.empty(b.x.shape[:-1].numel(), b.words.shape[0], dtype=torch.int32, device=b.x.device)
    for block in _blocks(b):
        out[block.first : block.last, block.columns] = block.distances
    return out.reshape(*b.x.shape[:-1], b.words.shape[0])


def topk(b: Bits, k: int) -> tuple[Tensor, Tensor]:
    """Keys of 64 bits, the distance before the row's number, have no ties."""
    lead, nothing = b.x.shape[:-1], torch.iinfo(torch.int64).max
    best = torch.full((lead.numel(), k), nothing, dtype=torch.int64, device=b.x.device)
    for block in _blocks(b):
        columns = torch.arange(block.columns.start, block.columns.stop, device=b.x.device)
        keys = (block.distances.long() << 32) | columns
        if block.may is not None:
            keys = torch.where(block.may, keys, nothing)
        rows = slice(block.first, block.last)
        best[rows] = torch.cat([best[rows], keys], -1).topk(k, dim=-1, largest=False, sorted=True).values
    missing = best == nothing
    values = torch.where(missing, NO_DISTANCE, best >> 32).to(torch.int32)
    indices = torch.where(missing, -1, best & 0xFFFFFFFF)
    return values.reshape(*lead, k), indices.reshape(*lead, k)


def _hits(block: _Block, radii: Tensor) -> Tensor:
    within = block.distances <= radii[block.first : block.last].unsqueeze(-1)
    return within if block.may is None else within & block.may


def radius(b: Bits, radii: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets, indices and values, best first in each row; radii (N,) int64."""
    found = [radii.new_zeros(3, 0)]
    for block in _blocks(b):
        query, column = _hits(block, radii).nonzero(as_tuple=True)
        rows = column + block.columns.start
        found.append(torch.stack([query + block.first, rows, block.distances[query, column].long()]))
    query, rows, distances = torch.cat(found, 1)
    order = ((distances << 32) | rows).argsort()
    order = order[query[order].argsort(stable=True)]
    offsets = radii.new_zeros(radii.shape[0] + 1)
    torch.cumsum(torch.bincount(query, minlength=radii.shape[0]), 0, out=offsets[1:])
    return offsets, rows[order], distances[order].to(torch.int32)


def radius_count(b: Bits, radii: Tensor) -> Tensor:
    counts = torch.zeros_like(radii)
    for block in _blocks(b):
        counts[block.first : block.last] += _hits(block, radii).sum(-1)
    return counts


def pairs(b: Bits, indices: Tensor) -> Tensor:
    """Distances of listed rows (..., k) int64; NO_DISTANCE for -1."""
    n, k = b.x.shape[:-1].numel(), indices.shape[-1]
    x, listed = b.x.reshape(n, b.x.shape[-1]), indices.reshape(n, k)
    out = torch.empty(n, k, dtype=torch.int32, device=b.x.device)
    step = max(1, BLOCK_BYTES // max(1, 4 * k * b.words.shape[1]))
    for start in range(0, n if b.words.shape[0] else 0, step):
        rows = slice(start, start + step)
        out[rows] = pair_distances(x[rows], b.words[listed[rows].clamp_min(0)], *b.sizes())
    return torch.where(indices < 0, NO_DISTANCE, out.reshape(indices.shape))


def pair_distances(x: Tensor, rows: Tensor, bits: int, x_planes: int, bank_planes: int) -> Tensor:
    """Of x (n, x_planes * W) and rows (n, k, bank_planes * W): (n, k) int32, by the bits of the words."""
    size = (bits + 7) // 8
    mask = torch.full((size,), 255, dtype=torch.uint8, device=x.device)
    mask[-1] = 255 >> (8 * size - bits)
    total = torch.zeros(rows.shape[:-1], dtype=torch.int64, device=x.device)
    for u in range(x_planes):
        for v in range(bank_planes):
            differ = (x[:, None, u * size : (u + 1) * size] ^ rows[..., v * size : (v + 1) * size]) & mask
            total += popcount(differ).sum(-1) << (x_planes - 1 - u + bank_planes - 1 - v)
    return total.to(torch.int32)


def popcount(words: Tensor) -> Tensor:
    """How many bits of each byte are set, uint8."""
    pairs_of_bits = words - ((words >> 1) & 0x55)
    nibbles = (pairs_of_bits & 0x33) + ((pairs_of_bits >> 2) & 0x33)
    return (nibbles + (nibbles >> 4)) & 0x0F
