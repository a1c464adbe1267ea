"""The rotation trick's gradient as a formula: what `quantize_backward` computes, with a derivative of its own.

Source: Fifty et al., "Restructuring Vector Quantization with the Rotation Trick", ICLR 2025.
"""

from __future__ import annotations

import torch
from torch import Tensor

_UNIT_FLOOR = 1e-6  # the rotation trick's: norms below this count as this


def rotated_gradient(grad: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The gradient that reaches `source` when `target` is seen as s R source, R and s held constant.

    With u, q the unit vectors of source and target and w that of u + q: R = I - 2 w w^T + 2 q u^T turns u
    into q, s = |target| / |source|, so the result is s (g - 2 (w.g) w + 2 (q.g) u).
    """
    g, x, t = (v if v.dtype == torch.float64 else v.float() for v in (grad, source, target))
    inverse_x = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(_UNIT_FLOOR).reciprocal()
    norm_t = torch.linalg.vector_norm(t, dim=-1, keepdim=True)
    inverse_t = norm_t.clamp_min(_UNIT_FLOOR).reciprocal()
    bisector = torch.linalg.vector_norm(x * inverse_x + t * inverse_t, dim=-1, keepdim=True)
    inverse_w = bisector.clamp_min(_UNIT_FLOOR).reciprocal()
    along_u = (g * x).sum(-1, keepdim=True) * inverse_x
    along_q = (g * t).sum(-1, keepdim=True) * inverse_t
    along_w = 2 * (along_u + along_q) * inverse_w * inverse_w
    return (g + x * ((2 * along_q - along_w) * inverse_x) - t * (along_w * inverse_t)) * (norm_t * inverse_x)
