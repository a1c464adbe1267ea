"""`project` and `exact_scores`: all scores, or those of chosen pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .blocks import BLOCK_BYTES
from .calls import as_if_op, ops
from .define import define
from .distance_gradient import median
from .fakes import FLOATS, check, check_pair, same_device
from .names import METRICS, SIMILARITIES
from .pairs import pair_tangents, pair_terms, units
from .project_gradient import check_project_backward, gradients, is_small
from .tangents import Tangents, flat, split, total, wide

# ---- project ------------------------------------------------------------------------------------------------------


def _project(x: Tensor, bank: Tensor, pack: Tensor | None, metric: int, out_dtype: torch.dtype | None = None) -> Tensor:
    check_pair(x, bank, metric, pack)
    check(out_dtype is None or out_dtype in FLOATS, f"out_dtype must be floating point, got {out_dtype}")
    return x.new_empty((*x.shape[:-1], bank.shape[-2]), dtype=out_dtype or x.dtype)


def _has_a_kernel(x: Tensor, bank: Tensor) -> bool:
    """Whether sqeuclidean's gradient surely has no use for the least of each row."""
    # While a program is traced for any size, the sizes are symbols.
    return all(type(size) is int for size in (*x.shape, *bank.shape)) and is_small(x, x, bank, METRICS["sqeuclidean"])


def _project_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bank, _, ctx.metric, _ = inputs
    ask = ctx.metric == METRICS["sqeuclidean"] and output.numel() > 0 and not _has_a_kernel(x, bank)
    least = output.amin(-1) if ask else None  # numbers of its own, so that the output may change in place
    ctx.save_for_backward(x, bank, least)


def _project_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, bank, least = ctx.saved_tensors
    need_x, need_bank = ctx.needs_input_grad[:2]
    arguments = grad, x, bank, ctx.metric, need_x, need_bank, least
    found = as_if_op(gradients, *arguments)  # of what autograd hands us, which needs no checks
    grad_x, grad_bank = ops.project_backward(*arguments) if found is None else found
    return grad_x if need_x else None, grad_bank if need_bank else None, None, None, None


def _project_tangent(
    tangents: Tangents,
    out: Tensor,
    x: Tensor,
    bank: Tensor,
    pack: Tensor | None,
    metric: int,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    if metric in (METRICS["l2"], METRICS["sqeuclidean"]):
        return _distance_tangent(tangents, out, x, bank, metric)
    if metric not in SIMILARITIES:
        return _difference_tangent(tangents, out, x, bank, metric)
    sums = torch.float64 if bank.dtype == torch.float64 else torch.float32
    x, bank, tx, tb = wide(sums, x, bank, *tangents[:2])
    if metric == METRICS["cosine"]:
        (x, tx), (bank, tb) = units(x, tx), units(bank, tb)
    pairs = [(a, b) for a, b in ((tx, bank), (x, tb)) if a is not None and b is not None]
    return total([ops.project(a, b, None, METRICS["dot"], sums) for a, b in pairs], out)


def _distance_tangent(tangents: Tangents, out: Tensor, x: Tensor, bank: Tensor, metric: int) -> Tensor:
    """(x - b).(x' - b') for all pairs, multiplied out about a point within the bank, in float64: what cancels there
    is far below float32's rounding.
    """
    x, bank, tx, tb = wide(torch.float64, x, bank, *tangents[:2])
    shape = out.shape
    if out.numel() == 0 or bank.shape[-1] == 0:
        return torch.zeros_like(out)
    if bank.dim() == 2:
        x, tx = flat(x, tx)
    some = bank.detach()[..., :: max(1, bank.shape[-2] // 64), :]
    shift = median(some.reshape(-1, some.shape[-1]))  # a few rows far away, or of NaN, do not move it
    x, bank = x - shift, bank - shift
    of_bank = None if tb is None else (bank * tb).sum(-1).unsqueeze(-2)
    step = max(16, BLOCK_BYTES // (8 * bank.shape[-2] * (bank.shape[0] if bank.dim() == 3 else 1)))
    pieces = []
    for a, ta in zip(x.split(step, -2), split(tx, step, -2), strict=False):
        terms = [] if of_bank is None else [of_bank, -(a @ tb.mT)]
        if ta is not None:
            terms += [(a * ta).sum(-1, keepdim=True), -(ta @ bank.mT)]
        along = sum(terms[1:], start=terms[0])
        if metric == METRICS["l2"]:
            score = torch.cdist(a, bank, compute_mode="donot_use_mm_for_euclid_dist")
            same = score == 0  # not so where it is NaN
            along = torch.where(same, 0.0, along / torch.where(same, 1.0, score))
        else:
            along = along * 2
        pieces.append(along.to(out.dtype))
    return torch.cat(pieces, -2).reshape(shape)


def _difference_tangent(tangents: Tangents, out: Tensor, x: Tensor, bank: Tensor, metric: int) -> Tensor:
    """Of all pairs by direct differences, on blocks of rows."""
    x, bank, tx, tb = wide(torch.float64, x, bank, *tangents[:2])
    if out.numel() == 0 or bank.shape[-1] == 0:
        return torch.zeros_like(out)
    if bank.dim() == 2:
        x, tx = flat(x, tx)
    step, pieces = max(1, BLOCK_BYTES // (8 * bank.numel())), []
    bank, tb = bank.unsqueeze(-3), None if tb is None else tb.unsqueeze(-3)
    for a, ta in zip(x.split(step, -2), split(tx, step, -2), strict=False):
        ta = None if ta is None else ta.unsqueeze(-2)
        pieces.append(pair_terms(metric, a.unsqueeze(-2), bank, ta, tb)[0].to(out.dtype))
    return torch.cat(pieces, -2).reshape(out.shape)


define("project", fake=_project, setup=_project_setup, backward=_project_backward, tangent=_project_tangent)


# ---- exact_scores -------------------------------------------------------------------------------------------------


def _exact_scores(
    x: Tensor, bank: Tensor, metric: int, out_dtype: torch.dtype | None = None, indices: Tensor | None = None
) -> Tensor:
    check_pair(x, bank, metric)
    check(out_dtype is None or out_dtype in FLOATS, f"out_dtype must be floating point, got {out_dtype}")
    columns = bank.shape[-2]
    if indices is not None:
        same_device(x, indices)
        check(indices.dtype == torch.int64, f"codes must be int64, got {indices.dtype}")
        check(
            bank.dim() == 2 and indices.dim() == x.dim() and indices.shape[:-1] == x.shape[:-1],
            f"indices go with a bank (M, d), and must be (..., k) for x (..., d), got {tuple(indices.shape)}",
        )
        columns = indices.shape[-1]
    return x.new_empty((*x.shape[:-1], columns), dtype=out_dtype or x.dtype)


def _exact_scores_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bank, ctx.metric, _, indices = inputs
    ctx.save_for_backward(x, bank, indices)


def _exact_scores_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, bank, indices = ctx.saved_tensors
    need_x, need_bank = ctx.needs_input_grad[:2]
    if indices is None:
        grad_x, grad_bank = ops.project_backward(grad, x, bank, ctx.metric, need_x, need_bank)
    else:
        grad_x, grad_bank = ops.topk_backward(grad, x, bank, indices, ctx.metric)
    return grad_x if need_x else None, grad_bank if need_bank else None, None, None, None


def _exact_scores_tangent(
    tangents: Tangents,
    out: Tensor,
    x: Tensor,
    bank: Tensor,
    metric: int,
    out_dtype: torch.dtype | None = None,
    indices: Tensor | None = None,
) -> Tensor:
    if indices is None:
        return _project_tangent(tangents, out, x, bank, None, metric)
    return pair_tangents(tangents, out, x, bank, indices, metric, None)


define(
    "exact_scores",
    fake=_exact_scores,
    setup=_exact_scores_setup,
    backward=_exact_scores_backward,
    tangent=_exact_scores_tangent,
)


# ---- project_backward: the kernel is plain torch, in project_gradient.py ------------------------------------------


def _project_gradient(
    grad: Tensor,
    x: Tensor,
    bank: Tensor,
    metric: int,
    need_x: bool = True,
    need_bank: bool = True,
    row_least: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    check_project_backward(grad, x, bank, metric, row_least)
    return x.new_empty(x.shape if need_x else (0,)), bank.new_empty(bank.shape if need_bank else (0,))


define("project_backward", fake=_project_gradient, gradient_of="project")
