"""`sparse_invert`, `sparse_scores`, `sparse_topk` and their gradient: retrieval with sparse vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .calls import ops
from .define import define
from .fakes import check, same_device
from .selection import check_sets

_WEIGHTS = (torch.float32, torch.float64)


def _invert(offsets: Tensor, ids: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    same_device(offsets, ids)
    check(offsets.dim() == 1 and offsets.dtype == torch.int64, f"offsets must be int64 (M + 1,), got {offsets.dtype}")
    check(offsets.shape[0] >= 1, "offsets must be (M + 1,), got none")
    check(ids.dim() == 1 and ids.dtype in (torch.int32, torch.int64), f"ids must be int32 or int64, got {ids.dtype}")
    check(width >= 0, f"width must not be negative, got {width}")
    return (
        offsets.new_empty(width + 1),
        ids.new_empty(ids.shape, dtype=torch.int32),
        ids.new_empty(ids.shape, dtype=torch.int64),
    )


define("sparse_invert", fake=_invert)


def _check(ids: Tensor, query_weights: Tensor, starts: Tensor, documents: Tensor, weights: Tensor, count: int) -> None:
    same_device(ids, query_weights, starts, documents, weights)
    check(weights.dtype in _WEIGHTS, f"weights must be float32 or float64, got {weights.dtype}")
    check(query_weights.dtype == weights.dtype, "query weights must have the dtype of the documents'")
    check(ids.dim() >= 1 and ids.dtype == torch.int64, f"query ids must be int64 (..., T), got {ids.dtype}")
    check(ids.shape == query_weights.shape, "query ids must have as many weights")
    check(starts.dim() == 1 and starts.dtype == torch.int64, f"starts must be int64 (V + 1,), got {starts.dtype}")
    check(starts.shape[0] >= 1, "starts must be (V + 1,), got none")
    check(documents.dim() == 1 and documents.dtype == torch.int32, f"documents must be int32, got {documents.dtype}")
    check(documents.shape == weights.shape, "documents must have as many weights")
    check(0 <= count < 2**31, f"count must lie between 0 and 2^31 - 1, got {count}")


def _keep(ctx: Any, inputs: tuple[Any, ...], indices: Tensor | None) -> None:
    ctx.count, ctx.ranked = inputs[5], indices is not None
    ctx.save_for_backward(*inputs[:5], *([] if indices is None else [indices]))


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Of the queries' weights and of the lists'."""
    tensors = ctx.saved_tensors
    indices = tensors[5] if ctx.ranked else None
    needs = ctx.needs_input_grad
    queries, lists = ops.sparse_backward(grad, *tensors[:5], ctx.count, indices, bool(needs[1]), bool(needs[4]))
    return queries if needs[1] else None, lists if needs[4] else None


# ---- sparse_scores --------------------------------------------------------------------------------------------------


def _scores(
    ids: Tensor, query_weights: Tensor, starts: Tensor, documents: Tensor, weights: Tensor, count: int
) -> Tensor:
    _check(ids, query_weights, starts, documents, weights, count)
    return weights.new_empty((*ids.shape[:-1], count))


def _scores_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _keep(ctx, inputs, None)


def _scores_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    queries, lists = _gradients(ctx, grad)
    return None, queries, None, None, lists, None


define("sparse_scores", fake=_scores, setup=_scores_setup, backward=_scores_backward)


# ---- sparse_topk ----------------------------------------------------------------------------------------------------


def _topk(
    ids: Tensor,
    query_weights: Tensor,
    starts: Tensor,
    documents: Tensor,
    weights: Tensor,
    count: int,
    k: int,
    sets: list[Tensor],
    program: list[int],
) -> tuple[Tensor, Tensor]:
    _check(ids, query_weights, starts, documents, weights, count)
    check(k >= 1, f"k must lie between 1 and the number of documents, got k = {k}")
    check(k <= count, f"k must lie between 1 and the number of documents {count}, got k = {k}")
    check_sets(query_weights, query_weights.new_empty((count, 0)), sets, program)
    shape = (*ids.shape[:-1], k)
    return weights.new_empty(shape), ids.new_empty(shape)


def _topk_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    _keep(ctx, inputs, output[1])


def _topk_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad  # of the arguments as they were dispatched: a list for a list
    grads: list[Any] = [[None] * len(need) if isinstance(need, list) else None for need in needs]
    grads[1], grads[4] = _gradients(ctx, grad)
    return tuple(grads)


define("sparse_topk", fake=_topk, setup=_topk_setup, backward=_topk_backward)


# ---- sparse_backward ------------------------------------------------------------------------------------------------


def _backward(
    grad: Tensor,
    ids: Tensor,
    query_weights: Tensor,
    starts: Tensor,
    documents: Tensor,
    weights: Tensor,
    count: int,
    indices: Tensor | None,
    need_queries: bool,
    need_lists: bool,
) -> tuple[Tensor, Tensor]:
    _check(ids, query_weights, starts, documents, weights, count)
    same_device(ids, grad, indices)
    if indices is not None:
        check(indices.dtype == torch.int64, f"indices must be int64, got {indices.dtype}")
        check(indices.dim() == ids.dim() and indices.shape == grad.shape, "indices must have the scores' shape")
    k = count if indices is None else indices.shape[-1]
    check(grad.dtype == weights.dtype, f"grad must have the scores' dtype, got {grad.dtype}")
    check(grad.shape == (*ids.shape[:-1], k), f"grad must have the scores' shape, got {tuple(grad.shape)}")
    return (
        grad.new_empty(ids.shape if need_queries else (0,)),
        grad.new_empty(weights.shape if need_lists else (0,)),
    )


define("sparse_backward", fake=_backward, gradient_of="sparse scores")
