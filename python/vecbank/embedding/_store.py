"""What every store of rows has: its bytes, and the checks of its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _checks


def stored_bytes(tensors: Iterable[Tensor | None]) -> int:
    """The bytes of the tensors (or numpy arrays) of a store, exactly.

    Args:
        tensors: any iterable of them; None counts nothing.

    Returns:
        An int.

    Raises:
        TypeError: something in `tensors` is neither a tensor, an array nor None.

    Example:
        >>> import torch, vecbank
        >>> vecbank.embedding.stored_bytes([torch.zeros(10, 4), None, torch.zeros(10, dtype=torch.uint8)])
        170
    """
    total = 0
    for t in tensors:
        if t is not None and not isinstance(t, (Tensor, np.ndarray)):
            raise TypeError(f"tensors must hold tensors, numpy arrays or None, got {type(t).__name__}")
        total += 0 if t is None else t.nbytes
    return total


def check_packed(name: str, t: Tensor) -> None:
    """`t` holds packed rows."""
    _checks.tensor(name, t)
    if t.dtype != torch.uint8 or t.dim() != 2:
        raise TypeError(f"{name} must be uint8 of shape (V, bytes), got {t.dtype} {tuple(t.shape)}")


def check_store(rows: Any, kind: type[NamedTuple], floats: str) -> None:
    """`rows` is a store of this kind: tensors of integers, and one of floats, called so."""
    if not isinstance(rows, kind):
        raise TypeError(f"rows must be {kind.__name__}, got {type(rows).__name__}")
    for name, t in zip(kind._fields, rows, strict=True):
        if name == floats:
            _checks.floating(f"rows.{name}", t)
        else:
            _checks.integral(t, f"rows.{name}")
