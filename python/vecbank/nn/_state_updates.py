"""Writing to the state of a module: outside the graph, and so that torch.export can save a training step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")


def state_update(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Runs without gradients. While torch.export traces it, it runs as it is, as a region without gradients that
    returns nothing cannot be saved; so a function that is decorated is given, and makes, nothing with a gradient.
    """
    without_gradients = torch.no_grad()(function)

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return (function if torch.compiler.is_exporting() else without_gradients)(*args, **kwargs)

    return run


def writable(t: Tensor) -> Tensor:
    """`t` to write to. What autograd has saved of it does not notice a write to `.data`; torch.export, which does not
    follow `.data`, gets a detached view.
    """
    return t.detach() if torch.compiler.is_exporting() else t.data


def write_rows(order: Tensor, count: int | Tensor, *pairs: tuple[Tensor, Tensor]) -> None:
    """old[order[j]] = new[j] for the first `count` numbers j, for pairs of old (n, d) and new (m, d).

    A count on the device writes all rows, as nothing may wait for it. No new row is read beyond the last.
    """
    if isinstance(count, int):
        for old, new in pairs:
            old.index_copy_(0, order[:count], new[:count].to(old.dtype))
        return
    place = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
    for old, new in pairs:
        at = place.clamp_max(new.shape[0] - 1)
        old.copy_(torch.where((place < count).unsqueeze(-1), new[at].to(old.dtype), old.detach()))


def refuse_export(what: str, instead: str) -> None:
    """Refuses, under torch.export, what happens once or goes on outside the graph: a program would not hold it."""
    if torch.compiler.is_exporting():
        raise NotImplementedError(f"torch.export cannot take {what} into a program: {instead}")
