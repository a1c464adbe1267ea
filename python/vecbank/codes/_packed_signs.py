"""Signs of floats, and their residual planes, as packed bits and back."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._numpy import entry_point
from .._signs import weighted_signs
from ._binary import check_planes
from ._packing import pack_bits

_BLOCK = 1 << 22  # values at a time


@entry_point
def pack_signs(x: Tensor, planes: int = 1, scale: float | Tensor = 1.0) -> Tensor:
    """The bits of `sign_quantize` (x > 0), or of `residual_binary_quantize` for several planes, packed for
    `vecbank.bits`.

    Args:
        x: (..., d) floats. NaN is a clear bit.
        planes: the number of planes, 1 to 62.
        scale: as of `residual_binary_quantize`: a number, or a tensor that broadcasts to x. One plane does not depend
            on it, where it is positive. It is not in the codes; `bits.float_topk` takes one for each dimension.

    Returns:
        (..., planes * ceil(d / 8)) uint8: the planes one after another, the one that weighs most first. The bits of a
        byte lie lowest first, and those that stand for nothing are clear, as of `pack_bits`. Fewer planes are the first
        bytes of a row of more, and planes of a learned code are made one by one and concatenated.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Source: Gan et al., "Binary embedding-based retrieval at Tencent" (BEBR), KDD 2023, for the planes.

    Example:
        >>> import torch, vecbank
        >>> vecbank.codes.pack_signs(torch.tensor([[0.5, -1.0, 2.0, -0.1]])).tolist()
        [[5]]
        >>> vecbank.codes.pack_signs(torch.tensor([0.7, -1.4]), planes=2).tolist()
        [1, 0]
    """
    _checks.floating("x", x)
    if x.dim() == 0:
        raise ValueError("x must have shape (..., d), got a scalar")
    check_planes("planes", planes := _checks.integer("planes", planes))
    _checks.scale(scale, x.shape)
    d = x.shape[-1]
    x = x.detach()
    if planes == 1:
        return pack_bits(x > 0)
    flat = x.reshape(x.shape[:-1].numel(), d)
    each = scale.expand(x.shape).reshape(flat.shape) if isinstance(scale, Tensor) and scale.dim() else None
    size = (d + 7) // 8
    out = torch.empty(flat.shape[0], planes * size, dtype=torch.uint8, device=x.device)
    step = max(1, _BLOCK // max(1, d))
    for start in range(0, flat.shape[0], step):
        rows = slice(start, start + step)
        residual, own = flat[rows], scale if each is None else each[rows]
        for u in range(planes):
            bits = residual > 0
            out[rows, u * size : (u + 1) * size] = pack_bits(bits)
            if u + 1 < planes:
                residual = residual - (bits.to(x.dtype) * 2 - 1) * own * 0.5**u
    return out.reshape(*x.shape[:-1], planes * size)


@entry_point
def unpack_signs(words: Tensor, bits: int, planes: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values that packed signs stand for: +1 and -1, or `b_0 + b_1 / 2 + b_2 / 4 + ...` of several planes.

    Args:
        words: (..., planes * ceil(bits / 8)) uint8, as `pack_signs` returns them. Bits that stand for nothing may hold
            anything.
        bits: values of a row.
        planes: the number of planes, 1 to 62.
        dtype: dtype of the result, which holds the values of up to 24 planes exactly in float32 (53 in float64, 11 in
            float16, 8 in bfloat16).

    Returns:
        (..., bits).

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> words = vecbank.codes.pack_signs(torch.tensor([0.7, -1.4]), planes=2)
        >>> vecbank.codes.unpack_signs(words, 2, planes=2).tolist()
        [0.5, -1.5]
    """
    _checks.tensor("words", words)
    if words.dtype != torch.uint8:
        raise TypeError(f"words must be packed bits, uint8 as pack_signs returns them, got {words.dtype}")
    bits = _checks.at_least(0, "bits", bits)
    check_planes("planes", planes := _checks.integer("planes", planes))
    _checks.float_dtype("dtype", dtype)
    size = (bits + 7) // 8
    if words.dim() == 0 or words.shape[-1] != planes * size:
        raise ValueError(
            f"words must have shape (..., {planes * size}) for {planes} planes of {bits} bits, got {tuple(words.shape)}"
        )
    return weighted_signs(words, bits, planes, dtype) * 0.5 ** (planes - 1)
