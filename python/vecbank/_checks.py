"""Argument checks shared by the functions: each names the argument, what came and what was expected."""

from __future__ import annotations

import operator
from collections.abc import Callable
from numbers import Real
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Generator, Tensor
from torch.autograd import forward_ad

from ._ops.names import METRICS

_HALF = (torch.bfloat16, torch.float16)
_FLOATS = (torch.float32, torch.float64, *_HALF)
_INTEGERS = tuple(getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64))


def tensor(name: str, t: object) -> None:
    """`t` is a tensor. (That it is no sparse one is not asked here, at every call: `entry_point` says so of errors.)"""
    if isinstance(t, Tensor):
        return
    if type(t) is np.ndarray:
        raise TypeError(
            f"{name} must be a torch.Tensor (torch.from_numpy makes one), got a numpy array: modules take tensors "
            f"alone, and functions take arrays where all their arguments are arrays"
        )
    raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")


def floating(name: str, t: object) -> None:
    """`t` is a floating-point tensor."""
    tensor(name, t)
    assert isinstance(t, Tensor)
    if t.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {t.dtype}")


def inside_ball(name: str, rows: Tensor, curvature: float = 1.0) -> None:
    """Every row lies inside the ball. Looked for on the CPU alone; elsewhere a row outside of it scores NaN."""
    if rows.numel() == 0 or not readable(rows):
        return
    norms = torch.linalg.vector_norm(rows.detach(), dim=-1, dtype=torch.float64) * curvature**0.5
    outside = norms >= 1
    if bool(outside.any()):
        first = outside.reshape(-1).nonzero()[0, 0]
        norm = float(norms.reshape(-1)[first]) / curvature**0.5
        raise ValueError(
            f"{name} must lie inside the ball of radius {curvature**-0.5:.9g} (curvature {curvature:g}), got a norm of "
            f"{norm:.9g} in row {int(first)} (vecbank.Poincare(c).into_ball makes points of the ball)"
        )


def dense(name: str, t: object) -> None:
    """`t` is a dense floating-point tensor."""
    floating(name, t)
    assert isinstance(t, Tensor)
    if t.layout is not torch.strided or t.is_nested:
        kind = "a nested tensor" if t.is_nested else f"one of layout {t.layout} ({name}.to_dense() makes it dense)"
        raise TypeError(f"{name} must be a dense tensor, got {kind}")


def shaped(name: str, t: object, axes: tuple[str | int, ...]) -> None:
    """`t` is a floating-point tensor with these axes: a number is a size, a word stands for any."""
    floating(name, t)
    assert isinstance(t, Tensor)
    shape = tuple(t.shape)
    fits = len(shape) == len(axes)
    if fits:
        for n, m in zip(axes, shape):  # noqa: B905  # as long as one another; a loop costs less than `any`
            if not isinstance(n, str) and n != m:
                fits = False
    if not fits:
        expected = ", ".join(str(n) for n in axes) + ("," if len(axes) == 1 else "")
        raise ValueError(f"{name} must have shape ({expected}), got {shape}")


def float_dtype(name: str, value: object) -> None:
    """`value` is a dtype of vectors."""
    if value not in _FLOATS:
        raise TypeError(f"{name} must be torch.float32, float64, bfloat16 or float16, got {value!r}")


def number(name: str, value: object) -> None:
    """`value` is a number: Python's, numpy's, or a real tensor without dimensions."""
    plain = isinstance(value, (Real, torch.SymInt, torch.SymFloat)) and not isinstance(value, bool)
    if not plain and not (isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex()):
        kind = f" {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else ""
        raise TypeError(f"{name} must be a number, got {type(value).__name__}{kind}")


def scale(value: object, shape: torch.Size) -> None:
    """`value` is a number, or a tensor that broadcasts to `shape`."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        number("scale", value)
    elif value.is_complex():
        raise TypeError(f"scale must be real, got {value.dtype}")
    elif value.dim() > len(shape) or any(
        n != 1 and n != m for n, m in zip(value.shape, shape[len(shape) - value.dim() :], strict=True)
    ):
        raise ValueError(f"scale must be a number or broadcast to {tuple(shape)}, got {tuple(value.shape)}")


def boolean(name: str, t: object, meaning: str) -> None:
    """`t` is a mask."""
    tensor(name, t)
    assert isinstance(t, Tensor)
    if t.dtype != torch.bool:
        raise TypeError(f"{name} must be bool (True = {meaning}), got {t.dtype}")
    if t.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {t.layout}")


def valid_rows(valid: object, x: Tensor) -> None:
    """`valid` says which rows of x (..., d) count."""
    boolean("valid", valid, "the row counts")
    assert isinstance(valid, Tensor)
    if valid.shape != x.shape[:-1]:
        raise ValueError(
            f"valid must have x's shape less the last dimension {tuple(x.shape[:-1])}, got {tuple(valid.shape)}"
        )


def integer(name: str, value: object) -> int:
    """`value` as an int of 64 bits: Python's, numpy's, or an array or tensor of integers without dimensions."""
    if type(value) is int:
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{name} must be an int of at most 64 bits, got {value}")
        return value
    return index(name, value)


def index(name: str, value: object) -> int:
    """The same without a limit."""
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return value  # type: ignore[return-value]  # a SymInt is to stay one
    if isinstance(value, (np.integer, np.ndarray, Tensor)) and value.ndim == 0 and value.dtype is not torch.bool:
        try:
            return operator.index(value)
        except TypeError:
            pass
    kind = f" {tuple(value.shape)} of {value.dtype}" if isinstance(value, (np.ndarray, Tensor)) else ""
    raise TypeError(f"{name} must be an int, got {type(value).__name__}{kind}")


def at_least(low: int, name: str, value: object) -> int:
    """`value` as an int that is not below `low`."""
    found = integer(name, value)
    if found < low:
        raise ValueError(f"{name} must be at least {low}, got {found}")
    return found


def generator(value: Generator | SupportsIndex | None) -> Generator | None:
    """The source of draws that `value` names: a generator, the seed of a new one on the CPU, or torch's own (None)."""
    if value is None or isinstance(value, Generator):
        return value
    try:
        seed = index("generator", value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"generator must be a torch.Generator, a seed (int) or None, got {kind}") from None
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"generator must be a seed of 64 bits, got {seed}")
    return Generator().manual_seed(seed)


def pair(x: Tensor, bank: Tensor, name: str = "bank", of: str = "x") -> None:
    """x (..., d) fits bank (M, d), or x (B, N, d) fits bank (B, M, d); messages call them `of` and `name`."""
    if not isinstance(x, Tensor) or (dtype := x.dtype) not in _FLOATS:  # each look at a tensor costs time here
        if isinstance(x, Tensor) and x.dtype is torch.uint8:
            raise TypeError(
                f"{of} and {name} must be of one kind, got packed bits (uint8) and vectors ({bank.dtype}): packed bits "
                'are compared with packed bits, by metric="hamming"'
            )
        floating(of, x)
    if dtype is not (wanted := bank.dtype) and not (dtype in _HALF and wanted is torch.float32):
        raise TypeError(
            f"{of} and {name} must share a dtype (or {of} be bfloat16/float16 with a float32 {name}), "
            f"got {of} {dtype} and {name} {wanted}"
            f"{' (float64 is what numpy makes by default)' if torch.float64 in (dtype, wanted) else ''}"
        )
    shape, rows = x.shape, bank.shape
    if not shape:
        raise ValueError(f"{of} must have shape (..., d), got a scalar")
    if shape[-1] != rows[-1]:
        raise ValueError(
            f"{of} and {name} must have the same last dimension, got {of} {tuple(shape)} and {name} {tuple(rows)}"
        )
    if len(rows) == 3 and (len(shape) != 3 or shape[0] != rows[0]):
        raise ValueError(
            f"{of} must be (B, N, d) with the B of a batched {name} (B, M, d), "
            f"got {of} {tuple(shape)} and {name} {tuple(rows)}"
        )
    if x.device != bank.device:
        raise ValueError(f"{of} and {name} must be on one device, got {of} on {x.device} and {name} on {bank.device}")


def vectors(name: str, t: object) -> None:
    """`t` is a bank: (M, d) or (B, M, d)."""
    if not isinstance(t, Tensor) or t.dtype not in _FLOATS:
        floating(name, t)
    assert isinstance(t, Tensor)
    if t.dim() not in (2, 3):
        raise ValueError(f"{name} must have shape (M, d) or (B, M, d), got {tuple(t.shape)}")


def bias(t: object, vectors: Tensor, metric: int) -> None:
    """`t` adds a number to every row's dot product."""
    floating("bias", t)
    assert isinstance(t, Tensor)
    if vectors.dim() != 2 or metric != METRICS["dot"]:
        raise ValueError(
            f"bias goes with a bank (M, d) and the dot metric, "
            f"got a bank {tuple(vectors.shape)} and the metric {list(METRICS)[metric]!r}"
        )
    if t.shape != vectors.shape[:1] or t.dtype != vectors.dtype:
        raise ValueError(
            f"bias must be (M,) = ({vectors.shape[0]},) in {vectors.dtype}, got {tuple(t.shape)} {t.dtype}"
        )
    if t.device != vectors.device:
        raise ValueError(f"bias must be on the vectors' device {vectors.device}, got {t.device}")


def codes(t: object, name: str = "codes") -> None:
    """`t` is an int64 tensor."""
    tensor(name, t)
    assert isinstance(t, Tensor)
    if t.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {t.dtype}")


def integral(t: object, name: str) -> None:
    """`t` is a tensor of integers, of any width."""
    tensor(name, t)
    assert isinstance(t, Tensor)
    if t.dtype not in _INTEGERS:
        raise TypeError(f"{name} must be integers, got {t.dtype}")


def integers(t: object, name: str = "codes") -> Tensor:
    """`t` as int64: codes are kept in narrower integers as well."""
    tensor(name, t)
    assert isinstance(t, Tensor)
    if t.dtype is torch.int64:
        return t
    integral(t, name)
    numbers = t.to(torch.int64)
    if t.dtype is torch.uint64:  # -1 would say that there is none
        if readable(numbers) and bool((numbers < 0).any()):
            raise IndexError(f"{name} must lie below 2^63, got larger ones")
        numbers = torch.where(numbers < 0, torch.iinfo(torch.int64).max, numbers)
    return numbers


def rows(t: object, count: int, name: str = "codes") -> Tensor:
    """`t` as int64 row numbers below `count`, or -1."""
    numbers = integers(t, name)
    in_range(numbers, count, name)
    return numbers


def in_range(t: Tensor, count: int, name: str = "codes", low: int = -1, kind: type[Exception] = IndexError) -> bool:
    """Every code is -1 or a row number. Not checked while tracing: the kernel checks again.

    Returns whether all of them have been seen to be row numbers.
    """
    if t.numel() == 0 or not readable(t):
        return False
    ends = torch.aminmax(t)
    least, most = int(ends[0].item()), int(ends[1].item())
    if least < low or most >= count:
        raise kind(f"{name} must lie between {low} and {count - 1}, got values from {least} to {most}")
    return least >= 0


def by_kernel(op: Callable[..., Tensor], t: Tensor, count: int, name: str, *arguments: object) -> Tensor:
    """The op, which looks at the codes `t` itself. Where it refuses them, they are read here, to say what they are."""
    if torch.compiler.is_compiling():
        return op(*arguments)
    try:
        return op(*arguments)
    except RuntimeError as error:
        refused = error
    try:
        in_range(t, count, name)
        raise refused
    finally:
        del refused  # its traceback holds this frame


def only_rows(vectors: Tensor, numbers: Tensor, count: int) -> Tensor:
    """Vectors (..., d) made by arithmetic from numbers (...), as a table of `count` rows has them: zeros for -1, NaN
    for numbers that `in_range` has not looked at (on a GPU, in a traced program).
    """
    inside = (numbers >= 0) & (numbers < count)
    nothing = torch.where(numbers == -1, 0.0, torch.nan).to(vectors.dtype)
    return torch.where(inside.unsqueeze(-1), vectors, nothing.unsqueeze(-1))


def stacked_rows(t: object, count: int, tables: int, table: Tensor, name: str = "codes") -> Tensor:
    """Codes as rows of `tables` tables of `count` rows, laid one after the other; `table`: which one a code is of.

    -1 stays, and a code that `in_range` has not looked at does not become a row of another table: it goes past the
    end, where `lookup` notices.
    """
    codes = integers(t, name)
    seen, places = in_range(codes, count, name), codes + count * table
    if seen:
        return places
    missing = torch.where(codes == -1, -1, count * tables)
    return torch.where((codes < 0) | (codes >= count), missing, places)


def readable(t: Tensor) -> bool:
    """Its numbers can be looked at without waiting for a device, and not while tracing."""
    return t.is_cpu and not torch.compiler.is_compiling() and concrete(t)


def plain(t: Tensor) -> bool:
    """No more than its numbers, on the CPU: nothing follows what becomes of them, forwards or backwards."""
    return not t.requires_grad and forward_ad._current_level < 0 and readable(t)


def concrete(t: Tensor) -> bool:
    """Tensors with values to look at: fake and functorch tensors, and others that dispatch by themselves, have none."""
    kind = type(t)
    if (
        kind is not Tensor
        and kind is not torch.nn.Parameter
        and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__
    ):
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(t)


def weights(t: object, codes: Tensor, dtype: torch.dtype) -> None:
    """`t` weighs each code."""
    floating("weights", t)
    assert isinstance(t, Tensor)
    if t.shape != codes.shape:
        raise ValueError(f"weights must have the shape of codes {tuple(codes.shape)}, got {tuple(t.shape)}")
    if t.dtype != dtype:
        raise TypeError(f"weights must have the dtype of the rows they weigh ({dtype}), got {t.dtype}")


def radii(r: object, x: Tensor, metric: str | None = None, *, signed: bool = False) -> Tensor:
    """Radii as (N,) float64, one for each row of x (..., d); `signed`: they may be negative. `metric`: for messages."""
    lead = x.shape[:-1]
    if isinstance(r, Tensor) and r.dim() > 0:
        if r.is_complex() or r.dtype is torch.bool:
            raise TypeError(f"r must hold numbers, got {r.dtype}")
        if r.device != x.device:
            raise ValueError(f"r must be on x's device {x.device}, got {r.device}")
        try:
            found = r.detach().double().expand(lead)
        except RuntimeError:
            raise ValueError(f"r must be a number or broadcast to {tuple(lead)}, got {tuple(r.shape)}") from None
    else:
        number("r", r)
        given: Any = r
        if isinstance(given, Tensor) and given.is_meta and not x.is_meta:
            raise ValueError(f"r must be on x's device {x.device}, got {given.device}")
        wide = given.detach() if isinstance(given, Tensor) else torch.tensor(float(given), dtype=torch.float64)
        found = wide.to(x.device, torch.float64).expand(lead)
    if readable(found) and found.numel():
        if bool(found.isnan().any()):
            raise ValueError("r must be a number, got NaN")
        if not signed and bool((found < 0).any()):
            of = "" if metric is None else f' for the distance "{metric}"'
            raise ValueError(f"r must not be negative{of}, got {float(found.min()):g}")
    return found.reshape(-1).contiguous()


def listed(indices: object, x: Tensor, count: int) -> Tensor:
    """Row numbers (..., k) for x (..., d), below `count` or -1, as int64."""
    found = rows(indices, count, "indices")
    if found.dim() != x.dim() or found.shape[:-1] != x.shape[:-1]:
        expected = f"({', '.join(str(n) for n in x.shape[:-1])}{', ' if x.dim() > 1 else ''}k)"
        raise ValueError(f"indices must have shape {expected} for x {tuple(x.shape)}, got {tuple(found.shape)}")
    if found.device != x.device:
        raise ValueError(f"indices must be on x's device {x.device}, got {found.device}")
    return found
