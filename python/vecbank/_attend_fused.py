"""`attend` by softmax of dot products and cosines through the CPU's kernel, which makes no block of scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _checks, _select
from ._attend_blocks import Given
from ._ops import METRICS, ops

_FEWEST = 16  # queries; fewer leave lanes of a panel empty, and blocks of torch are as fast
_NORM_FLOOR, _LONGEST = 1e-8, 1e30


def _units(rows: Tensor) -> Tensor | None:
    """Rows at length 1, float32; None: a row is too long for float32."""
    wide = rows.float()
    norms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True, dtype=torch.float64)
    if norms.numel() and not float(norms.detach().amax()) < _LONGEST:
        return None
    # As a norm below the floor counts as the floor, no gradient passes through it.
    return wide * norms.clamp_min(_NORM_FLOOR).reciprocal().to(torch.float32)


def attend(g: Given) -> tuple[Tensor | None, Tensor] | None:
    """The sums, float32, and the log-sum-exp, float64; None: blocks must do it."""
    dtypes = {t.dtype for t in (g.x, g.rows, g.values) if t is not None}
    served = (
        g.code in (METRICS["dot"], METRICS["cosine"])
        and not g.biased
        and torch.float64 not in dtypes
        and _select.kernels(g.x)
        and g.x.shape[:-1].numel() >= _FEWEST
        and torch.autograd.forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
    )
    if not served:
        return None
    x, bank = g.x, g.rows
    if g.code == METRICS["cosine"]:
        if not _checks.readable(x) or not _checks.readable(bank):
            return None
        unit_x, unit_bank = _units(x), _units(bank)
        if unit_x is None or unit_bank is None:
            return None
        x, bank = unit_x, unit_bank
    out, lse = ops.attend(x, bank, g.values, g.beta, *(([], []) if g.sets is None else g.sets))
    return None if g.values is None else out, lse * math.log(2)
