"""Bits as codes: signs, draws, and planes of signs with halving weights."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from .. import _checks
from .._numpy import entry_point
from ..results import Quantized
from ._packing import check_bits
from ._straight_through import straight_through

MOST_PLANES = 62  # whose sum, and twice it, int64 holds


@entry_point
def sign_quantize(z: Tensor, scale: float | Tensor = 1.0) -> Quantized:
    """Lookup-free quantisation: `scale` where z > 0, else `-scale`.

    `bits_to_index` turns a row of bits into one number, and `pack_bits` turns it into bytes.

    Args:
        z: (..., d).
        scale: a number, or a tensor that broadcasts to z.

    Returns:
        Quantized(quantized, codes): (..., d) in z's dtype, and the bits (..., d) bool.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> quantized, bits = vecbank.codes.sign_quantize(torch.tensor([0.2, -3.0]))
        >>> quantized.tolist(), bits.tolist()
        ([1.0, -1.0], [True, False])
    """
    _checks.floating("z", z)
    bits = z.detach() > 0
    return Quantized(straight_through(z, sign_lookup(bits, scale, z.dtype)), bits)


@entry_point
def sign_lookup(bits: Tensor, scale: float | Tensor = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of bits: `+scale` for a set bit, `-scale` for a clear one.

    Args:
        bits: (..., d) bool, or integers 0 and 1.
        scale: a number, or a tensor that broadcasts to the bits.
        dtype: dtype of the result.

    Returns:
        (..., d).

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> vecbank.codes.sign_lookup(torch.tensor([True, False]), 0.5).tolist()
        [0.5, -0.5]
    """
    check_bits(bits)
    _checks.float_dtype("dtype", dtype)
    _checks.scale(scale, bits.shape)
    return (bits.to(dtype) * 2 - 1) * scale


@entry_point
def bernoulli_quantize(probability: Tensor, generator: Generator | int | None = None) -> Quantized:
    """Bits drawn with the given probabilities (sigmoid(h), say), as 0 and 1.

    The gradient goes to the probability as it is. Draws are made where the generator lives (the CPU without one).

    Args:
        probability: (..., d).
        generator: source of the draws, or the seed of one.

    Returns:
        Quantized(quantized, codes): (..., d) in the probability's dtype, and the bits (..., d) bool.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> vecbank.codes.bernoulli_quantize(torch.tensor([0.0, 1.0]), generator=0).codes.tolist()
        [False, True]
    """
    _checks.floating("probability", probability)
    generator = _checks.generator(generator)
    source = generator.device if generator is not None else torch.device("cpu")
    draw = torch.rand(probability.shape, generator=generator, device=source, dtype=torch.float32)
    bits = draw.to(probability.device) < probability.detach()
    return Quantized(straight_through(probability, bits.to(probability.dtype)), bits)


def check_planes(name: str, planes: int) -> None:
    if not 1 <= planes <= MOST_PLANES:
        raise ValueError(f"{name} must lie between 1 and {MOST_PLANES}, got {planes}")


@entry_point
def residual_binary_quantize(x: Tensor, planes: int, scale: float | Tensor = 1.0) -> Quantized:
    """Signs of x, then of the residual, with halving weights: `scale * (b_0 + b_1 / 2 + b_2 / 4 + ...)`, b = +-1.

    Args:
        x: (..., d).
        planes: the number of planes, 1 to 62. Each plane halves the error of values within +-2 * scale.
        scale: a number, or a tensor that broadcasts to x (one per dimension, say). The mean of |x| is a good
            first choice.

    Returns:
        Quantized(quantized, codes): (..., d) in x's dtype, and the bit planes (..., planes, d) bool, most significant
        first.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> quantized, planes = vecbank.codes.residual_binary_quantize(torch.tensor([0.7, -1.4]), planes=2)
        >>> quantized.tolist(), planes.tolist()
        ([0.5, -1.5], [[True, False], [False, False]])
    """
    _checks.floating("x", x)
    if x.dim() == 0:
        raise ValueError("x must have shape (..., d), got a scalar")
    check_planes("planes", planes := _checks.integer("planes", planes))
    residual, bits = x.detach(), []
    for u in range(planes):
        bits.append(residual > 0)
        residual = residual - sign_lookup(bits[-1], scale, x.dtype) * 0.5**u
    stacked = torch.stack(bits, -2)
    return Quantized(straight_through(x, residual_binary_lookup(stacked, scale, x.dtype)), stacked)


@entry_point
def residual_binary_lookup(bits: Tensor, scale: float | Tensor = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of bit planes: an exact integer times a power of two, times scale.

    Args:
        bits: (..., planes, d) bool, or integers 0 and 1; 1 to 62 planes.
        scale: a number, or a tensor that broadcasts to (..., d).
        dtype: dtype of the result.

    Returns:
        (..., d).

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> vecbank.codes.residual_binary_lookup(torch.tensor([[True, False], [False, False]])).tolist()
        [0.5, -1.5]
    """
    check_bits(bits)
    if bits.dim() < 2:
        raise ValueError(f"bits must have shape (..., planes, d), got {tuple(bits.shape)}")
    planes = bits.shape[-2]
    check_planes("the planes of bits", planes)
    _checks.float_dtype("dtype", dtype)
    _checks.scale(scale, bits.shape[:-2] + bits.shape[-1:])
    weight = 2 ** torch.arange(planes - 1, -1, -1, device=bits.device).unsqueeze(1)
    whole = ((bits.long() * 2 - 1) * weight).sum(-2)
    return whole.to(dtype) * 0.5 ** (planes - 1) * scale
