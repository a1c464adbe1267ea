"""Random numbers of modules, drawn on the generator's device: those of a CPU generator are the same on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from ._arguments import drawn_by


def source(device: torch.device, generator: Generator | None) -> dict[str, Any]:
    """Keywords of torch's functions that draw. Without a generator the keyword is left out: torch.compile cannot trace
    `generator=None` beside a size that varies.
    """
    generator = drawn_by(generator)
    return {"device": device} if generator is None else {"device": generator.device, "generator": generator}


def uniform(
    shape: int | Sequence[int], like: Tensor, generator: Generator | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform numbers in [0, 1) on `like`'s device."""
    return torch.rand(shape, dtype=dtype, **source(like.device, generator)).to(like.device)


def normal(like: Tensor, generator: Generator | None) -> Tensor:
    """Standard normal numbers of `like`'s shape, dtype and device."""
    return torch.randn(like.shape, dtype=like.dtype, **source(like.device, generator)).to(like.device)


def exponential(like: Tensor, generator: Generator | None) -> Tensor:
    """The same with the exponential distribution."""
    where = source(like.device, generator)
    drawn = torch.empty(like.shape, dtype=like.dtype, device=where.pop("device")).exponential_(**where)
    return drawn.to(like.device)


def permutation(count: int, device: torch.device, generator: Generator | None) -> Tensor:
    """The numbers below `count` in random order, on `device`."""
    return torch.randperm(count, **source(device, generator)).to(device)
