"""A bank of packed bits, and what the functions of `vecbank.bits` check of their arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import _checks
from ._bits_blocks import Bits
from ._numpy import tensor_of
from ._ops.bits import MOST_DISTANCE, MOST_PLANES, NO_DISTANCE, largest_distance
from .allowed import Allowed, lowered


class PackedRows(nn.Module):
    """The base of `vecbank.bits.BitBank`: words, and how many bits and planes their rows have."""

    words: Tensor

    def __init__(self, words: Tensor, bits: int | None = None, planes: int = 1) -> None:
        super().__init__()
        if isinstance(words, np.ndarray):
            words = tensor_of(words, "words")
        check_words("words", words)
        if words.dim() != 2:
            raise ValueError(f"words must have shape (M, W), got {tuple(words.shape)}")
        self.planes = check_planes("planes", planes)
        self.bits = bits_of("words", words, bits, self.planes)
        self.register_buffer("words", words)

    def __len__(self) -> int:
        return self.words.shape[0]

    def __repr__(self) -> str:
        planes = "" if self.planes == 1 else f" in each of {self.planes} planes"
        return f"BitBank({len(self)} rows of {self.bits} bits{planes})"


def of_bits(metric: object, bank: object) -> Any:
    """The bank, where a call of a verb is one of packed bits, else None; of a metric that does not go with them, an
    error.
    """
    if type(metric) is str and metric == "hamming":
        if isinstance(bank, nn.Module) and not isinstance(bank, PackedRows):
            raise TypeError(f"bank must be packed bits, a uint8 tensor or a BitBank, got {type(bank).__name__}")
        return bank
    if not isinstance(bank, PackedRows):
        return None
    if metric is not None:
        raise ValueError(f'a BitBank is searched by "hamming", got metric {metric!r}')
    return bank


def check_words(name: str, t: object) -> None:
    _checks.tensor(name, t)
    assert isinstance(t, Tensor)
    if t.dtype == torch.uint8:
        if t.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got one of layout {t.layout}")
        return
    maker = "pack_bits packs bools" if t.dtype == torch.bool else "pack_signs packs the signs of floats"
    advice = f": vecbank.codes.{maker}" if t.dtype == torch.bool or t.is_floating_point() else ""
    raise TypeError(f"{name} must be packed bits, uint8, got {t.dtype}{advice}")


def check_planes(name: str, planes: object) -> int:
    found = _checks.integer(name, planes)
    if not 1 <= found <= MOST_PLANES:
        raise ValueError(f"{name} must lie between 1 and {MOST_PLANES}, got {found}")
    return found


def bits_of(name: str, words: Tensor, bits: object, planes: int) -> int:
    """Bits of a plane, which fit the rows' width."""
    width = words.shape[-1]
    size, rest = width // planes, width % planes
    if rest or width == 0:
        raise ValueError(f"{name} must have a whole number of bytes for each of {planes} planes, got {width} bytes")
    if bits is None:
        return 8 * size
    found = _checks.integer("bits", bits)
    if not 8 * (size - 1) < found <= 8 * size:
        raise ValueError(
            f"bits must lie between {8 * size - 7} and {8 * size} for the {width} bytes of {name} in {planes} "
            f"plane{'s' * (planes > 1)}, got {found}"
        )
    return found


def bank_of(bank: Tensor | PackedRows, bits: object, planes: object) -> tuple[Tensor, int, int]:
    """Words, bits and planes of a bank."""
    planes = check_planes("bank_planes", planes)
    if isinstance(bank, PackedRows):
        if planes not in (1, bank.planes):
            raise ValueError(f"bank_planes must be those of the BitBank, {bank.planes}, got {planes}")
        if bits is not None and _checks.integer("bits", bits) != bank.bits:
            raise ValueError(f"bits must be those of the BitBank, {bank.bits}, got {bits}")
        return bank.words, bank.bits, bank.planes
    check_words("bank", bank)
    if bank.dim() != 2:
        raise ValueError(f"bank must have shape (M, W), got {tuple(bank.shape)}")
    return bank, bits_of("bank", bank, bits, planes), planes


def resolve(
    x: Tensor,
    bank: Tensor | PackedRows,
    bits: int | None,
    x_planes: int,
    bank_planes: int,
    allowed: Allowed | Tensor | None,
) -> Bits:
    """The arguments of a search, checked."""
    check_words("x", x)
    words, bits, bank_planes = bank_of(bank, bits, bank_planes)
    x_planes = check_planes("x_planes", x_planes)
    if x.dim() == 0:
        raise ValueError("x must have shape (..., W), got a scalar")
    size = (bits + 7) // 8
    if x.shape[-1] != x_planes * size:
        raise ValueError(
            f"x must have {x_planes * size} bytes, {size} for each plane of {bits} bits like the bank, with "
            f"x_planes = {x_planes} (an argument of vecbank.bits); got x {tuple(x.shape)} and bank {tuple(words.shape)}"
        )
    if x.device != words.device:
        raise ValueError(f"x and bank must be on one device, got x on {x.device} and bank on {words.device}")
    if largest_distance(bits, x_planes, bank_planes) > MOST_DISTANCE:
        raise ValueError(
            f"bits (2^x_planes - 1) (2^bank_planes - 1) must fit in int32, got {bits} bits, x_planes = {x_planes} and "
            f"bank_planes = {bank_planes}"
        )
    return Bits(x, words, bits, x_planes, bank_planes, lowered(allowed, x, words))


def whole_radii(r: object, x: Tensor) -> Tensor:
    """(N,) int64, rounded down, which keeps the hits."""
    return _checks.radii(r, x).nan_to_num(-1).floor().clamp(-1, NO_DISTANCE - 1).long()
