"""Fake (meta) kernels: shapes and dtypes without data, for torch.compile, torch.export and the meta device.

A fake kernel refuses what the real one refuses: otherwise a call of mixed devices reaches the wrong kernel, and a
traced program fails later than it should.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _C
from ._codes import ESTIMATORS, METRICS, REDUCTIONS

_HALF = (torch.bfloat16, torch.float16)
_FLOATS = (torch.float32, torch.float64, *_HALF)


def _check(condition: bool, message: str) -> None:
    torch._check(condition, lambda: f"vecbank: {message}")


def _same_device(first: Tensor, *others: Tensor | None) -> None:
    for other in others:
        if other is not None:
            _check(other.device == first.device, f"arguments are on {first.device} and on {other.device}")


def _check_bank(bank: Tensor, metric: int) -> None:
    _check(bank.dim() in (2, 3), f"bank must be (M, d) or (B, M, d), got {tuple(bank.shape)}")
    _check(bank.dtype in _FLOATS, f"bank must be floating point, got {bank.dtype}")
    _check(0 <= metric < len(METRICS), f"metric must be 0 to {len(METRICS) - 1}, got {metric}")


def _check_pair(x: Tensor, bank: Tensor, metric: int, pack: Tensor | None = None) -> None:
    _same_device(x, bank, pack)
    _check_bank(bank, metric)
    _check(x.dim() >= 1, "x must have at least one dimension, got a scalar")
    _check(
        x.shape[-1] == bank.shape[-1], f"x {tuple(x.shape)} and bank {tuple(bank.shape)} differ in their last dimension"
    )
    if bank.dim() == 3:
        _check(x.dim() == 3 and x.shape[0] == bank.shape[0], f"a batched bank {tuple(bank.shape)} needs x (B, N, d)")
    _check(
        x.dtype == bank.dtype or (x.dtype in _HALF and bank.dtype == torch.float32),
        f"x ({x.dtype}) and bank ({bank.dtype}) must share a dtype, or x be 16-bit with a float32 bank",
    )
    _check(pack is None or pack.dtype == torch.uint8, "pack must be what vecbank::pack returned")


def _check_bias(bias: Tensor | None, bank: Tensor, metric: int) -> None:
    if bias is None:
        return
    _same_device(bank, bias)
    _check(metric == METRICS["dot"] and bank.dim() == 2, "a bias goes with the dot metric and a bank (M, d)")
    _check(
        bias.shape == bank.shape[:1] and bias.dtype == bank.dtype,
        f"bias must be (M,) in the bank's dtype, got {tuple(bias.shape)} {bias.dtype}",
    )


def _check_mask(mask: Tensor | None, x: Tensor, shape: tuple[int, ...]) -> None:
    if mask is None:
        return
    _same_device(x, mask)
    _check(mask.dtype == torch.bool, f"mask must be bool, got {mask.dtype}")
    _check(tuple(mask.shape) == shape, f"mask must have shape {shape}, got {tuple(mask.shape)}")


def _check_codes(codes: Tensor, rows: Tensor, weights: Tensor | None) -> None:
    _same_device(codes, rows, weights)
    _check(codes.dtype == torch.int64, f"codes must be int64, got {codes.dtype}")
    _check(rows.dtype in _FLOATS, f"rows must be floating point, got {rows.dtype}")
    if weights is not None:
        _check(
            weights.shape == codes.shape, f"weights {tuple(weights.shape)} must have codes' shape {tuple(codes.shape)}"
        )
        _check(weights.dtype == rows.dtype, f"weights ({weights.dtype}) must have the rows' dtype ({rows.dtype})")


def _check_source(src: Tensor, codes: Tensor) -> None:
    """src (..., d) with codes (...) or (..., k)."""
    _check(src.dim() >= 1, "src must have at least one dimension, got a scalar")
    _check(
        codes.dim() in (src.dim() - 1, src.dim()) and codes.shape[: src.dim() - 1] == src.shape[:-1],
        f"codes {tuple(codes.shape)} must be (...) or (..., k) for src {tuple(src.shape)}",
    )


def _value_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.register_fake("vecbank::pack")
def _(bank: Tensor, metric: int, bias: Tensor | None = None, stamp: bool = False) -> Tensor:
    _check_bank(bank, metric)
    _check_bias(bias, bank, metric)
    size = _C.pack_bytes(bank.shape[-2], bank.shape[-1], metric, bias is not None)  # symbolic where the shape is
    return bank.new_empty((*bank.shape[:-2], size), dtype=torch.uint8)


@torch.library.register_fake("vecbank::repack_")
def _(pack: Tensor, bank: Tensor, metric: int, rows: Tensor, bias: Tensor | None = None, stamp: bool = False) -> None:
    _check_bank(bank, metric)
    _check_bias(bias, bank, metric)
    _same_device(bank, rows, pack)
    _check(bank.dim() == 2, f"bank must be (M, d), got {tuple(bank.shape)}")
    _check(rows.dtype == torch.int64 and rows.dim() == 1, f"rows must be int64 (R,), got {rows.dtype}")
    _check(pack.dtype == torch.uint8, f"pack must be uint8, got {pack.dtype}")


@torch.library.register_fake("vecbank::project")
def _(x: Tensor, bank: Tensor, pack: Tensor | None, metric: int, out_dtype: torch.dtype | None = None) -> Tensor:
    _check_pair(x, bank, metric, pack)
    _check(out_dtype is None or out_dtype in _FLOATS, f"out_dtype must be floating point, got {out_dtype}")
    return x.new_empty((*x.shape[:-1], bank.shape[-2]), dtype=out_dtype or x.dtype)


@torch.library.register_fake("vecbank::exact_scores")
def _(
    x: Tensor, bank: Tensor, metric: int, out_dtype: torch.dtype | None = None, indices: Tensor | None = None
) -> Tensor:
    _check_pair(x, bank, metric)
    _check(out_dtype is None or out_dtype in _FLOATS, f"out_dtype must be floating point, got {out_dtype}")
    columns = bank.shape[-2]
    if indices is not None:
        _same_device(x, indices)
        _check(indices.dtype == torch.int64, f"codes must be int64, got {indices.dtype}")
        _check(
            bank.dim() == 2 and indices.dim() == x.dim() and indices.shape[:-1] == x.shape[:-1],
            f"indices go with a bank (M, d), and must be (..., k) for x (..., d), got {tuple(indices.shape)}",
        )
        columns = indices.shape[-1]
    return x.new_empty((*x.shape[:-1], columns), dtype=out_dtype or x.dtype)


def check_project_backward(
    grad: Tensor,
    x: Tensor,
    bank: Tensor,
    metric: int,
    row_least: Tensor | None = None,
) -> None:
    """Shared with the real kernel, which is Python as well."""
    _check_pair(x, bank, metric)
    _same_device(x, grad, row_least)
    _check(
        row_least is None or row_least.shape == x.shape[:-1],
        f"row_least must have shape {tuple(x.shape[:-1])}, got {None if row_least is None else tuple(row_least.shape)}",
    )
    shape = (*x.shape[:-1], bank.shape[-2])
    _check(tuple(grad.shape) == shape, f"grad must have shape {shape}, got {tuple(grad.shape)}")


@torch.library.register_fake("vecbank::project_backward")
def _(
    grad: Tensor,
    x: Tensor,
    bank: Tensor,
    metric: int,
    need_x: bool = True,
    need_bank: bool = True,
    row_least: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    check_project_backward(grad, x, bank, metric, row_least)
    return x.new_empty(x.shape if need_x else (0,)), bank.new_empty(bank.shape if need_bank else (0,))


@torch.library.register_fake("vecbank::topk")
def _(
    x: Tensor,
    bank: Tensor,
    pack: Tensor | None,
    k: int,
    metric: int,
    mask: Tensor | None = None,
    exact: bool = True,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    _check_pair(x, bank, metric, pack)
    _check(k >= 1, f"k must lie between 1 and M, got k = {k}")
    _check(k <= bank.shape[-2], f"k must lie between 1 and M = {bank.shape[-2]}, got k = {k}")
    _check_mask(mask, x, (*x.shape[:-1], bank.shape[-2]))
    _check_bias(bias, bank, metric)
    shape = (*x.shape[:-1], k)
    return x.new_empty(shape, dtype=_value_dtype(x)), x.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake("vecbank::topk_backward")
def _(grad: Tensor, x: Tensor, bank: Tensor, indices: Tensor, metric: int) -> tuple[Tensor, Tensor]:
    _check_pair(x, bank, metric)
    _same_device(x, grad, indices)
    _check(indices.dtype == torch.int64, f"indices must be int64, got {indices.dtype}")
    _check(grad.shape == indices.shape, f"grad {tuple(grad.shape)} must match indices {tuple(indices.shape)}")
    _check_source(x, indices)
    return x.new_empty(x.shape), bank.new_empty(bank.shape)


@torch.library.register_fake("vecbank::nearest")
def _(x: Tensor, bank: Tensor, pack: Tensor | None, metric: int, exact: bool = True) -> tuple[Tensor, Tensor]:
    _check_pair(x, bank, metric, pack)
    return x.new_empty(x.shape[:-1], dtype=_value_dtype(x)), x.new_empty(x.shape[:-1], dtype=torch.int64)


@torch.library.register_fake("vecbank::quantize")
def _(x: Tensor, bank: Tensor, pack: Tensor | None, metric: int) -> tuple[Tensor, Tensor]:
    _check_pair(x, bank, metric, pack)
    return x.new_empty(x.shape, dtype=bank.dtype), x.new_empty(x.shape[:-1], dtype=torch.int64)


@torch.library.register_fake("vecbank::quantize_train")
def _(
    x: Tensor, bank: Tensor, pack: Tensor | None, metric: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_pair(x, bank, metric, pack)
    _check_mask(mask, x, tuple(x.shape[:-1]))
    sums = torch.float64 if bank.dtype == torch.float64 else torch.float32
    return (
        x.new_empty(x.shape, dtype=bank.dtype),
        x.new_empty(x.shape[:-1], dtype=torch.int64),
        x.new_empty((), dtype=sums),
        x.new_empty(bank.shape[:-1], dtype=torch.float32),
        x.new_empty(bank.shape, dtype=sums),
    )


@torch.library.register_fake("vecbank::residual_quantize")
def _(x: Tensor, books: list[Tensor], packs: list[Tensor], metric: int) -> tuple[Tensor, Tensor, Tensor]:
    _check(len(books) > 0, "residual_quantize needs at least one book")
    _check(len(packs) in (0, len(books)), f"{len(packs)} packs for {len(books)} books: one each, or none")
    dtype = books[0].dtype
    _check(dtype in (torch.float32, torch.float64), f"books must be float32 or float64, got {dtype}")
    for s, book in enumerate(books):
        _check(book.dim() == 2 and book.dtype == dtype, "books must be (M, d) and share a dtype")
        _check_pair(x, book, metric, packs[s] if packs else None)
    return (
        x.new_empty(x.shape, dtype=dtype),
        x.new_empty((*x.shape[:-1], len(books)), dtype=torch.int64),
        x.new_empty((len(books),), dtype=dtype),
    )


@torch.library.register_fake("vecbank::product_quantize")
def _(x: Tensor, books: Tensor, pack: Tensor | None) -> Tensor:
    _same_device(x, books, pack)
    _check(books.dim() == 3 and books.shape[1] > 0, f"books must be (P, K, w), got {tuple(books.shape)}")
    parts, _, width = books.shape
    _check(x.dim() >= 1 and x.shape[-1] == parts * width, f"x {tuple(x.shape)} must be {parts * width} wide")
    _check_pair(x.new_empty((parts, 0, width)), books, METRICS["sqeuclidean"], pack)
    return x.new_empty((*x.shape[:-1], parts), dtype=torch.int64)


@torch.library.register_fake("vecbank::quantize_backward")
def _(grad: Tensor, x: Tensor, quantized: Tensor, scale: Tensor, estimator: int) -> Tensor:
    _same_device(grad, x, quantized, scale)
    _check(
        x.dim() >= 1 and x.dtype in _FLOATS, f"x must be (..., d) and floating point, got {tuple(x.shape)} {x.dtype}"
    )
    for t in (grad, quantized):
        _check(t.shape == x.shape and t.dtype == x.dtype, "grad, x and quantized must share dtype and shape")
    _check(scale.numel() == 1 and scale.dtype in _FLOATS, f"scale must be a single number, got {tuple(scale.shape)}")
    _check(estimator in ESTIMATORS.values(), f"estimator must be 0, 1 or 2, got {estimator}")
    return x.new_empty(x.shape)


@torch.library.register_fake("vecbank::lookup")
def _(codes: Tensor, bank: Tensor, weights: Tensor | None, reduce: int) -> Tensor:
    _check_codes(codes, bank, weights)
    _check(bank.dim() == 2, f"bank must be (M, d), got {tuple(bank.shape)}")
    _check(reduce in REDUCTIONS.values(), f"reduce must be 0, 1 or 2, got {reduce}")
    _check(reduce == 0 or codes.dim() >= 1, "a reduction needs codes (..., k), got a scalar")
    shape = codes.shape if reduce == 0 else codes.shape[:-1]
    return bank.new_empty((*shape, bank.shape[1]))


@torch.library.register_fake("vecbank::lookup_dot")
def _(x: Tensor, codes: Tensor, bank: Tensor) -> Tensor:
    _check_codes(codes, bank, None)
    _same_device(codes, x)
    _check(bank.dim() == 2, f"bank must be (M, d), got {tuple(bank.shape)}")
    _check_source(x, codes)
    _check(x.shape[-1] == bank.shape[1], f"x {tuple(x.shape)} and bank {tuple(bank.shape)} differ in width")
    return bank.new_empty(codes.shape)


@torch.library.register_fake("vecbank::segment_sum")
def _(src: Tensor, codes: Tensor, num_codes: int, weights: Tensor | None) -> Tensor:
    _check_codes(codes, src, weights)
    _check_source(src, codes)
    _check(num_codes >= 0, f"num_codes must not be negative, got {num_codes}")
    return src.new_empty((num_codes, src.shape[-1]))
