"""What the encoders of `sparse` are given: checked, and in the form in which they use it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import _checks, _sparse
from ._prepared import PreparedBank
from ._sparse import Dictionary


def dictionary_of(x: Tensor, weight: Tensor | PreparedBank, bias: Tensor | None) -> tuple[Dictionary, Tensor]:
    """The rows of a dictionary and the bias, of which a Bank brings both; and x as (n, d)."""
    if not isinstance(weight, PreparedBank):
        return Dictionary(weight, bias, weight), flat_rows(x, weight, bias)
    if weight.metric not in ("dot", None):
        raise ValueError(f'weight as a Bank must have metric "dot", got {weight.metric!r}')
    if bias is not None:
        hint = "" if isinstance(bias, Tensor) else "; name what comes after it (k=, threshold=, norms=)"
        raise ValueError(f"bias must be None beside a Bank, which brings its own, got {type(bias).__name__}{hint}")
    return Dictionary(weight.vectors, weight.bias, weight), flat_rows(x, weight.vectors, weight.bias)


def flat_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _checks.floating("weight", weight)
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise ValueError(f"weight must have shape (K, d) with K > 0, got {tuple(weight.shape)}")
    _checks.pair(x, weight, "weight")
    if bias is not None:
        per_latent("bias", bias, weight)
        if bias.dtype != weight.dtype:
            raise TypeError(f"bias must have the dtype of weight ({weight.dtype}), got {bias.dtype}")
    return x.unsqueeze(0).flatten(0, -2)


def per_latent(name: str, t: Tensor, weight: Tensor) -> None:
    """`t` has a number for each latent."""
    _checks.floating(name, t)
    if t.shape != weight.shape[:1]:
        raise ValueError(f"{name} must have shape ({weight.shape[0]},), got {tuple(t.shape)}")
    same_device(name, t, weight)


def same_device(name: str, t: Tensor, weight: Tensor) -> None:
    if t.device != weight.device:
        raise ValueError(f"{name} must be on the device of weight {weight.device}, got {t.device}")


def count_of(name: str, k: object, latents: int) -> int:
    if k is None:
        raise TypeError(f"{name} must be an int, the number of latents that a row keeps, and was not given")
    count = _checks.integer(name, k)
    if not 1 <= count <= latents:
        raise ValueError(f"{name} must lie between 1 and the number of latents {latents}, got {count}")
    return count


def thresholds(threshold: object, weight: Tensor) -> Tensor:
    """One threshold for each latent (K,), in the dtype of values."""
    latents, dtype = weight.shape[0], _sparse.value_dtype(weight)
    if not isinstance(threshold, Tensor):
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.integer, np.floating)):
            raise TypeError(f"threshold must be a number or a tensor, got {type(threshold).__name__}")
        if not threshold >= 0:
            raise ValueError(f"threshold must not be negative or NaN, got {threshold}")
        return weight.new_full((latents,), float(threshold), dtype=dtype)
    _checks.floating("threshold", threshold)
    if threshold.shape not in ((), (latents,)):
        raise ValueError(f"threshold must be a number or have shape ({latents},), got {tuple(threshold.shape)}")
    same_device("threshold", threshold, weight)
    if _checks.readable(threshold) and not bool((threshold >= 0).all()):
        raise ValueError("threshold must not be negative or NaN, and some of its numbers are")
    return threshold.expand(latents).to(dtype)


def bounded_under_export(max_k: int | None) -> None:
    if max_k is None and torch.compiler.is_exporting():
        raise ValueError("max_k must be given under torch.export: without it the lists are as long as the data say")


def like_input(x: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [t.reshape(*x.shape[:-1], t.shape[-1]) for t in tensors]
