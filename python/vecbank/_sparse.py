"""What `sparse` is made of: the gradients of chosen pairs, and the ways of choosing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .bank import Bank
from .functional import project, topk

_ops = torch.ops.vecbank
_BLOCK_BYTES = 16 << 20  # of dense latent values at a time, where they are needed at all

Score: TypeAlias = Tensor | Callable[[Tensor, slice], Tensor | tuple[Tensor, Tensor]]


# ---- Gradients of chosen pairs -----------------------------------------------------------------------------


class Pairs(torch.autograd.Function):
    """``values[i, t] = x_i . weight_c + bias_c`` for ``c = indices[i, t]``, differentiable; -1 is left
    out.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, values: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight, indices)
        if values is not None:
            return values.view_as(values)
        found: Tensor = _ops.lookup_dot(x.to(weight.dtype), indices, weight)
        if bias is not None:
            found = found + _ops.lookup(indices.unsqueeze(-1), bias.unsqueeze(1), None, 1).squeeze(-1)
        wanted = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return found if found.dtype == wanted else found.to(wanted)  # as in nn._vq_ops: no `.to` that changes nothing

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, indices = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        rows, grad = weight.shape[0], grad.to(weight.dtype)
        grad_x = _ops.lookup(indices, weight, grad, 1).to(x.dtype) if need_x else None
        grad_weight = _ops.segment_sum(x.to(weight.dtype), indices, rows, grad) if need_weight else None
        grad_bias = None
        if need_bias:
            grad_bias = _ops.segment_sum(grad.reshape(-1, 1), indices.reshape(-1), rows, None).squeeze(1)
        return grad_x, grad_weight, grad_bias, None, None


class Jump(torch.autograd.Function):
    """``(z 1[z > theta], 1[z > theta])``; for theta the step counts as a ramp as wide as the bandwidth."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, theta)
        ctx.bandwidth = bandwidth
        gate = (z > theta).to(z.dtype)
        return z * gate, gate

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_gate: Tensor) -> tuple[Any, ...]:
        z, theta = ctx.saved_tensors
        grad_theta = None
        if ctx.needs_input_grad[1] and ctx.bandwidth > 0:
            near = ((z - theta).abs() < ctx.bandwidth / 2).to(z.dtype) / ctx.bandwidth
            grad_theta = -near * (theta * grad + grad_gate)
        return grad * (z > theta).to(z.dtype), grad_theta, None


# ---- Choosing, none of it differentiable -------------------------------------------------------------------


def largest(
    x: Tensor, weight: Tensor | Bank, bias: Tensor | None, k: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k largest of relu(x W^T + b) per row of x (n, d), best first: 0 and -1 where fewer are positive."""
    values, indices = topk(x, weight, k, "dot", mask, bias=bias)
    off = ~(values > 0)
    return values.masked_fill(off, 0), indices.masked_fill(off, -1)


def _dtype(x: Tensor) -> torch.dtype:
    """Of a latent's value."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """x W^T + b, (rows, K) at a time, in float32 (float64 for float64)."""
    dtype = _dtype(x)
    step = max(1, _BLOCK_BYTES // max(1, weight.shape[0] * dtype.itemsize))
    for start in range(0, x.shape[0], step):
        rows = slice(start, min(start + step, x.shape[0]))
        z = project(x[rows], weight, "dot", out_dtype=dtype)
        yield rows, z if bias is None else z.add_(bias)


def best(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` of each row, with ties to the lower index."""
    values, indices = score.topk(k)
    last = values[:, -1:]
    # rows that hold more of the last value than were taken: which of them were taken is torch's choice
    unclear = ((score == last).sum(1) > (values == last).sum(1)) & (last.squeeze(1) > -torch.inf)
    if unclear.any():
        indices[unclear] = score[unclear].argsort(dim=1, descending=True, stable=True)[:, :k]
    indices = indices.sort(1).values
    values, order = score.gather(1, indices).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


def scored(z: Tensor, score: Score, rows: slice, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Score and value of each latent of a block; one that does not fire, or is masked out, cannot be
    chosen.
    """
    found, value = score(z, rows) if callable(score) else z * score, z
    if isinstance(found, tuple):
        found, value = found
    if found.shape != z.shape or value.shape != z.shape:
        raise ValueError(f"score must return {tuple(z.shape)}, got {tuple(found.shape)}, {tuple(value.shape)}")
    off = ~(value > 0)
    return found.masked_fill(off if mask is None else off | ~mask, -torch.inf), value


def best_by_score(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, score: Score, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The k latents of each row with the best score, and their values."""
    values = x.new_zeros((x.shape[0], k), dtype=_dtype(x))
    indices = x.new_zeros((x.shape[0], k), dtype=torch.int64)
    for rows, z in blocks(x, weight, bias):
        scores, value = scored(z, score, rows, mask)
        found, chosen = best(scores, k)
        off = found == -torch.inf
        values[rows] = value.gather(1, chosen).masked_fill_(off, 0)
        indices[rows] = chosen.masked_fill_(off, -1)
    return values, indices


def above(x: Tensor, weight: Tensor, bias: Tensor | None, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Values over the floor of their latent, and their ascending indices: one padded list per row."""
    rows, latents, values = [], [], []
    for block, z in blocks(x, weight, bias):
        row, latent = (z > floor).nonzero(as_tuple=True)
        rows.append(row + block.start)
        latents.append(latent)
        values.append(z[row, latent])
    n = x.shape[0]
    row = torch.cat(rows) if rows else x.new_empty(0, dtype=torch.int64)
    counts = torch.bincount(row, minlength=n)
    width = max(1, int(counts.max())) if n else 1
    place = torch.arange(row.numel(), device=x.device) - (counts.cumsum(0) - counts)[row]
    listed, indices = x.new_zeros((n, width), dtype=_dtype(x)), row.new_full((n, width), -1)
    if rows:
        listed[row, place], indices[row, place] = torch.cat(values), torch.cat(latents)
    return listed, indices
