"""`maxsim`, `maxsim_pairs` and `maxsim_topk`: sets of rows, scored by the best of each token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .calls import ops
from .define import define
from .fakes import check, check_pair, same_device, value_dtype
from .names import SIMILARITIES
from .selection import check_sets


def _check(queries: Tensor, query_offsets: Tensor, documents: Tensor, offsets: Tensor, metric: int) -> tuple[int, int]:
    """How many sets there are on either side."""
    same_device(queries, query_offsets, documents, offsets)
    check(queries.dim() == 2 and documents.dim() == 2, "queries and documents must be (rows, d)")
    check_pair(queries, documents, metric)
    for name, t in (("query_offsets", query_offsets), ("offsets", offsets)):
        check(t.dim() == 1 and t.dtype == torch.int64, f"{name} must be int64 (sets + 1,), got {t.dtype}")
        check(t.shape[0] >= 1, f"{name} must be (sets + 1,), got none")
    return query_offsets.shape[0] - 1, offsets.shape[0] - 1


def _best(queries: Tensor, wanted: bool, columns: int) -> Tensor:
    return queries.new_empty((queries.shape[0], columns) if wanted else (0,), dtype=torch.int64)


def _gradients(ctx: Any, grad: Tensor, best: Tensor, query_offsets: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Of the rows of both sides: each query token's with the row that was best, summed in a fixed order."""
    queries, documents = ctx.saved_tensors[0], ctx.saved_tensors[2]
    sizes = query_offsets.diff()
    each = grad.repeat_interleave(sizes, dim=0, output_size=queries.shape[0])
    if ctx.negated:
        each = -each
    grad_queries, grad_documents = ops.topk_backward(each, queries, documents, best, ctx.metric)
    needs = ctx.needs_input_grad
    return grad_queries if needs[0] else None, grad_documents if needs[2] else None


def _keep(ctx: Any, metric: int, best: Tensor) -> None:
    ctx.metric, ctx.negated = metric, metric not in SIMILARITIES
    ctx.mark_non_differentiable(best)


# ---- maxsim ---------------------------------------------------------------------------------------------------------


def _maxsim(
    queries: Tensor, query_offsets: Tensor, documents: Tensor, offsets: Tensor, metric: int, best: bool = False
) -> tuple[Tensor, Tensor]:
    q, d = _check(queries, query_offsets, documents, offsets, metric)
    return queries.new_empty((q, d), dtype=value_dtype(queries)), _best(queries, best, d)


def _maxsim_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.asked = inputs[5]
    _keep(ctx, inputs[4], output[1])
    ctx.save_for_backward(*inputs[:4], *([output[1]] if ctx.asked else []))


def _maxsim_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    best = tensors[4] if ctx.asked else ops.maxsim(*(t.detach() for t in tensors[:4]), ctx.metric, True)[1]
    queries, documents = _gradients(ctx, grad, best, tensors[1])
    return queries, None, documents, None, None, None


define("maxsim", fake=_maxsim, setup=_maxsim_setup, backward=_maxsim_backward)


# ---- maxsim_pairs ---------------------------------------------------------------------------------------------------


def _pairs(
    queries: Tensor,
    query_offsets: Tensor,
    documents: Tensor,
    offsets: Tensor,
    indices: Tensor,
    metric: int,
    best: bool = False,
) -> tuple[Tensor, Tensor]:
    q, _ = _check(queries, query_offsets, documents, offsets, metric)
    same_device(queries, indices)
    check(indices.dtype == torch.int64, f"indices must be int64, got {indices.dtype}")
    check(indices.dim() == 2 and indices.shape[0] == q, f"indices must be (Q, k), got {tuple(indices.shape)}")
    k = indices.shape[1]
    return queries.new_empty((q, k), dtype=torch.float64), _best(queries, best, k)


def _pairs_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.asked = inputs[6]
    _keep(ctx, inputs[5], output[1])
    ctx.save_for_backward(*inputs[:5], *([output[1]] if ctx.asked else []))


def _pairs_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    best = tensors[5] if ctx.asked else ops.maxsim_pairs(*(t.detach() for t in tensors[:5]), ctx.metric, True)[1]
    queries, documents = _gradients(ctx, grad, best, tensors[1])
    return queries, None, documents, None, None, None, None


define("maxsim_pairs", fake=_pairs, setup=_pairs_setup, backward=_pairs_backward)


# ---- maxsim_topk: without a gradient; maxsim_pairs of what was found has one ----------------------------------------


def _topk(
    queries: Tensor,
    query_offsets: Tensor,
    documents: Tensor,
    offsets: Tensor,
    k: int,
    metric: int,
    sets: list[Tensor],
    program: list[int],
    codes: Tensor | None = None,
    facts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    q, d = _check(queries, query_offsets, documents, offsets, metric)
    check((codes is None) == (facts is None), "codes and facts go together")
    if codes is not None and facts is not None:
        same_device(queries, codes, facts)
        shapes = (documents.shape[0], code_bytes(documents.shape[1])), (d, 3)
        check(codes.dtype == torch.uint8 and codes.shape == shapes[0], "codes must be what maxsim_pack returned")
        check(facts.dtype == torch.float32 and facts.shape == shapes[1], "facts must be what maxsim_pack returned")
    check(k >= 1, f"k must lie between 1 and the number of documents, got k = {k}")
    check(k <= d, f"k must lie between 1 and the number of documents {d}, got k = {k}")
    check_sets(queries.new_empty((q, 0)), documents.new_empty((d, 0)), sets, program)
    return queries.new_empty((q, k), dtype=torch.float64), queries.new_empty((q, k), dtype=torch.int64)


define("maxsim_topk", fake=_topk)


# ---- maxsim_pack ----------------------------------------------------------------------------------------------------


def code_bytes(width: int) -> int:
    """Of a token."""
    return (width + 3) // 4 * 4


def _pack(documents: Tensor, offsets: Tensor, metric: int) -> tuple[Tensor, Tensor]:
    _, d = _check(documents, offsets, documents, offsets, metric)
    check(metric in SIMILARITIES, f"codes are for dot and cosine, got metric {metric}")
    codes = documents.new_empty((documents.shape[0], code_bytes(documents.shape[1])), dtype=torch.uint8)
    return codes, documents.new_empty((d, 3), dtype=torch.float32)


define("maxsim_pack", fake=_pack)
