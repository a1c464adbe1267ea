"""What every dispatcher op needs beside its kernel: a fake (meta) kernel, autograd, a batching rule.

The schemas and CPU kernels are in csrc/torch/ops.cpp; loading `_C` registers them as `torch.ops.vecbank.*`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _C as _C
from . import _backward as _backward

METRICS: dict[str, int] = {"dot": 0, "cosine": 1, "l2": 2, "sqeuclidean": 3}
REDUCTIONS: dict[str, int] = {"none": 0, "sum": 1, "mean": 2}


class TopK(NamedTuple):
    """Best first: float32 values (float64 for float64 input) and int64 indices, both (..., k)."""

    values: Tensor
    indices: Tensor


class QuantizeTrain(NamedTuple):
    """What a training step needs: quantized (..., d), codes (...), loss (), counts (M,), sums (M, d)."""

    quantized: Tensor
    codes: Tensor
    loss: Tensor
    counts: Tensor
    sums: Tensor


class Nearest(NamedTuple):
    """The best row per query: values and int64 indices, both (...)."""

    values: Tensor
    indices: Tensor


class Quantized(NamedTuple):
    """The nearest rows (..., d) in the bank's dtype, and their int64 codes (...)."""

    quantized: Tensor
    codes: Tensor


for _tuple in (TopK, Nearest, Quantized, QuantizeTrain):  # so that torch.export can save programs that return them
    torch.utils._pytree._register_namedtuple(_tuple, serialized_type_name=f"vecbank.{_tuple.__name__}")

_HALF = (torch.bfloat16, torch.float16)
_FLOATS = (torch.float32, torch.float64, *_HALF)


def _check(condition: bool, message: str) -> None:
    torch._check(condition, lambda: f"vecbank: {message}")


def _check_pair(x: Tensor, bank: Tensor) -> None:
    """A fake kernel refuses what the real one refuses: otherwise a mixed call reaches the wrong kernel."""
    _check(x.device == bank.device, f"x is on {x.device} but bank is on {bank.device}")
    _check(bank.dim() in (2, 3), f"bank must be (M, d) or (B, M, d), got {tuple(bank.shape)}")
    _check(x.dim() >= 1, "x must have at least one dimension, got a scalar")
    _check(
        x.shape[-1] == bank.shape[-1], f"x {tuple(x.shape)} and bank {tuple(bank.shape)} differ in their last dimension"
    )
    if bank.dim() == 3:
        _check(x.dim() == 3 and x.shape[0] == bank.shape[0], f"a batched bank {tuple(bank.shape)} needs x (B, N, d)")
    _check(x.dtype in _FLOATS and bank.dtype in _FLOATS, f"dtypes {x.dtype} and {bank.dtype} must be floating point")
    _check(
        x.dtype == bank.dtype or (x.dtype in _HALF and bank.dtype == torch.float32),
        f"x ({x.dtype}) and bank ({bank.dtype}) must share a dtype, or x be 16-bit with a float32 bank",
    )


def _value_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.register_fake("vecbank::pack")
def _(bank: Tensor, metric: int, bias: Tensor | None = None) -> Tensor:
    _check(bank.dim() in (2, 3), f"bank must be (M, d) or (B, M, d), got {tuple(bank.shape)}")
    m, d = bank.shape[-2], bank.shape[-1]
    norms = (8 * m + 63) // 64 * 64 if metric == METRICS["cosine"] or bias is not None else 0
    size = 128 + (8 * d + 63) // 64 * 64 + norms + (m + 15) // 16 * (d + 3) * 64
    return bank.new_empty((*bank.shape[:-2], size), dtype=torch.uint8)


@torch.library.register_fake("vecbank::project")
def _(x: Tensor, bank: Tensor, pack: Tensor | None, metric: int, out_dtype: torch.dtype | None = None) -> Tensor:
    _check_pair(x, bank)
    return x.new_empty((*x.shape[:-1], bank.shape[-2]), dtype=out_dtype or x.dtype)


@torch.library.register_fake("vecbank::project_backward")
def _(
    grad: Tensor, x: Tensor, bank: Tensor, metric: int, need_x: bool = True, need_bank: bool = True
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if need_x else (0,)), bank.new_empty(bank.shape if need_bank else (0,))


@torch.library.register_fake("vecbank::topk")
def _(
    x: Tensor,
    bank: Tensor,
    pack: Tensor | None,
    k: int,
    metric: int,
    mask: Tensor | None = None,
    exact: bool = True,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    _check_pair(x, bank)
    _check(mask is None or mask.device == x.device, "mask is on another device than x")
    shape = (*x.shape[:-1], k)
    return x.new_empty(shape, dtype=_value_dtype(x)), x.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake("vecbank::topk_backward")
def _(grad: Tensor, x: Tensor, bank: Tensor, indices: Tensor, metric: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bank.new_empty(bank.shape)


@torch.library.register_fake("vecbank::nearest")
def _(x: Tensor, bank: Tensor, pack: Tensor | None, metric: int, exact: bool = True) -> tuple[Tensor, Tensor]:
    _check_pair(x, bank)
    return x.new_empty(x.shape[:-1], dtype=_value_dtype(x)), x.new_empty(x.shape[:-1], dtype=torch.int64)


@torch.library.register_fake("vecbank::quantize")
def _(x: Tensor, bank: Tensor, pack: Tensor | None, metric: int) -> tuple[Tensor, Tensor]:
    _check_pair(x, bank)
    return x.new_empty(x.shape, dtype=bank.dtype), x.new_empty(x.shape[:-1], dtype=torch.int64)


@torch.library.register_fake("vecbank::quantize_train")
def _(
    x: Tensor, bank: Tensor, pack: Tensor | None, metric: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_pair(x, bank)
    sums = torch.float64 if bank.dtype == torch.float64 else torch.float32
    return (
        x.new_empty(x.shape, dtype=bank.dtype),
        x.new_empty(x.shape[:-1], dtype=torch.int64),
        x.new_empty((), dtype=sums),
        x.new_empty(bank.shape[:-1], dtype=torch.float32),
        x.new_empty(bank.shape, dtype=sums),
    )


def _check_codes(codes: Tensor, rows: Tensor, weights: Tensor | None) -> None:
    _check(codes.dtype == torch.int64, f"codes must be int64, got {codes.dtype}")
    _check(codes.device == rows.device, f"codes are on {codes.device} but the rows are on {rows.device}")
    _check(rows.dtype in _FLOATS, f"rows must be floating point, got {rows.dtype}")
    if weights is not None:
        _check(
            weights.shape == codes.shape, f"weights {tuple(weights.shape)} must have codes' shape {tuple(codes.shape)}"
        )
        _check(weights.dtype == rows.dtype, f"weights ({weights.dtype}) must have the rows' dtype ({rows.dtype})")
        _check(weights.device == rows.device, "weights are on another device")


@torch.library.register_fake("vecbank::lookup")
def _(codes: Tensor, bank: Tensor, weights: Tensor | None, reduce: int) -> Tensor:
    _check_codes(codes, bank, weights)
    _check(bank.dim() == 2, f"bank must be (M, d), got {tuple(bank.shape)}")
    shape = codes.shape if reduce == 0 else codes.shape[:-1]
    return bank.new_empty((*shape, bank.shape[1]))


@torch.library.register_fake("vecbank::lookup_dot")
def _(x: Tensor, codes: Tensor, bank: Tensor) -> Tensor:
    _check_codes(codes, bank, None)
    _check(x.device == bank.device, "x is on another device than bank")
    return bank.new_empty(codes.shape)


@torch.library.register_fake("vecbank::segment_sum")
def _(src: Tensor, codes: Tensor, num_codes: int, weights: Tensor | None) -> Tensor:
    _check_codes(codes, src, weights)
    return src.new_empty((num_codes, src.shape[-1]))


# ---- autograd -----------------------------------------------------------------------------------------------------

_ops = torch.ops.vecbank


def _project_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bank, _, ctx.metric, _ = inputs
    ctx.save_for_backward(x, bank)


def _project_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, bank = ctx.saved_tensors
    need_x, need_bank = ctx.needs_input_grad[:2]
    grad_x, grad_bank = _ops.project_backward(grad, x, bank, ctx.metric, need_x, need_bank)
    return grad_x if need_x else None, grad_bank if need_bank else None, None, None, None


def _topk_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _selection_setup(ctx, inputs, output, metric=inputs[4])


def _nearest_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _selection_setup(ctx, inputs, output, metric=inputs[3])


def _selection_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor], metric: int) -> None:
    ctx.metric = metric
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _topk_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    x, bank, indices = ctx.saved_tensors
    grad_x, grad_bank = _ops.topk_backward(grad, x, bank, indices, ctx.metric)
    need_x, need_bank = ctx.needs_input_grad[:2]
    grads = [grad_x if need_x else None, grad_bank if need_bank else None, *([None] * (len(ctx.needs_input_grad) - 2))]
    if len(grads) > 7 and ctx.needs_input_grad[7]:  # topk's bias
        grads[7] = _ops.segment_sum(grad.to(bank.dtype).unsqueeze(-1), indices, bank.shape[0], None).squeeze(-1)
    return tuple(grads)


def _quantize_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.x_dtype = inputs[0].dtype
    ctx.mark_non_differentiable(output[1])


def _quantize_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    return grad.to(ctx.x_dtype), None, None, None  # straight through to x; the bank learns through lookup


def _quantize_train_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    quantized, codes, _, counts, sums = output
    ctx.mark_non_differentiable(codes, counts, sums)
    ctx.save_for_backward(inputs[0], quantized, codes)


def _quantize_train_backward(ctx: Any, grad: Tensor, _: Tensor, grad_loss: Tensor, *rest: Tensor) -> tuple[Any, ...]:
    x, quantized, codes = ctx.saved_tensors
    valid = (codes >= 0).unsqueeze(-1)
    scale = 2.0 * grad_loss / (valid.sum() * x.shape[-1]).clamp_min(1)
    return torch.where(valid, (x - quantized) * scale + grad, grad).to(x.dtype), None, None, None, None


def _lookup_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    codes, bank, weights, ctx.reduce = inputs
    ctx.save_for_backward(codes, bank, weights)


def _lookup_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    codes, bank, weights = ctx.saved_tensors
    if ctx.reduce == REDUCTIONS["mean"]:
        grad = grad / (codes >= 0).sum(-1, keepdim=True).clamp_min(1).to(grad.dtype)
    grad_bank = _ops.segment_sum(grad, codes, bank.shape[0], weights) if ctx.needs_input_grad[1] else None
    grad_weights = _ops.lookup_dot(grad, codes, bank) if ctx.needs_input_grad[2] else None
    return None, grad_bank, grad_weights, None


def _segment_sum_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    src, codes, _, weights = inputs
    ctx.listed = codes.dim() == src.dim()
    ctx.save_for_backward(src, codes, weights)


def _segment_sum_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    src, codes, weights = ctx.saved_tensors
    reduce = REDUCTIONS["sum" if ctx.listed else "none"]
    grad_src = _ops.lookup(codes, grad, weights, reduce) if ctx.needs_input_grad[0] else None
    grad_weights = _ops.lookup_dot(src, codes, grad) if ctx.needs_input_grad[3] else None
    return grad_src, None, None, grad_weights


def _raises(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            f"vecbank: {name} has no derivative; differentiate the operation it belongs to only once"
        )

    return backward


torch.library.register_autograd("vecbank::project", _project_backward, setup_context=_project_setup)
torch.library.register_autograd("vecbank::topk", _topk_backward, setup_context=_topk_setup)
torch.library.register_autograd("vecbank::nearest", _topk_backward, setup_context=_nearest_setup)
torch.library.register_autograd("vecbank::quantize", _quantize_backward, setup_context=_quantize_setup)
torch.library.register_autograd(
    "vecbank::quantize_train", _quantize_train_backward, setup_context=_quantize_train_setup
)
torch.library.register_autograd("vecbank::lookup", _lookup_backward, setup_context=_lookup_setup)
torch.library.register_autograd("vecbank::segment_sum", _segment_sum_backward, setup_context=_segment_sum_setup)
for _name in ("pack", "project_backward", "topk_backward", "lookup_dot"):
    torch.library.register_autograd(f"vecbank::{_name}", _raises(_name))
