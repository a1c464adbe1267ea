"""Writing to books: outside the graph, and so that torch.export can save a training step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")


def moving(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Runs without gradients. While torch.export traces it runs as it is, as a region without gradients that returns
    nothing cannot be saved; so a function that is decorated is given, and makes, nothing that has a gradient.
    """
    silent = torch.no_grad()(function)

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return (function if torch.compiler.is_exporting() else silent)(*args, **kwargs)

    return run


def writable(t: Tensor) -> Tensor:
    """t, to be written to behind the back of what autograd has saved of it, which torch.export does not follow."""
    return t.detach() if torch.compiler.is_exporting() else t.data


def not_exported(what: str, instead: str) -> None:
    """Refuses, under torch.export, what happens once or goes on outside the graph: a program would not hold it."""
    if torch.compiler.is_exporting():
        raise NotImplementedError(f"torch.export cannot take {what} into a program: {instead}")
