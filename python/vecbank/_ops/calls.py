"""The ops as this package calls them: Ctrl-C stops a long one on the CPU within half a second.

An op itself knows nothing of Python. Called through here, on the main thread and where SIGINT has Python's own handler
(`signal.default_int_handler`: scripts, terminals, notebooks), it listens for the signal while it works and gives up,
and KeyboardInterrupt is raised. Elsewhere it is the plain op.

Where autograd has nothing to do, a call goes past it: our autograd kernels are Python (`torch.library`), and to enter
and leave one takes longer than a small search.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling as _compiling

from .._C import call as _call  # names of this module: every call pays for looking them up; loading _C defines the ops
from .recording import RECORDED

_recording, _any_requires_grad = torch.is_grad_enabled, torch._C._any_requires_grad
_transformed, _overridden = torch._C._are_functorch_transforms_active, torch._C._has_torch_function
_dispatched = torch._C._len_torch_dispatch_stack
_BelowAutograd = torch._C._AutoDispatchBelowAutograd


_PLAIN = frozenset({Tensor, torch.nn.Parameter, int, bool, type(None)})  # no subclasses of tensors


def _interruptible(op: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if _compiling():
            return op(*arguments)  # a compiled program calls the op itself
        # Not `_unseen_by_autograd`, written out: a call of a function costs as much as most of its answer.
        if forward_ad._current_level >= 0 or _transformed() or _overridden(arguments):
            return _call(op, *arguments)
        if _recording() and _any_requires_grad(*arguments):
            return _call(RECORDED.get(op, op) if _dispatched() == 0 else op, *arguments)
        with _BelowAutograd():
            return _call(op, *arguments)

    return call


def _unseen_by_autograd(arguments: tuple[Any, ...]) -> bool:
    """Whether autograd would hand the call on as it is: it wants no gradient and has no tangent, nothing transforms it,
    and no `__torch_function__` takes it (which would run below autograd too).
    """
    return not (
        (_recording() and _any_requires_grad(*arguments))
        or forward_ad._current_level >= 0
        or _transformed()
        or _overridden(arguments)
    )


def as_if_op(function: Callable[..., Any], *arguments: Any) -> Any:
    """What an op written in Python returns, called without its dispatch; None where somebody would see the op."""
    if _compiling() or torch._C._len_torch_dispatch_stack() > 0 or not _unseen_by_autograd(arguments):
        return None
    for value in arguments:
        if type(value) not in _PLAIN and isinstance(value, Tensor):
            return None
    with _BelowAutograd():
        return _call(function, *arguments)


NAMES = sorted(
    name.removeprefix("vecbank::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("vecbank::") and "." not in name
)
ops = SimpleNamespace(**{name: _interruptible(getattr(torch.ops.vecbank, name).default) for name in NAMES})
