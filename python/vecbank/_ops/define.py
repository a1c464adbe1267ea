"""How an op's Python half is registered: its fake kernel, its gradient and its tangent, from one place.

The schemas and kernels are in csrc/torch; loading `_C` registers them as `torch.ops.vecbank.*`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._numpy import entry_point
from .recording import has_lists, recorder
from .tangents import RULES, Registrar

_library = Registrar("vecbank", "FRAGMENT")  # kept: its registrations go with it


def define(
    name: str,
    *,
    fake: Callable[..., Any],
    setup: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    tangent: Callable[..., Tensor] | None = None,
    gradient_of: str | None = None,
) -> None:
    """Registers what `torch.ops.vecbank.<name>` needs beside its kernel.

    Args:
        fake: the fake (meta) kernel: shapes and dtypes without data. It refuses what the real kernel refuses.
        setup, backward: what autograd keeps of a call, and the gradients of its arguments.
        tangent: forward mode, `tangent(tangents, output, *arguments)`. Without one, forward mode is refused by name.
        gradient_of: for an op without `backward` that is itself part of a gradient: what a reader of its error knows it
            as.
    """
    if tangent is not None:
        RULES[name] = tangent  # the registrar looks for it
    torch.library.register_fake(f"vecbank::{name}")(fake)
    if backward is None:
        backward = _refuses(name if gradient_of is None else f"the gradient of {gradient_of} ({name})")
        torch.library.register_autograd(f"vecbank::{name}", backward, lib=_library)
    else:
        backward, op = entry_point(backward), getattr(torch.ops.vecbank, name).default  # users meet its errors too
        if setup is None or has_lists(op):
            torch.library.register_autograd(f"vecbank::{name}", backward, setup_context=setup, lib=_library)
        else:
            _library.impl(name, recorder(op, setup, backward), "Autograd", with_keyset=True)


def _refuses(operation: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            f"vecbank: {operation} has no derivative; a second backward pass needs a loss without it"
        )

    return backward
