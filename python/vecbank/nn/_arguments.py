"""Checks of the arguments of modules: each error names the argument, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Generator, OutOfMemoryError, Tensor

from .. import _checks, _deprecated
from .._checks import integers as integers
from .._checks import rows as rows
from .._checks import tensor as tensor

floats = _checks.dense
_NO_MEMORY = ("allocate memory", "out of memory", "overflow")  # in torch's errors about allocations that fail


def whole(name: str, value: object, least: int = 1, most: int | None = None, called: str = "") -> int:
    """An int from `least` to `most`; numpy's integers count as ints. `called`: the argument that `most` is."""
    number = _checks.integer(name, value)
    if number < least or (most is not None and number > most):
        limit = f"{called} = {most}" if called else str(most)
        limits = f"be at least {least}" if most is None else f"lie between {least} and {limit}"
        raise ValueError(f"{name} must {limits}, got {number}")
    return number


def maybe_whole(name: str, value: object, least: int = 1, most: int | None = None, called: str = "") -> int | None:
    """The same, or None."""
    return None if value is None else whole(name, value, least, most, called)


def wholes(name: str, values: object, least: int = 1) -> list[int]:
    """A list of such ints, from any sequence but an empty one."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) != 1:
        raise TypeError(f"{name} must be a sequence of ints, got {values!r}")
    found = [whole(f"{name}[{i}]", value, least) for i, value in enumerate(values)]
    if not found:
        raise ValueError(f"{name} must hold at least one number, got none")
    return found


def number(name: str, value: object, low: float = 0.0, high: float = math.inf, above: bool = False) -> float:
    """A finite number from `low` to `high`, or `above` low. Tensors without dimensions pass as they are."""
    _checks.number(name, value)
    given = float(value)  # type: ignore[arg-type]
    if not (low < given if above else low <= given) or not given <= high or math.isinf(given):
        least = f"be {'greater than' if above else 'at least'} {low:g}"
        limits = least if high == math.inf else f"lie between {low:g} and {high:g}"
        raise ValueError(f"{name} must {limits} and be finite, got {value}")
    return value  # type: ignore[return-value]


def numbers(low: float = 0.0, high: float = math.inf, above: bool = False, /, **values: object) -> None:
    """`number` for each of several arguments."""
    for name, value in values.items():
        number(name, value, low, high, above)


def maybe_numbers(low: float = 0.0, high: float = math.inf, above: bool = False, /, **values: object) -> None:
    """The same; None passes."""
    numbers(low, high, above, **{name: value for name, value in values.items() if value is not None})


def drawn_by(value: object) -> Generator | None:
    """The generator of a module's draws; None stands for torch's default one."""
    if value is None or isinstance(value, Generator):
        return value
    raise TypeError(
        f"generator must be a torch.Generator or None, got {type(value).__name__} "
        f"(torch.Generator().manual_seed(seed) makes one)"
    )


def function(name: str, value: object) -> None:
    """A module or another function, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(value).__name__}")


def features(name: str, x: object, width: int) -> None:
    """`x` is a floating-point tensor (..., width)."""
    floats(name, x)
    assert isinstance(x, Tensor)
    if x.dim() == 0 or x.shape[-1] != width:
        raise ValueError(f"{name} must have shape (..., {width}), got {tuple(x.shape)}")


def warn(message: str) -> None:
    """A UserWarning at the caller's line, outside of this package and of torch. A compiled program does not warn."""
    if not torch.compiler.is_compiling():
        _deprecated.warn(message, UserWarning)


@contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Turns torch's error about missing memory into a MemoryError that says for what; a GPU's error keeps its class."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except RuntimeError as error:
        if any(words in str(error) for words in _NO_MEMORY):
            raise MemoryError(f"not enough memory for {what}") from None
        raise
