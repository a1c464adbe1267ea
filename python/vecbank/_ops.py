"""What every dispatcher op needs beside its kernel: autograd here, a fake (meta) kernel in `_fakes.py`.

The schemas are in csrc/torch/register_cpu.cpp; loading `_C` registers them as `torch.ops.vecbank.*`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _C as _C
from . import _backward as _backward
from . import _fakes as _fakes
from ._codes import METRICS as METRICS
from ._codes import REDUCTIONS as REDUCTIONS
from ._forward import Registrar
from ._interrupt import ops as _ops
from ._numpy import entry_point
from .results import Nearest as Nearest
from .results import Quantized as Quantized
from .results import QuantizeTrain as QuantizeTrain
from .results import ResidualQuantized as ResidualQuantized
from .results import TopK as TopK

# ---- autograd -----------------------------------------------------------------------------------------------------


def _project_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bank, _, ctx.metric, _ = inputs
    ask = ctx.metric == METRICS["sqeuclidean"] and output.numel() > 0
    least = output.amin(-1) if ask else None  # numbers of its own, so that the output may change in place
    ctx.save_for_backward(x, bank, least)


def _project_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, bank, least = ctx.saved_tensors
    need_x, need_bank = ctx.needs_input_grad[:2]
    grad_x, grad_bank = _ops.project_backward(grad, x, bank, ctx.metric, need_x, need_bank, least)
    return grad_x if need_x else None, grad_bank if need_bank else None, None, None, None


def _exact_scores_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bank, ctx.metric, _, indices = inputs
    ctx.save_for_backward(x, bank, indices)


def _exact_scores_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, bank, indices = ctx.saved_tensors
    need_x, need_bank = ctx.needs_input_grad[:2]
    if indices is None:
        grad_x, grad_bank = _ops.project_backward(grad, x, bank, ctx.metric, need_x, need_bank)
    else:
        grad_x, grad_bank = _ops.topk_backward(grad, x, bank, indices, ctx.metric)
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
    gap = x - quantized.detach()  # the loss holds its rows still: they are no function of x, straight through or not
    return torch.where(valid, gap * scale + grad, grad).to(x.dtype), None, None, None, None


def _residual_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, books, packs, _ = inputs
    ctx.stages, ctx.packs = len(books), len(packs)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], *books)


def _residual_backward(ctx: Any, grad: Tensor, _: Tensor, grad_losses: Tensor) -> tuple[Any, ...]:
    """Straight through to x; and the gap that each stage leaves, worked out again from the codes. Rows stay still."""
    x, codes, *books = ctx.saved_tensors
    rest, total = x.to(books[0].dtype), grad
    for s, book in enumerate(books):
        rest = rest - _ops.lookup(codes[..., s].contiguous(), book.detach(), None, REDUCTIONS["none"])
        valid = (codes[..., s] >= 0).unsqueeze(-1)
        scale = 2.0 * grad_losses[s] / (valid.sum() * x.shape[-1]).clamp_min(1)
        total = total + torch.where(valid, rest * scale, 0.0)
    return total.to(x.dtype), [None] * ctx.stages, [None] * ctx.packs, None


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


# What a reader of an error knows these ops as.
_GRADIENT_OF = {
    "project_backward": "project",
    "topk_backward": "topk and nearest",
    "quantize_backward": "the estimator of a quantiser",
    "lookup_dot": "the weights of lookup",
}


def _raises(name: str) -> Callable[..., Any]:
    of = f"the gradient of {_GRADIENT_OF[name]} ({name})" if name in _GRADIENT_OF else name

    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(f"vecbank: {of} has no derivative; a second backward pass needs a loss without it")

    return backward


_library = Registrar("vecbank", "FRAGMENT")  # kept: its registrations go with it
_formulas: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "project": (_project_backward, _project_setup),
    "exact_scores": (_exact_scores_backward, _exact_scores_setup),
    "topk": (_topk_backward, _topk_setup),
    "nearest": (_topk_backward, _nearest_setup),
    "quantize": (_quantize_backward, _quantize_setup),
    "quantize_train": (_quantize_train_backward, _quantize_train_setup),
    "residual_quantize": (_residual_backward, _residual_setup),
    "lookup": (_lookup_backward, _lookup_setup),
    "segment_sum": (_segment_sum_backward, _segment_sum_setup),
}
for _name, (_backward_of, _setup_of) in _formulas.items():
    _backward_of = entry_point(_backward_of)  # users meet its errors too
    torch.library.register_autograd(f"vecbank::{_name}", _backward_of, setup_context=_setup_of, lib=_library)
for _name in ("pack", "product_quantize", "project_backward", "topk_backward", "quantize_backward", "lookup_dot"):
    torch.library.register_autograd(f"vecbank::{_name}", _raises(_name), lib=_library)
