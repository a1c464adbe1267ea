"""`pack` and `repack_`: a bank as the kernels stream it."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C
from .define import define
from .fakes import check, check_bank, check_bias, same_device

# What a pack is for: every op, or searches alone, which begin with a screen. In the order of their codes.
USES = ("everything", "auto", "float32", "int16", "int8")


def _pack(
    bank: Tensor,
    metric: int,
    bias: Tensor | None = None,
    stamp: bool = False,
    use: int = 0,
    rotation: Tensor | None = None,
    head: int = 0,
) -> Tensor:
    check_bank(bank, metric)
    check_bias(bias, bank, metric)
    check(0 <= use < len(USES), f"use must lie between 0 and {len(USES) - 1}, got {use}")
    rows, width = bank.shape[-2:]  # symbolic in a traced program; the size is too, but for packs of searches
    cuda = bank.device.type == "cuda"
    int8 = not cuda and use > 0 and _C.int8_panels(int(rows), int(width), metric, use)
    check((rotation is not None) == (head != 0), "a head goes with a rotation, and a rotation with a head")
    if rotation is not None:
        same_device(bank, rotation)
        check(int8, "a head needs a pack of codes on the CPU: its use must be int8")
        check(1 <= head < int(width), f"head must lie between 1 and {int(width) - 1}, got {head}")
        square = rotation.dtype == torch.float32 and rotation.shape == (width, width) and rotation.is_contiguous()
        check(square, f"rotation must be contiguous float32 ({width}, {width}), got {tuple(rotation.shape)}")
    size = _C.pack_bytes(rows, width, metric, bias is not None, cuda, int8, head)
    return bank.new_empty((*bank.shape[:-2], size), dtype=torch.uint8)


define("pack", fake=_pack)


@torch.library.register_fake("vecbank::repack_")  # writes into its argument: there is nothing to differentiate
def _repack(
    pack: Tensor, bank: Tensor, metric: int, rows: Tensor, bias: Tensor | None = None, stamp: bool = False
) -> None:
    check_bank(bank, metric)
    check_bias(bias, bank, metric)
    same_device(bank, rows, pack)
    check(bank.dim() == 2, f"bank must be (M, d), got {tuple(bank.shape)}")
    check(rows.dtype == torch.int64 and rows.dim() == 1, f"rows must be int64 (R,), got {rows.dtype}")
    check(pack.dtype == torch.uint8, f"pack must be uint8, got {pack.dtype}")
