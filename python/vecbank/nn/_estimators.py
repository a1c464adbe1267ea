"""Gradients for steps that have none: forward returns the code's vector, exactly; backward is a closed form.

Sources: straight-through, Bengio, Leonard and Courville, "Estimating or Propagating Gradients Through
Stochastic Neurons", 2013; rotation trick, Fifty et al., "Restructuring Vector Quantization with the Rotation
Trick", ICLR 2025.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._ops.rotation import rotated_gradient
from .._ops.tangents import Function, refuse_tangents
from ._layout import working


class _StraightThrough(Function):
    operation = "the straight-through estimator"
    generate_vmap_rule = True

    @staticmethod
    def forward(source: Tensor, target: Tensor) -> Tensor:
        return target.clone()  # not a view: what is returned may be written to

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.to(ctx.dtype), None


class _Rotate(Function):
    operation = "the rotation trick"
    generate_vmap_rule = True

    @staticmethod
    def forward(source: Tensor, target: Tensor) -> Tensor:
        return target.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        source, target = (t.detach() for t in ctx.saved_tensors)
        return rotated_gradient(grad, source, target).to(source.dtype), None


def _tangent(t: Tensor) -> Tensor | None:
    """The tangent of a dual tensor, or None; a compiled program has no access to it."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return None
    found: Tensor | None = forward_ad.unpack_dual(t).tangent
    return found


def straight_through(source: Tensor, target: Tensor) -> Tensor:
    """`target`, with the gradient passed to `source` unchanged, or its tangent passed on; both (..., d)."""
    if (tangent := _tangent(source)) is not None:
        primal = forward_ad.unpack_dual(source).primal
        return forward_ad.make_dual(straight_through(primal, target), tangent.to(target.dtype))
    if not (source.requires_grad and torch.is_grad_enabled()):
        return target.detach()
    return _StraightThrough.apply(source, target.detach())


def rotate_to(source: Tensor, target: Tensor) -> Tensor:
    """`target`, with the gradient rotated and scaled as `source` would be to become `target`; both (..., d)."""
    refuse_tangents(_Rotate.operation, source)
    if not (source.requires_grad and torch.is_grad_enabled()):
        return target.detach()
    return _Rotate.apply(source, target.detach())


_ONLY_X = "the gradient of a codebook has no derivative: a second backward pass works for x, not for the codebook"


class _Once(Function):
    operation = "the gradient of a codebook"

    @staticmethod
    def forward(grad: Tensor, words: str, *sources: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.words = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        raise NotImplementedError(ctx.words)


def twice() -> bool:
    """Whether the backward pass that runs now builds a graph, for a second one."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def once(grad: Tensor, *sources: Tensor, words: str = _ONLY_X) -> Tensor:
    """A gradient that depends on `sources` by a formula without a derivative: a second backward pass raises `words`."""
    return _Once.apply(grad, words, *sources)


class _ScaleGradient(Function):
    operation = "a scaled gradient"
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, share: float) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.share = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.share, None


class _KeepAlive(Function):
    operation = "a training step"

    @staticmethod
    def forward(x: Tensor, thing: object) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, object], output: Tensor) -> None:
        ctx.thing = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


def keep_alive(x: Tensor, thing: object) -> Tensor:
    """x, whose graph owns `thing`."""
    return _KeepAlive.apply(x, thing)


def scale_gradient(x: Tensor, share: float) -> Tensor:
    """x, passing on only a share of the gradient."""
    refuse_tangents(_ScaleGradient.operation, x)
    if share <= 0:
        return x.detach()
    return x if share == 1 or not x.requires_grad else _ScaleGradient.apply(x, share)


class _CodebookLoss(Function):
    """mean (x - b[codes])^2 with gradients for both x and b, without an (N, d) gradient for the rows."""

    operation = "the codebook loss"

    @staticmethod
    def forward(
        x: Tensor,
        codebook: Tensor,
        rows: Tensor,
        counts: Tensor,
        sums: Tensor,
        loss: Tensor,
        weight: float,
        elements: Tensor | int,
    ) -> Tensor:
        return loss * (1 + weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, codebook, rows, counts, sums, _, ctx.weight, elements = inputs
        ctx.elements = None if isinstance(elements, Tensor) else elements
        ctx.save_for_backward(x, codebook, rows, counts, sums, elements if isinstance(elements, Tensor) else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, codebook, rows, counts, sums, elements = ctx.saved_tensors
        scale = grad * (2 / (max(ctx.elements, 1) if elements is None else elements))
        grad_x = ((working(x) - rows) * (scale * ctx.weight)).to(x.dtype) if ctx.needs_input_grad[0] else None
        grad_codebook = (counts.unsqueeze(-1) * codebook - sums) * scale if ctx.needs_input_grad[1] else None
        if grad_codebook is not None and twice():
            grad_codebook = once(grad_codebook, x, codebook)
        return grad_x, grad_codebook, None, None, None, None, None, None


def codebook_loss(
    x: Tensor,
    codebook: Tensor,
    rows: Tensor,
    counts: Tensor,
    sums: Tensor,
    loss: Tensor,
    weight: float,
    elements: Tensor | int,
) -> Tensor:
    """|sg(x) - b|^2 + weight * |x - sg(b)|^2, each averaged over `elements`, b = codebook[codes] = `rows`.

    `counts` (M,), `sums` (M, d) and `loss` = mean (x - rows)^2 are results of the quantising pass. The codebook's
    gradient is 2 * (counts * b - sums) / elements, so nothing of size (N, d) is made or scattered for it. Rows that do
    not count are equal in x and `rows`.
    """
    return _CodebookLoss.apply(x, codebook, rows, counts, sums, loss, weight, elements)


class _Round(Function):
    operation = "rounding straight through"
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, down: bool) -> Tensor:
        return x.floor() if down else x.round()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, bool], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


def round_through(x: Tensor, down: bool = False) -> Tensor:
    """x rounded (half to even), or rounded down, with the gradient passed unchanged."""
    return _Round.apply(x, down)


class _Sign(Function):
    operation = "the sign straight through"
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, amplitude: float) -> Tensor:
        return torch.where(x > 0, torch.full_like(x, amplitude), -amplitude)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


def sign_through(x: Tensor, amplitude: float) -> Tensor:
    """+amplitude where x > 0, else -amplitude, with the gradient passed unchanged."""
    return _Sign.apply(x, amplitude)
