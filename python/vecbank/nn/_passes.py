"""A whole cascade in one call, for modules whose stages only look codes up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._interrupt import ops
from .._ops import METRICS
from ..results import ResidualQuantized
from ._layout import working


@torch.no_grad()
def encode_stages(x: Tensor, books: Sequence[Tensor], metric: str = "l2") -> ResidualQuantized:
    """The residual cascade without gradients: x (..., d) by books (M_s, d), each on what the former left over.

    What is 16-bit is read as float32.
    """
    books = [working(book.detach()) for book in books]
    return ResidualQuantized(*ops.residual_quantize(working(x), books, [], METRICS[metric]))
