"""Float queries among packed bits: rows are decoded a block at a time, and searched as vectors are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks, _select
from ._bits_bank import PackedRows, bank_of
from ._ops import METRICS, ops
from ._ops.blocks import BLOCK_BYTES
from ._ops.fakes import value_dtype
from ._ops.sets import Lowered
from ._select import Search
from ._signs import weighted_signs
from .allowed import Allowed, lowered
from .results import TopK

_DOT = METRICS["dot"]


class Coded(NamedTuple):
    """Float queries, and the packed rows that stand for vectors."""

    x: Tensor
    words: Tensor
    bits: int
    planes: int
    scale: Tensor | float | None

    def decoded(self, words: Tensor) -> Tensor:
        """(..., bits): float32, or float64 for float64 queries."""
        values = weighted_signs(words, self.bits, self.planes, value_dtype(self.x)) * 0.5 ** (self.planes - 1)
        return values if self.scale is None else values * self.scale

    def blocks(self, row_bytes: int = 0) -> Iterator[tuple[int, Tensor]]:
        """(first row, decoded rows). row_bytes: what a row takes beside its values."""
        step = max(64, BLOCK_BYTES // max(1, 16 * self.bits + row_bytes))
        for first in range(0, self.words.shape[0], step):
            yield first, self.decoded(self.words[first : first + step])


def resolve(
    x: Tensor, bank: Tensor | PackedRows, bits: int | None, bank_planes: int, scale: float | Tensor | None
) -> Coded:
    if isinstance(x, Tensor) and x.dtype == torch.uint8:
        raise TypeError("x must be floats, got packed bits (uint8): topk, nearest and scores take those")
    _checks.floating("x", x)
    if x.dim() == 0:
        raise ValueError("x must have shape (..., bits), got a scalar")
    asked = x.shape[-1] if bits is None and not isinstance(bank, PackedRows) else bits
    if bits is None and isinstance(bank, Tensor) and bank.dtype == torch.uint8 and bank.dim() == 2 and bank_planes > 0:
        size = bank.shape[-1] // bank_planes
        if size and not 8 * (size - 1) < x.shape[-1] <= 8 * size:
            raise ValueError(
                f"x must have {8 * size - 7} to {8 * size} values for planes of {size} bytes (bank_planes = "
                f"{bank_planes}), got x {tuple(x.shape)} and bank {tuple(bank.shape)}"
            )
    words, bits, planes = bank_of(bank, asked, bank_planes)
    if x.shape[-1] != bits:
        raise ValueError(f"x must have shape (..., {bits}) for codes of {bits} bits, got {tuple(x.shape)}")
    if x.device != words.device:
        raise ValueError(f"x and bank must be on one device, got x on {x.device} and bank on {words.device}")
    if scale is not None:
        _checks.scale(scale, torch.Size([bits]))
        if isinstance(scale, Tensor):
            scale = scale.detach().to(x.device, value_dtype(x))
    return Coded(x, words, bits, planes, scale)


def topk(c: Coded, k: int, allowed: Allowed | Tensor | None) -> TopK:
    sets = lowered(allowed, c.x, c.words)
    with torch.no_grad():
        values, indices = _search(c, k, sets)
    if not (torch.is_grad_enabled() and c.x.requires_grad):
        return TopK(values, indices)
    # The same values once more, of the rows that were found: autograd follows these.
    chosen = c.decoded(c.words[indices.clamp_min(0)]) if len(c.words) else values.new_zeros(*indices.shape, c.bits)
    again = (c.x.unsqueeze(-2).to(chosen.dtype) * chosen).sum(-1)
    return TopK(torch.where(indices < 0, values, values + (again - again.detach())), indices)


def _search(c: Coded, k: int, sets: Lowered | None) -> tuple[Tensor, Tensor]:
    lead = c.x.shape[:-1]
    n, x = lead.numel(), c.x.detach()
    keys = torch.full((*lead, k), -torch.inf, dtype=torch.float64, device=x.device)
    indices = torch.full((*lead, k), -1, dtype=torch.int64, device=x.device)
    for first, rows in c.blocks(0 if sets is None else 4 * n):
        columns = torch.arange(first, first + rows.shape[0], device=x.device).unsqueeze(0)
        may = None if sets is None else sets.holds(0, n, lead, c.words, columns).reshape(*lead, rows.shape[0])
        found, own = _select.keys(Search(x, rows, None, _DOT, may), min(k, rows.shape[0]))
        keys = torch.cat([keys, found], -1)
        indices = torch.cat([indices, torch.where(own < 0, -1, own + first)], -1)
        keys, indices = _best(keys, indices, k)
    return _select.merge(keys, indices, k, _DOT, wide=x.dtype == torch.float64)


def _best(keys: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best k by key and then by index, in float64; the values of dot products are their keys."""
    return _select.merge(keys, indices, k, _DOT, wide=True)


def scores(c: Coded) -> Tensor:
    parts = [ops.project(c.x, rows, None, _DOT, c.x.dtype) for _, rows in c.blocks()]
    if not parts:
        return c.x.new_empty(*c.x.shape[:-1], 0)
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]
