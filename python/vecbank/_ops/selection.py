"""`topk_among`, `radius`, `radius_count` and `merge_topk`: searches among candidate sets, and of a bank in parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .calls import ops
from .define import define
from .fakes import check, check_bias, check_mask, check_pair, same_device, value_dtype
from .names import CODES, SIMILARITIES
from .sets import MOST_SETS, NOT, Kind

# ---- topk_among -----------------------------------------------------------------------------------------------------


def _topk_among(
    x: Tensor,
    bank: Tensor,
    pack: Tensor | None,
    k: int,
    metric: int,
    sets: list[Tensor],
    program: list[int],
    bias: Tensor | None = None,
    keys: bool = False,
    worst: bool = False,
) -> tuple[Tensor, Tensor]:
    check_pair(x, bank, metric, pack)
    check(k >= 1, f"k must lie between 1 and M, got k = {k}")
    check(k <= bank.shape[-2], f"k must lie between 1 and M = {bank.shape[-2]}, got k = {k}")
    check(not worst or metric not in SIMILARITIES, "worst goes with distances: of a similarity, it is the best of -x")
    check(not worst or pack is None, "worst uses no pack")
    check_bias(bias, bank, metric)
    check_sets(x, bank, sets, program)
    shape = (*x.shape[:-1], k)
    dtype = torch.float64 if keys else value_dtype(x)
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=torch.int64)


def check_sets(x: Tensor, bank: Tensor, sets: list[Tensor], program: list[int]) -> None:
    same_device(x, *sets)
    check(len(program) % 2 == 0 and len(program) <= 4096, "program must hold pairs of a code and an operand")
    depth, named, sound = 0, 0, True
    for code, operand in zip(program[::2], program[1::2], strict=True):
        check(NOT <= code < len(Kind), f"program has no code {code}")
        if code >= 0:
            _check_set(Kind(code), operand, x, bank, sets)
            depth, named = depth + 1, named + 1
        else:
            sound = sound and depth >= (1 if code == NOT else 2)
            depth -= code != NOT
    check(
        not program or (sound and depth == 1 and named <= MOST_SETS),
        f"program must join at most {MOST_SETS} sets into one",
    )


def _check_set(kind: Kind, operand: int, x: Tensor, bank: Tensor, sets: list[Tensor]) -> None:
    if kind is Kind.not_self:
        return
    check(0 <= operand <= len(sets) - (3 if kind is Kind.same else 1), f"program names set {operand} of {len(sets)}")
    n, m, batches = x.shape[:-1].numel(), bank.shape[-2], bank.shape[0] if bank.dim() == 3 else 1
    own = sets[operand]
    if kind is Kind.mask:
        check_mask(own, x, (*x.shape[:-1], m))
        return
    dtype = torch.uint8 if kind is Kind.bits else torch.int64
    check(own.dim() == 2 and own.dtype == dtype, f"a set must be (1 or {n}, W) of its own dtype, got {own.dtype}")
    check(own.shape[0] == 1 or own.shape[0] == n, f"a set must be (1 or {n}, W), got {tuple(own.shape)}")
    if kind is Kind.ranges:
        check(own.shape[1] == 2, "ranges must be (n, 2)")
    elif kind is Kind.bits:
        check(own.shape[1] * 8 >= m, f"bits must be (n, W) with W bytes for {m} rows")
    elif kind is Kind.same:
        check(own.shape[1] == 1, f"labels must be (n, 1), got {tuple(own.shape)}")
        labels, order = sets[operand + 1 : operand + 3]
        for t in (labels, order):
            check(t.dim() == 2 and t.dtype == torch.int64, "labels of the bank must be contiguous int64")
            check(t.shape[1] == m, f"labels of the bank must be (1 or {batches}, {m}), got {tuple(t.shape)}")
            check(t.shape[0] == 1 or t.shape[0] == batches, f"labels must be those of {batches} banks, or of one")
        check(labels.shape[0] == order.shape[0], "labels and their order must have one shape")


def _topk_among_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.metric, ctx.keys = inputs[4], inputs[8]
    ctx.bias = inputs[7] is not None
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _topk_among_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    if ctx.keys:
        raise NotImplementedError("vecbank: keys have no derivative; score_pairs has one")
    x, bank, indices = ctx.saved_tensors
    grad_x, grad_bank = ops.topk_backward(grad, x, bank, indices, ctx.metric)
    needs = ctx.needs_input_grad  # of the arguments as they were dispatched: without defaults, a list for a list
    grads: list[Any] = [[None] * len(need) if isinstance(need, list) else None for need in needs]
    grads[:2] = grad_x if needs[0] else None, grad_bank if needs[1] else None
    if ctx.bias and needs[7]:
        grads[7] = ops.segment_sum(grad.to(bank.dtype).unsqueeze(-1), indices, bank.shape[0], None).squeeze(-1)
    return tuple(grads)


define("topk_among", fake=_topk_among, setup=_topk_among_setup, backward=_topk_among_backward)


# ---- radius ---------------------------------------------------------------------------------------------------------


def _radius(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    counts = _radius_count(x, *others)
    hits = torch.library.get_ctx().new_dynamic_size()  # they depend on the data
    offsets = counts.new_empty(counts.shape[0] + 1)
    return offsets, x.new_empty(hits, dtype=torch.int64), x.new_empty(hits, dtype=value_dtype(x))


define("radius", fake=_radius, gradient_of="radius")


def _radius_count(
    x: Tensor,
    bank: Tensor,
    pack: Tensor | None,
    radii: Tensor,
    metric: int,
    sets: list[Tensor],
    program: list[int],
    bias: Tensor | None = None,
) -> Tensor:
    check_pair(x, bank, metric, pack)
    check_bias(bias, bank, metric)
    return within(x, bank, radii, torch.float64, sets, program)


def within(
    x: Tensor, bank: Tensor, radii: Tensor, dtype: torch.dtype, sets: list[Tensor], program: list[int]
) -> Tensor:
    """The counts (N,) of rows within radii (N,) of this dtype, of vectors or of packed bits."""
    same_device(x, radii)
    name = str(dtype).removeprefix("torch.")
    check(radii.dim() == 1 and radii.dtype == dtype, f"radii must be {name} (N,), got {tuple(radii.shape)}")
    check(
        radii.shape[0] == x.shape[:-1].numel(), f"radii must be (N,) for x {tuple(x.shape)}, got {tuple(radii.shape)}"
    )
    check_sets(x, bank, sets, program)
    return x.new_empty(radii.shape[0], dtype=torch.int64)


define("radius_count", fake=_radius_count)


# ---- merge_topk -----------------------------------------------------------------------------------------------------


def _merge_topk(keys: Tensor, indices: Tensor, k: int, metric: int, wide: bool) -> tuple[Tensor, Tensor]:
    same_device(keys, indices)
    check(keys.dim() >= 1 and keys.dtype == torch.float64, f"keys must be float64 (..., n), got {keys.dtype}")
    check(indices.dtype == torch.int64, f"indices must be int64, got {indices.dtype}")
    check(keys.shape == indices.shape, f"keys {tuple(keys.shape)} must match indices {tuple(indices.shape)}")
    check(0 <= metric < len(CODES), f"metric must be 0 to {len(CODES) - 1}, got {metric}")
    check(k >= 1, f"k must be at least 1, got {k}")
    check(k <= keys.shape[-1], f"k must lie between 1 and {keys.shape[-1]}, got {k}")
    shape = (*keys.shape[:-1], k)
    return keys.new_empty(shape, dtype=torch.float64 if wide else torch.float32), indices.new_empty(shape)


define("merge_topk", fake=_merge_topk)
