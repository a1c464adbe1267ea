"""What packed signs stand for."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_signs(words: Tensor, bits: int, planes: int, dtype: torch.dtype) -> Tensor:
    """The values times 2^(planes - 1), which are whole numbers, (..., bits)."""
    by_plane = words.unflatten(-1, (planes, words.shape[-1] // planes))
    place = torch.arange(8, device=words.device, dtype=torch.uint8)
    wide = torch.float64 if planes > 24 else torch.float32
    total = torch.zeros(*words.shape[:-1], bits, dtype=wide, device=words.device)
    for u in range(planes):
        plane = ((by_plane[..., u, :, None] >> place) & 1).flatten(-2)[..., :bits]
        total.add_(plane.to(wide).mul_(2).sub_(1), alpha=2 ** (planes - 1 - u))
    return total.to(dtype)
