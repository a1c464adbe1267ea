"""Rows of integers of a few bits, with a scale for each row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .._numpy import entry_point
from ..codes import pack_bits, straight_through, unpack_bits
from ..functional import lookup
from ._store import check_packed, check_store


def _table(name: str, t: Tensor) -> None:
    """`t` is a table (V, d) with columns."""
    _checks.shaped(name, t, ("V", "d"))
    if t.shape[1] == 0:
        raise ValueError(f"{name} must have at least one column, got {tuple(t.shape)}")


class IntegerRows(NamedTuple):
    """Rows as integers, which stand for `scale[id] * (code - 2^(bits - 1))`: `quantize_rows` makes them.

    Example:
        >>> import torch, vecbank
        >>> rows = vecbank.embedding.quantize_rows(torch.randn(10, 6), bits=4)
        >>> rows.packed.shape, rows.scale.shape
        (torch.Size([10, 3]), torch.Size([10]))
    """

    packed: Tensor  # (V, ceil(d bits / 8)) uint8
    scale: Tensor  # (V,) float


def _check_bits(bits: int) -> int:
    bits = _checks.integer("bits", bits)
    if not 2 <= bits <= 16:
        raise ValueError(f"bits must be an int between 2 and 16, got {bits}")
    return 1 << (bits - 1)


@entry_point
def row_scale(table: Tensor, bits: int, *, steps: int = 8) -> Tensor:
    """The scale of each row with (nearly) the least squared error.

    It begins with the largest value of a row and alternates: codes for a scale are rounded quotients, and the best
    scale for codes q is `x.q / q.q`.

    Args:
        table: (V, d).
        bits: the number of bits of one integer, 2 to 16.
        steps: how often it alternates.

    Returns:
        (V,) in the table's dtype.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> vecbank.embedding.row_scale(torch.tensor([[-3.5, 1.0], [7.0, 0.0]]), bits=4).tolist()
        [0.5, 1.0]
    """
    half, steps = _check_bits(bits), _checks.at_least(0, "steps", steps)
    _table("table", table)
    scale = table.detach().abs().amax(-1).clamp_min(1e-12) / (half - 1)
    best, least = scale, torch.full_like(scale, torch.inf)
    for _ in range(steps + 1):
        q = (table / scale.unsqueeze(-1)).round().clamp(-half, half - 1)
        wrong = (table - q * scale.unsqueeze(-1)).square().sum(-1)
        best, least = torch.where(wrong < least, scale, best), torch.minimum(wrong, least)
        scale = ((table * q).sum(-1) / q.square().sum(-1).clamp_min(1e-12)).clamp_min(1e-12)
    return best


@entry_point
def quantize_rows(table: Tensor, bits: int, scale: Tensor | None = None) -> IntegerRows:
    """A table as packed integers and one scale per row.

    Args:
        table: (V, d).
        bits: the number of bits of one integer, 2 to 16.
        scale: (V,), `row_scale`'s by default. A trained scale may be negative: it stands for the same values, with the
            signs of the integers turned.

    Returns:
        IntegerRows(packed, scale): packed (V, ceil(d * bits / 8)) uint8, scale (V,).

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> rows = vecbank.embedding.quantize_rows(torch.tensor([[-3.5, 1.0], [7.0, 0.0]]), bits=4)
        >>> vecbank.embedding.integer_lookup(torch.tensor([1, 0]), rows, dim=2, bits=4).tolist()
        [[7.0, 0.0], [-3.5, 1.0]]
    """
    _table("table", table)
    half, bits = _check_bits(bits), _checks.integer("bits", bits)
    if scale is None:
        scale = row_scale(table, bits)
    _checks.shaped("scale", scale, (table.shape[0],))
    step = torch.where(scale == 0, 1, scale).detach().unsqueeze(-1)
    q = (table.detach() / step).round().clamp(-half, half - 1)
    return IntegerRows(pack_bits(q.long() + half, bits), scale.detach().clone())


@entry_point
def integer_lookup(ids: Tensor, rows: IntegerRows, dim: int, bits: int) -> Tensor:
    """Rows from packed integers, `scale[id] * q[id]`: only the rows asked for are unpacked.

    Args:
        ids: (...) integers; -1 gives zeros.
        rows: IntegerRows, as `quantize_rows` returns them.
        dim: d of the table.
        bits: the number of bits of one integer.

    Returns:
        (..., dim) in the scale's dtype. Differentiable in the scale.

    Raises:
        IndexError: an id of V or more.
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> rows = vecbank.embedding.quantize_rows(torch.tensor([[-3.5, 1.0], [7.0, 0.0]]), bits=4)
        >>> vecbank.embedding.integer_lookup(torch.tensor([[1], [0]]), rows, dim=2, bits=4).tolist()
        [[[7.0, 0.0]], [[-3.5, 1.0]]]
    """
    check_store(rows, IntegerRows, "scale")
    check_packed("rows.packed", rows.packed)
    _checks.shaped("rows.scale", rows.scale, (rows.packed.shape[0],))
    ids = _checks.rows(ids, rows.packed.shape[0], "ids")
    half = _check_bits(bits)
    q = unpack_bits(rows.packed[ids.clamp_min(0)], dim, bits) - half
    scale = lookup(ids, rows.scale.unsqueeze(1))  # 0 for id -1
    return q.to(scale.dtype) * scale


@entry_point
def fake_integer_lookup(ids: Tensor, table: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The value of `integer_lookup` from a table that still trains, and a scale that trains with it.

    Gradients: straight through to the table where it is in range; to the scale, `q - w / scale` in range and the
    limit beyond it, divided by `sqrt(d * (2^(bits - 1) - 1))`, which gives scale and table steps of like size (learned
    step size quantisation).

    Args:
        ids: (...) integers; -1 gives zeros.
        table: (V, d).
        scale: (V,).
        bits: the number of bits of one integer, 2 to 16.

    Returns:
        (..., d) in the table's dtype.

    Raises:
        IndexError: an id of V or more.
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> table, scale = torch.tensor([[0.9, -0.3]], requires_grad=True), torch.tensor([0.5])
        >>> vecbank.embedding.fake_integer_lookup(torch.tensor([0]), table, scale, bits=4).tolist()
        [[1.0, -0.5]]
    """
    half = _check_bits(bits)
    _table("table", table)
    _checks.shaped("scale", scale, (table.shape[0],))
    ids = _checks.rows(ids, table.shape[0], "ids")
    rows, step = lookup(ids, table), lookup(ids, scale.unsqueeze(1))
    step = step.detach() + (step - step.detach()) * (table.shape[1] * (half - 1)) ** -0.5
    ratio = torch.where(step == 0, 0, rows / torch.where(step == 0, 1, step)).clamp(-half, half - 1)
    return straight_through(ratio, ratio.detach().round()) * step
