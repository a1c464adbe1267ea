"""A whole cascade in one call: the seam where a fused kernel goes in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..functional import quantize
from ._layout import working


class Encoded(NamedTuple):
    quantized: Tensor  # (..., d), the stages' rows summed
    codes: Tensor  # (..., S) int64
    losses: Tensor  # (S,) float32, mean (row - residual)^2 of every stage


@torch.no_grad()
def encode_stages(x: Tensor, books: Sequence[Tensor], metric: str = "l2") -> Encoded:
    """The residual cascade without gradients: x (..., d) by books (M_s, d), each on what the former left
    over.
    """
    residual, total = working(x), torch.zeros_like(working(x))
    codes, losses = [], []
    for book in books:
        rows, code = quantize(residual, book, metric)
        residual = residual - rows
        total = total + rows
        codes.append(code)
        losses.append(residual.square().mean(dtype=torch.float32))
    return Encoded(total, torch.stack(codes, -1), torch.stack(losses))
