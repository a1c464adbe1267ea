"""Forward mode: how the tangents of dual tensors pass through the ops, for `torch.func.jvp`, `jacfwd` and
`torch.autograd.forward_ad`.

`torch.library.register_autograd` knows reverse mode alone: without a look at the tangents first, they would be lost
in silence. The rules are plain torch and our own ops, so that they can be differentiated and mapped like any formula.
They follow the gradients: a norm under the floor is a constant, distance 0 and index -1 have tangent 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

_ops = torch.ops.vecbank
_LEVEL = 0  # torch has but one level of dual tensors; `torch.func` nests its own within it
# `torch.func.jvp` in a compiled program enters the level without a word to `forward_ad`.
_transformed = torch._C._are_functorch_transforms_active
Tangents: TypeAlias = Sequence[Any]  # one for each argument of the op: its tangent, or None
RULES: dict[str, Callable[..., Tensor]] = {}  # of each op that has one; `define` adds them


def total(terms: list[Tensor], like: Tensor) -> Tensor:
    return sum(terms[1:], start=terms[0]).to(like.dtype)


def wide(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.to(dtype) for t in tensors]


def flat(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.reshape(-1, t.shape[-1]) for t in tensors]


def split(tangent: Tensor | None, step: int, dim: int = 0) -> Iterable[Tensor | None]:
    """As `Tensor.split` (slicing would make aliases, which the older vmap does not know); None for ever for None."""
    return itertools.repeat(None) if tangent is None else tangent.split(step, dim)


def linear(name: str, *places: int) -> Callable[..., Tensor]:
    """Linear in the arguments at `places`: the op itself with each tangent in turn in its argument's place."""

    def rule(tangents: Tangents, out: Tensor, *args: Any) -> Tensor:
        op = getattr(_ops, name)
        return total([op(*args[:i], tangents[i], *args[i + 1 :]) for i in places if tangents[i] is not None], out)

    return rule


def _unpack(arg: Any) -> tuple[Any, Any]:
    """An argument and its tangent; a list of tensors has one (a list) if any of them has."""
    if isinstance(arg, Tensor) and arg.is_floating_point():
        return tuple(forward_ad.unpack_dual(arg, level=_LEVEL))
    if isinstance(arg, (list, tuple)):
        pairs = [_unpack(a) for a in arg]
        tangents = [t for _, t in pairs]
        return [p for p, _ in pairs], tangents if any(t is not None for t in tangents) else None
    return arg, None


def _refuse_reverse(name: str) -> Callable[..., None]:
    def hook(grads: Any) -> None:
        if forward_ad._current_level >= 0:
            raise NotImplementedError(
                f"vecbank: {name} has no forward mode of its gradient; call backward after the level of dual tensors"
            )

    return hook


def _no_forward(operation: str) -> NotImplementedError:
    return NotImplementedError(
        f"vecbank: {operation} has no forward-mode derivative; use reverse mode, or detach its inputs"
    )


def refuse_tangents(operation: str, *inputs: Any) -> None:
    """For an operation without forward mode: an error that names it where an input has a tangent, which would be lost
    or refused without a name.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0 or not torch._C._is_fwd_grad_enabled():
        return
    if any(_unpack(a)[1] is not None for a in inputs):
        raise _no_forward(operation)


class Function(torch.autograd.Function):
    """An autograd function that refuses tangents by the name of its operation. It does so before the call, as the
    compiler does not take a function with a `jvp` of its own. `forward` is given every argument, by its place.
    """

    operation: ClassVar[str]

    @classmethod
    def apply(cls, *args: Any) -> Any:
        refuse_tangents(cls.operation, *args)
        if torch.compiler.is_compiling() or _transformed():
            return super().apply(*args)
        # What torch's `apply` does outside of transforms, less a look at the signature of `forward` for defaults, which
        # takes as long as ten small operations.
        return super(torch.autograd.Function, cls).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


class Registrar(torch.library.Library):
    """What `torch.library.register_autograd` registers with: its kernels, behind a look at the tangents."""

    def impl(self, op_name: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        op, rule = getattr(_ops, op_name).default, RULES.get(op_name)

        def forward(args: tuple[Any, ...]) -> Any:
            """None where no argument has a tangent."""
            pairs = [_unpack(a) for a in args]
            if all(t is None for _, t in pairs):
                return None
            if rule is None:
                raise _no_forward(op_name)
            primals = [p for p, _ in pairs]
            out = op(*primals)
            first = out if isinstance(out, Tensor) else out[0]
            # The graph holds no tangents: a gradient worked out within this level would lack its own.
            if first.grad_fn is not None:
                first.grad_fn.register_prehook(_refuse_reverse(op_name))
            tangent = rule([t for _, t in pairs], out, *primals)
            dual = forward_ad.make_dual(first, tangent, level=_LEVEL)
            return dual if isinstance(out, Tensor) else (dual, *out[1:])

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            if (forward_ad._current_level >= 0 or _transformed()) and torch._C._is_fwd_grad_enabled():
                out = forward(args)
                if out is not None:
                    return out
            return fn(keyset, *args, **kwargs)

        super().impl(op_name, kernel, *args, **kwargs)
