"""Differentiable operations on rows and code vectors: training steps, gathers, the orthogonal term.

Layouts: one codebook `bank (K, d)` serves rows `x (..., d)`; H codebooks `bank (H, K, d)` serve `x (H, R, d)`. Larger
scores are better: -|x - b| for "l2", x.b for "dot".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ... import _checks
from ..._finite import zeroed
from ..._numpy import plain_error
from ..._ops import ESTIMATORS, METRICS
from ..._ops import ops as _ops
from ..._ops.rotation import rotated_gradient
from ..._ops.tangents import Function
from ...functional import lookup, segment_sum
from .._checkpointing import ForwardRecord
from .._draws import uniform
from .._estimators import once, twice
from .._layout import mean, working

NORM_FLOOR = 1e-6  # of the vectors that a cosine codebook normalises


class TrainingStep(NamedTuple):
    """One training pass over x."""

    quantized: Tensor  # x's shape
    codes: Tensor  # (...) int64, -1 where the mask leaves a row out
    loss: Tensor  # () mean (quantized - x)^2 over counted rows
    counts: Tensor  # (K,) or (H, K) rows per code
    sums: Tensor  # (K, d) or (H, K, d) sum of the rows of each code


def unit(x: Tensor) -> Tensor:
    """Rows divided by their norm, or by 1e-6 where that is smaller."""
    return F.normalize(x, dim=-1, eps=NORM_FLOOR)


@torch.library.custom_op("vecbank_nn::snapshot", mutates_args=())
def _snapshot(t: Tensor) -> Tensor:
    return t.clone()


def snapshot(t: Tensor) -> Tensor:
    """A copy that torch.compile cannot remove.

    A backward graph may compute a value again from the inputs of the forward graph instead of keeping it. A codebook
    that has been updated in between is no longer that input, but the output of an unknown op is always kept.
    """
    return _snapshot(t) if torch.compiler.is_compiling() else t.clone()


@_snapshot.register_fake
def _(t: Tensor) -> Tensor:
    return torch.empty_like(t)


_snapshot.register_autograd(lambda ctx, grad: grad)


def totals(x: Tensor, codes: Tensor, bank_shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The number of rows of each code and their sum, for codes that are given; -1 counts nowhere."""
    *lead, width = bank_shape
    segments = torch.Size(lead).numel()
    if len(lead) == 2:
        offset = torch.arange(lead[0], device=codes.device).view(-1, *[1] * (codes.dim() - 1)) * lead[1]
        codes = torch.where(codes >= 0, codes + offset, codes)
    sums = segment_sum(working(x).reshape(-1, width), codes.reshape(-1), segments)
    ones = torch.ones_like(codes, dtype=torch.float32).reshape(-1)
    counts = ones.new_zeros(segments + 1).scatter_add_(0, codes.reshape(-1) + 1, ones)[1:]  # exact in any order
    return counts.view(lead), sums.view(bank_shape)


def _check_pair(x: Tensor, bank: Tensor) -> None:
    """Rows fit a codebook; where they do not, the errors of `_checks` say more than those of the ops."""
    if x.dtype is not bank.dtype or x.device != bank.device or x.shape[-1] != bank.shape[-1]:
        _checks.pair(x, bank, "codebook")


def _answer(op: Callable[..., Any], *arguments: Any) -> Any:
    """What an op returns; its errors come in the words of Python."""
    try:
        return op(*arguments)
    except RuntimeError as error:
        raise plain_error(error, "VectorQuantize") or error from None


def quantize(x: Tensor, bank: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """The nearest code vectors in the bank's dtype, and their codes; no gradient."""
    _check_pair(x, bank)
    quantized, codes = _answer(_ops.quantize, x.detach(), bank.detach(), None, METRICS[metric])
    return quantized, codes


def _step(x: Tensor, bank: Tensor, metric: str, mask: Tensor | None, codes: Tensor | None) -> TrainingStep:
    if codes is None:
        _check_pair(x, bank)
        return TrainingStep(*_answer(_ops.quantize_train, x, bank, None, METRICS[metric], mask))
    if mask is not None:
        codes = torch.where(mask, codes, -1)
    quantized = lookup(codes, bank)
    gap = (quantized - x).square()
    if mask is None:
        loss = mean(gap)
    else:
        loss = (gap * mask.unsqueeze(-1)).sum() / (mask.sum() * x.shape[-1]).clamp_min(1)
    return TrainingStep(quantized, codes, loss, *totals(x, codes, bank.shape))


class _Train(Function):
    """quantize_train with the gradients of a training step in closed form; see `train`."""

    operation = "a quantizer's training step"

    @staticmethod
    def forward(
        x: Tensor,
        bank: Tensor,
        mask: Tensor | None,
        codes: Tensor | None,
        metric: str,
        estimator: str,
        learn: bool,
        record: ForwardRecord | None,
    ) -> tuple[Tensor, ...]:
        quantized, found, *rest = _step(x, bank, metric, mask, codes)
        found = found.clone() if found is codes else found  # an input that is an output cannot be saved
        if quantized.dtype != x.dtype:  # a `.to` that changes nothing loses the gradient under torch 2.11's compiler
            quantized = quantized.to(x.dtype)
        return quantized, found, *rest

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, bank, mask, _, _, ctx.estimator, ctx.learn, ctx.record = inputs
        quantized, codes, _, counts, sums = output
        need_bank = ctx.needs_input_grad[1]
        fixed = [codes, counts, sums]
        if ctx.estimator == "none" and not need_bank:
            fixed.append(quantized)
        ctx.mark_non_differentiable(*fixed)
        ctx.bank_shape = bank.shape
        pull = None
        if need_bank and ctx.learn:
            # counts b - sums: half the gradient of the summed loss in the codebook, which changes after this call.
            now = snapshot(bank.detach()) if torch.compiler.is_compiling() else bank.detach()
            pull = counts.unsqueeze(-1) * now - sums
        ctx.save_for_backward(x, quantized, mask, codes if need_bank and ctx.estimator == "none" else None, pull)
        if not torch.compiler.is_compiling():
            ctx.bank = bank if pull is not None else None  # for its place in the graph: its values may change

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor, grad_loss: Tensor, *rest: Tensor) -> tuple[Any, ...]:
        x, quantized, mask, codes, pull = ctx.saved_tensors
        elements = x.numel() if mask is None else mask.sum() * x.shape[-1]
        scale = grad_loss * 2 / (max(elements, 1) if isinstance(elements, int) else elements.clamp_min(1))
        grad_x = grad_bank = None
        if twice():
            return _Train.backward_twice(ctx, grad, scale)
        if ctx.needs_input_grad[0]:
            grad_x = _ops.quantize_backward(grad.to(x.dtype), x, quantized, scale, ESTIMATORS[ctx.estimator])
        if pull is not None:
            grad_bank = pull * scale
        if codes is not None:
            passed = totals(grad, codes, ctx.bank_shape)[1]
            grad_bank = passed if grad_bank is None else grad_bank + passed
        return grad_x, grad_bank, None, None, None, None, None, None

    @staticmethod
    def backward_twice(ctx: Any, grad: Tensor, scale: Tensor) -> tuple[Any, ...]:
        """The same by formulas that have a derivative in x; codes and rotations are constants, as in the first pass."""
        x, quantized, mask, codes, pull = ctx.saved_tensors
        fixed, grad_bank = quantized.detach(), None
        grad_x = zeroed((x - fixed) * scale, mask)
        if ctx.estimator != "none":
            rotated = rotated_gradient(grad, x.detach(), fixed) if ctx.estimator == "rotation" else grad
            grad_x = grad_x + rotated
        if pull is not None:
            grad_bank = once(pull * scale, x, ctx.bank)
        if codes is not None:
            passed = totals(grad, codes, ctx.bank_shape)[1]
            grad_bank = passed if grad_bank is None else grad_bank + passed
        return grad_x.to(x.dtype), grad_bank, None, None, None, None, None, None


def train(
    x: Tensor,
    bank: Tensor,
    metric: str,
    *,
    mask: Tensor | None = None,
    codes: Tensor | None = None,
    estimator: str = "none",
    learn: bool = False,
    record: ForwardRecord | None = None,
) -> TrainingStep:
    """The pass over x of a training step: one `quantize_train`, and gradients in closed form.

    The gradient of the loss moves x to its code, and with `learn` the code to its rows. The gradient of `quantized`
    goes to x by the `estimator` "straight" (unchanged) or "rotation" (rotated and scaled as x was); with "none" it goes
    to the bank.

    Args:
        x: (..., d), or (H, R, d) for H codebooks. bank: (K, d) or (H, K, d). mask: x.shape[:-1] bool, True = counts.
        codes: take these instead of the nearest. record: kept alive as long as the graph is.
    """
    return TrainingStep(*_Train.apply(x, bank, mask, codes, metric, estimator, learn, record))


class _Rows(Function):
    operation = "the gather of code vectors"

    @staticmethod
    def forward(codes: Tensor, bank: Tensor) -> Tensor:
        return lookup(codes, bank)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.shape = inputs[1].shape
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, totals(grad, ctx.saved_tensors[0], ctx.shape)[1]


def gather_rows(codes: Tensor, bank: Tensor) -> Tensor:
    """The code vectors, differentiable in the bank, whose values may change in place before the backward pass."""
    return _Rows.apply(codes, bank)


def orthogonality(
    bank: Tensor, active: Tensor | None, most: int | None, generator: Generator | None, updated: bool = False
) -> Tensor:
    """Mean squared cosine between codes, less that of a code with itself: sum_ij (b_i.b_j)^2 / (H n^2) - 1 / n.

    The d x d product replaces the n x n one where it is smaller: |B B^T| = |B^T B|. `active (K,)` bool leaves codes
    out, `most` draws at most so many: both by weight 0, so that no shape depends on data. `updated`: the bank is
    written to before the backward pass, which needs its present values.

    Source: Shin et al., "Translation-equivariant Image Quantizer for Bi-directional Image-Text Generation", 2021.
    """
    heads, count, width = bank.shape
    number: Tensor | int = count
    if active is not None:
        number = active.sum().clamp_min(1)
    if most is not None and count > most:
        keys = uniform(count, bank, generator)
        if active is not None:
            keys, number = keys - 2 * (~active).to(keys.dtype), number.clamp_max(most)  # type: ignore[union-attr]
        else:
            number = most
        chosen = keys.topk(most).indices
        bank, active = bank[:, chosen], None if active is None else active[chosen]
    bank = snapshot(bank) if updated else bank
    units = unit(bank)
    units = units if active is None else units * active.view(1, -1, 1)
    gram = units.mT @ units if width < units.shape[1] else units @ units.mT
    return gram.square().sum() / (heads * number * number) - 1 / number
