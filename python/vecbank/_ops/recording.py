"""How autograd records a call of an op: what `torch.library.register_autograd` registers, less what that works out anew
at every call. (To read the defaults of the op's schema alone takes it longer than a small product.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead

_recording, _any_requires_grad = torch.is_grad_enabled, torch._C._any_requires_grad
# The ops that autograd records this way: how each is called where nobody but autograd is to see the call.
RECORDED: dict[Any, Callable[..., Any]] = {}
_BelowAutograd, _after_autograd = torch._C._AutoDispatchBelowAutograd, torch._C._after_autograd_keyset


def has_lists(op: Any) -> bool:
    """Whether an argument is a list of tensors, which a `torch.autograd.Function` does not look into."""
    return any("[]" in str(argument.type) or "List[" in str(argument.type) for argument in op._schema.arguments)


def recorder(op: Any, setup: Callable[..., None], backward: Callable[..., Any]) -> Callable[..., Any]:
    """The autograd kernel of an op without lists of tensors; `setup` and `backward` as for `register_autograd`."""
    arguments = op._schema.arguments
    assert not has_lists(op) and not any(argument.kwarg_only for argument in arguments), op
    # The dispatcher leaves out the last arguments where they equal their defaults.
    defaults = tuple(argument.default_value if argument.has_default_value() else None for argument in arguments)

    def forward(ctx: Any, *args: Any) -> Any:
        *inputs, keyset = args
        with _BelowAutograd():
            result = op(*inputs) if keyset is None else op.redispatch(keyset & _after_autograd, *inputs)
            setup(ctx=ctx, inputs=(*inputs, *defaults[len(inputs) :]), output=result)
        return result

    def backwards(ctx: Any, *grads: Any) -> Any:
        needs = ctx.needs_input_grad
        try:
            ctx.needs_input_grad = needs[:-1]  # the last is the key set
            return (*backward(ctx, *grads), None)
        finally:
            ctx.needs_input_grad = needs

    name = f"GeneratedBackwardFor_{op._namespace}_{op._opname}_{op._overloadname}"
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backwards)}
    recorded: Any = type(name, (torch.autograd.Function,), methods)

    # What torch's `apply` does outside of transforms.
    plain_apply = super(torch.autograd.Function, recorded).apply
    RECORDED[op] = lambda *args: plain_apply(*[unwrap_if_dead(a) if isinstance(a, Tensor) else a for a in args], None)

    def kernel(keyset: Any, *args: Any) -> Any:
        if _recording() and _any_requires_grad(*args):
            return recorded.apply(*args, keyset)
        with _BelowAutograd():
            return op.redispatch(keyset & _after_autograd, *args)

    return kernel
