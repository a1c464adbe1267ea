"""The ops as this package calls them: Ctrl-C stops a long one on the CPU within half a second.

An op itself knows nothing of Python. Called through here, on the main thread and where SIGINT has Python's own handler
(`signal.default_int_handler`: scripts, terminals, notebooks), it listens for the signal while it works and gives up,
and KeyboardInterrupt is raised. Elsewhere it is the plain op.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling as _compiling

from .._C import call as _call  # names of this module: every call pays for looking them up; loading _C defines the ops


def _interruptible(op: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        return op(*arguments) if _compiling() else _call(op, *arguments)  # a compiled program calls the op itself

    return call


NAMES = sorted(
    name.removeprefix("vecbank::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("vecbank::") and "." not in name
)
ops = SimpleNamespace(**{name: _interruptible(getattr(torch.ops.vecbank, name).default) for name in NAMES})
