"""Backward pass of `project` in plain torch, on blocks of rows so that no N x M or N x d copy is made.

Small problems, and batches of them, are one block each: what they cost is mostly calls of torch, so these are few.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from . import ball
from .blocks import BLOCK_BYTES, add_product, block_rows, blocks, cast, rows_of, sums_dtype
from .distance_gradient import SMALL_BLOCK_BYTES, distance, distance_numbers
from .fakes import check, check_pair, same_device
from .names import BALL, METRICS, POINCARE
from .small_gradient import BLOCK_NUMBERS, in_one_kernel

_NORM_FLOOR = 1e-8


def inverse_norms(rows: Tensor) -> tuple[Tensor, Tensor]:
    """1 / max(|row|, floor), and a factor that is 0 where the floor stands in for the norm (it has no gradient)."""
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return norms.clamp_min(_NORM_FLOOR).reciprocal_(), (norms >= _NORM_FLOOR).to(rows.dtype)


class _Units(NamedTuple):
    """Rows (..., d) at length 1, and what a gradient along them needs."""

    rows: Tensor
    inverse: Tensor
    alive: Tensor | None  # None: no norm is below the floor, as far as it costs nothing to know

    @classmethod
    def of(cls, rows: Tensor) -> _Units:
        norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        inverse = norms.clamp_min(_NORM_FLOOR).reciprocal_()
        all_alive = rows.is_cpu and float(norms.amin()) >= _NORM_FLOOR
        return cls((rows * inverse).contiguous(), inverse, None if all_alive else (norms >= _NORM_FLOOR).to(rows.dtype))

    def across(self, along: Tensor) -> Tensor:
        """The gradient to the rows, given that to their units (which may be overwritten)."""
        if self.alive is None:  # weight_norm's own gradient is this sum in one pass
            d, one = along.shape[-1], torch.ones_like(self.inverse).view(-1, 1)
            flat, inverse = self.rows.view(-1, d), self.inverse.reshape(-1, 1)
            return _weight_norm_backward(along.reshape(-1, d), flat, inverse, one, 0)[0].view(along.shape)
        return along.sub_(self.rows * ((along * self.rows).sum(-1, keepdim=True) * self.alive)).mul_(self.inverse)


_weight_norm_backward = torch.ops.aten._weight_norm_interface_backward.default


@functools.cache
def _bfloat16_products() -> bool:
    """Whether the processor has products of bfloat16 that sum in float32, quicker than those of float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _similarity(
    grad: Tensor, x: Tensor, bank: Tensor, cosine: bool, need_x: bool, need_bank: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of dot products, or of cosines: of one problem in blocks of rows, or of a batch of small ones."""
    work = sums_dtype(bank)
    if not cosine and grad.dtype == x.dtype == bank.dtype == torch.bfloat16 and x.is_cpu and _bfloat16_products():
        return _similarity_block(grad, x, bank, False, need_x, need_bank)
    bank = cast(bank, work)
    units = _Units.of(bank) if cosine else None
    rows_of_bank = bank if units is None else units.rows
    n, width = x.shape[-2], x.shape[-1] + (grad.shape[-1] if grad.dtype != work else 0)
    step = n if x.dim() == 3 else block_rows(BLOCK_BYTES, width * work.itemsize)
    if n <= step:
        grad_x, grad_bank = _similarity_block(grad, x, rows_of_bank, cosine, need_x, need_bank)
    else:
        grad_x = torch.empty_like(x, dtype=work) if need_x else None
        grad_bank = torch.zeros_like(bank) if need_bank else None
        for rows in blocks(n, step):
            along, _ = _similarity_block(grad[rows], x[rows], rows_of_bank, cosine, need_x, False, grad_bank)
            if grad_x is not None and along is not None:
                grad_x[rows] = along
    return grad_x, grad_bank if grad_bank is None or units is None else units.across(grad_bank)


def _similarity_block(
    grad: Tensor,
    x: Tensor,
    bank: Tensor,
    cosine: bool,
    need_x: bool,
    need_bank: bool,
    total: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """What goes to x, and to the rows of bank (units for cosine); the latter is added to the total, if there is one."""
    product = torch.mm if x.dim() == 2 else torch.bmm
    grad, x = cast(grad, bank.dtype), cast(x, bank.dtype)
    units = _Units.of(x) if cosine else None
    rows = x if units is None else units.rows
    along = product(grad, bank) if need_x else None
    if along is not None and units is not None:
        along = units.across(along)
    if total is not None:
        add_product(total, grad.T, rows)
    return along, product(grad.mT, rows) if need_bank else None


_ABSOLUTE_TERMS = 1 << 26  # differences to a block, a tenth of a second


def _absolute(
    grad: Tensor, x: Tensor, bank: Tensor, need_x: bool, need_bank: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of l1: sums of sign(x - b), which is 0 where they are equal."""
    work = sums_dtype(bank)
    x, bank = x.to(work).contiguous(), bank.to(work).contiguous()
    if x.is_cpu and work == torch.float32 and x.dim() == 2:
        return _absolute_blocks(grad, x, bank, need_x, need_bank)

    def side(grad: Tensor, rows: Tensor, others: Tensor) -> Tensor:
        step = rows.shape[-2] if rows.dim() == 3 else block_rows(_ABSOLUTE_TERMS, others.numel(), least=1)
        pieces = []
        for block in blocks(rows.shape[-2], step):  # Ctrl-C is seen between two
            g = grad[..., block, :].to(work).contiguous()
            # reads no distances
            pieces.append(torch.ops.aten._cdist_backward.default(g, rows[..., block, :], others, 1.0, g))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    return side(grad, x, bank) if need_x else None, side(grad.mT, bank, x) if need_bank else None


def _absolute_blocks(
    grad: Tensor, x: Tensor, bank: Tensor, need_x: bool, need_bank: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Of one problem, by the kernel for small ones."""
    m, d = bank.shape
    grad_x = torch.empty_like(x) if need_x else None
    grad_bank = torch.zeros_like(bank) if need_bank else None
    for rows in blocks(x.shape[0], block_rows(BLOCK_NUMBERS - m * d, m + d)):
        of_x, of_bank = _small(grad[rows], x[rows], bank, METRICS["l1"], need_x, need_bank)
        if grad_x is not None:
            grad_x[rows] = of_x
        if grad_bank is not None:
            grad_bank.add_(of_bank)
    return grad_x, grad_bank


def check_project_backward(
    grad: Tensor,
    x: Tensor,
    bank: Tensor,
    metric: int,
    row_least: Tensor | None = None,
) -> None:
    """What the kernel and its fake refuse."""
    check_pair(x, bank, metric)
    same_device(x, grad, row_least)
    check(
        row_least is None or row_least.shape == x.shape[:-1],
        f"row_least must have shape {tuple(x.shape[:-1])}, got {None if row_least is None else tuple(row_least.shape)}",
    )
    shape = (*x.shape[:-1], bank.shape[-2])
    check(tuple(grad.shape) == shape, f"grad must have shape {shape}, got {tuple(grad.shape)}")


@torch.library.impl("vecbank::project_backward", "CompositeExplicitAutograd")
def project_backward(
    grad: Tensor,
    x: Tensor,
    bank: Tensor,
    metric: int,
    need_x: bool = True,
    need_bank: bool = True,
    row_least: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of `project` for x (..., d) and bank (M, d) or (B, M, d); empty where not needed. For
    sqeuclidean it is quicker with the least of each row of the result.
    """
    check_project_backward(grad, x, bank, metric, row_least)
    return gradients(grad, x, bank, metric, need_x, need_bank, row_least)


def gradients(
    grad: Tensor, x: Tensor, bank: Tensor, metric: int, need_x: bool, need_bank: bool, row_least: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What `project_backward` returns for arguments that have been checked."""
    if is_small(grad, x, bank, metric):
        return _small(grad, x, bank, metric, need_x, need_bank)
    device = x.device.type
    if torch.is_autocast_enabled(device):  # its products would be of 16 bits
        with torch.autocast(device, enabled=False):
            return gradients(grad, x, bank, metric, need_x, need_bank, row_least)
    if grad.numel() == 0 or x.numel() == 0:
        return x.new_zeros(x.shape if need_x else 0), bank.new_zeros(bank.shape if need_bank else 0)
    m, d = bank.shape[-2:]
    found: tuple[Tensor | None, Tensor | None]
    if bank.dim() == 3 and bank.shape[0] > 1:
        found = _of_batch(grad, x, bank, metric, need_x, need_bank, row_least)
    else:
        least = None if row_least is None else row_least.reshape(-1)
        found = _of(rows_of(grad, m), rows_of(x, d), rows_of(bank, d), metric, need_x, need_bank, least)
    grad_x, grad_bank = found
    return (
        x.new_empty(0) if grad_x is None else cast(grad_x, x.dtype).view(x.shape),
        bank.new_empty(0) if grad_bank is None else cast(grad_bank, bank.dtype).view(bank.shape),
    )


_small = torch.ops.vecbank.project_backward_small.default


def is_small(grad: Tensor, x: Tensor, bank: Tensor, metric: int) -> bool:
    """Whether there is one kernel, which is quicker than what follows below."""
    rows, dtype = bank.shape, bank.dtype
    batch = rows[0] if len(rows) == 3 else 1
    if not x.is_cpu or dtype is torch.float64 or metric in BALL or batch * rows[-1] == 0:
        return False
    half = dtype is torch.bfloat16 and metric == METRICS["dot"] and grad.dtype is dtype and _bfloat16_products()
    n = x.numel() // (rows[-1] * batch)
    return in_one_kernel(n, rows[-2], rows[-1], batch, metric, bfloat16=half)


def _of(
    grad: Tensor, x: Tensor, bank: Tensor, metric: int, need_x: bool, need_bank: bool, least: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Of one problem, or of a batch whose blocks are small enough together."""
    if metric in (METRICS["l2"], METRICS["sqeuclidean"]):
        return distance(grad, x, bank, metric == METRICS["l2"], need_x, need_bank, least)
    if metric == METRICS["l1"]:
        return _absolute(grad, x, bank, need_x, need_bank)
    if metric in BALL:
        return ball.gradient(grad, x, bank, arc=metric == POINCARE, need_x=need_x, need_bank=need_bank)
    assert metric in (METRICS["dot"], METRICS["cosine"]), metric  # a new metric needs its own derivative here
    return _similarity(grad, x, bank, metric == METRICS["cosine"], need_x, need_bank)


def _of_batch(
    grad: Tensor, x: Tensor, bank: Tensor, metric: int, need_x: bool, need_bank: bool, least: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """In groups of problems that are small enough together, or one by one."""
    (b, m, d), n, itemsize = bank.shape, x.shape[1], sums_dtype(bank).itemsize
    if metric == METRICS["l1"]:
        step = _ABSOLUTE_TERMS // (n * m * d)
    elif metric in BALL:
        step = 1
    elif metric in (METRICS["l2"], METRICS["sqeuclidean"]):
        step = SMALL_BLOCK_BYTES // (distance_numbers(n, m, d) * itemsize) if x.is_cpu else 1
    else:
        copies = n * m if grad.element_size() < itemsize else 0
        step = BLOCK_BYTES // (((n + m) * d + copies) * itemsize)
    if step >= b and metric not in BALL:
        return _of(grad, x, bank, metric, need_x, need_bank, least)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else None
    grad_bank = torch.empty_like(bank, memory_format=torch.contiguous_format) if need_bank else None
    for at in range(b) if step <= 1 else blocks(b, step):
        part = None if least is None else least[at]
        for out, found in zip(
            (grad_x, grad_bank), _of(grad[at], x[at], bank[at], metric, need_x, need_bank, part), strict=True
        ):
            if out is not None and found is not None:
                out[at] = found
    return grad_x, grad_bank
