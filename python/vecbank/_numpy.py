"""numpy arrays in, numpy arrays out; and what an op reports, in the words of Python.

The rule: where an argument is a numpy array, the results are numpy arrays and autograd records nothing. A call takes
arrays of one kind: a tensor beside a numpy array is a TypeError. What holds tensors (`Bank`, `ProductCodec`) may be
made of either kind and goes with either kind. Numbers may be numpy's, and arrays or tensors without dimensions.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from ._deprecated import new_keywords

F = TypeVar("F", bound=Callable[..., Any])
_Array = np.ndarray[Any, Any]

_FAMILIES = frozenset({"pq", "residual", "sparse", "cluster", "anchors", "bits"})  # their functions have short names
_MANY = 1 << 20  # a number of this size, or above, is named where memory is missing
# Other subclasses carry a meaning (a mask, a unit) that would be lost.
_ARRAYS = frozenset({np.ndarray, np.memmap})
# What kernels say when memory is missing, what torch's allocators say, and all that is left of that behind the stable
# ABI, where an op allocates its results.
_NO_MEMORY = (
    "out of memory for the workspace",
    "can't allocate memory",
    "not enough memory",
    "Storage size calculation overflowed",
    '"aten::empty"',
    '"aten::new_empty"',
)


@overload
def entry_point(function: F, /) -> F: ...
@overload
def entry_point(**renamed: str) -> Callable[[F], F]: ...
def entry_point(function: Any = None, /, **renamed: str) -> Any:
    """A function that users call: it takes numpy arrays too, and what its ops report comes in the words of Python.

    `@entry_point(old="new")` accepts the keyword `new` by its old name as well.
    """
    if function is None:
        return functools.partial(entry_point, **renamed)
    signature, name = inspect.signature(function), _name(function, ())

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            for old in renamed:
                if old in kwargs:
                    kwargs = new_keywords(name, kwargs, renamed)
        for value in args:
            if type(value) in _ARRAYS:
                return _with_arrays(called, signature.bind(*args, **kwargs))
        if kwargs:
            for value in kwargs.values():
                if type(value) in _ARRAYS:
                    return _with_arrays(called, signature.bind(*args, **kwargs))
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            given = signature.bind(*args, **kwargs).arguments
            plain = _not_dense(given) or plain_error(error, _name(function, args), given)
            if plain is None:
                raise
            raise plain from None

    return called


def _name(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """What a user calls it: a method by the class of its object, a function of a family by its module too."""
    *owner, name = function.__qualname__.split(".")
    if owner and args:
        return type(args[0]).__name__ if name == "__init__" else f"{type(args[0]).__name__}.{name}"
    family = function.__module__.rpartition(".")[2]
    return f"{family}.{name}" if family in _FAMILIES else name.strip("_")


def plain_error(error: RuntimeError, name: str, given: Mapping[str, Any] | None = None) -> Exception | None:
    """What an op, or torch's allocator, reports in `name`, less the line of C++ before it; None where it is neither.

    `given`: the call's arguments, of which the largest number may be why there is not enough memory.
    """
    if type(error) is not RuntimeError:  # its subclasses say what they are
        return None
    text = str(error)
    if any(part in text for part in _NO_MEMORY):
        asked = re.search(r"allocate (\d+) bytes", text)
        size = f" for {asked[1]} bytes" if asked else ""
        numbers = {key: value for key, value in (given or {}).items() if type(value) is int and value >= _MANY}
        most = max(numbers, key=numbers.__getitem__, default=None)
        reason = f" ({most} = {numbers[most]})" if most else ""
        return MemoryError(f"{name}: there is not enough memory{size}{reason}")
    _, found, said = text.partition("vecbank: ")
    if not found:
        return None
    said = said.partition("\n")[0]
    return IndexError(said) if said.startswith("codes must lie") else ValueError(said)


def _not_dense(given: Mapping[str, Any]) -> TypeError | None:
    """Whether an error comes of an argument that is no plain array of numbers. Asked only after one: it costs time."""
    for name, value in given.items():
        if isinstance(value, Tensor) and (value.is_nested or value.layout is not torch.strided):
            kind = "a nested tensor" if value.is_nested else f"one of layout {value.layout}"
            return TypeError(f"{name} must be a dense tensor, got {kind}")
    return None


def _with_arrays(function: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
    """The call with tensors in place of its arrays, and arrays in place of the tensors that it returns."""
    given = bound.arguments
    arrays = {name: value.ndim for name, value in given.items() if type(value) in _ARRAYS}
    array = max(arrays, key=arrays.__getitem__)
    numbers = arrays[array] == 0 and any(isinstance(value, Tensor) and value.dim() for value in given.values())
    for name, value in given.items():
        given[name] = _taken(name, value, None if numbers else array)
    if numbers:  # beside tensors
        return function(*bound.args, **bound.kwargs)
    with torch.no_grad():
        return _returned(function(*bound.args, **bound.kwargs))


def _taken(name: str, value: Any, array: str | None) -> Any:
    """An argument as the functions take it; `array`: the name of one that is a numpy array, and more than a number."""
    if type(value) in _ARRAYS:
        return tensor_of(value, name)
    if isinstance(value, Tensor) and value.dim() > 0 and array is not None:
        raise TypeError(
            f"{name} is a torch tensor and {array} a numpy array: "
            f"pass both as tensors (torch.from_numpy) or both as arrays (Tensor.numpy)"
        )
    if isinstance(value, (list, tuple)):
        return _rebuilt(value, [_taken(name, item, array) for item in value])
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return tensor_of(np.empty(0, value), name).dtype
    return value


def _returned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _array_of(value)
    if isinstance(value, (list, tuple)):
        return _rebuilt(value, [_returned(item) for item in value])
    return value


def _rebuilt(value: Any, items: list[Any]) -> Any:
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


class _Readable:
    """A read-only array, shown to torch without the warning that torch could write into it: no function here does."""

    def __init__(self, array: _Array) -> None:
        self.array = array  # keeps its memory
        self.__array_interface__ = {**array.__array_interface__, "data": (array.__array_interface__["data"][0], False)}


def tensor_of(array: _Array, name: str) -> Tensor:
    """The array as a tensor on its memory, or on a copy where torch cannot read it (byte order, negative strides)."""
    dtype = array.dtype
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise TypeError(f"{name} must hold floats of at most 64 bits, integers or bools, got a numpy array of {dtype}")
    even = all(stride >= 0 and stride % dtype.itemsize == 0 for stride in array.strides)
    if not (even and dtype.isnative and array.flags.aligned):
        array = np.array(array, dtype.newbyteorder("="), order="C")
    elif not array.flags.writeable:
        array = np.asarray(_Readable(array))
    return torch.from_numpy(array)


def _array_of(t: Tensor) -> _Array:
    """The tensor as an array; memory that the caller's arrays own is copied."""
    if t.dtype == torch.bfloat16:
        raise TypeError("the result would be bfloat16, which numpy does not have: pass tensors, or name another dtype")
    if t.device.type == "cpu" and not t.untyped_storage().resizable():
        t = t.clone()
    return t.detach().cpu().numpy()
