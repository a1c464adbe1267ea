"""Gradients of `project` in one kernel, for float32 and 16 bits on the CPU: which problems it is for.

Small problems, and batches of them, take torch longer to call than to multiply. By distances, the kernel sums
differences, which no product of a library does, and serves larger problems too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C
from .define import define
from .fakes import check, check_pair, same_device
from .names import BALL, METRICS

_isa = _C.isa
BLOCK_NUMBERS = 1 << 20  # of a problem: its sides are read several times, and stay near the cache
_SQEUCLIDEAN, _L1 = METRICS["sqeuclidean"], METRICS["l1"]
_DISTANCES = METRICS["l2"], _SQEUCLIDEAN, _L1
_FEW_TERMS = 1 << 10  # of a problem of a batch: below, torch's sums of differences take no longer
# Terms (pairs times width) up to which the kernel is quicker than products of a library, by registers of 16, 8 or 4.
_TERMS = {"avx512": 1 << 25, "avx2": 1 << 21}
_TERMS |= {f"{isa}vnni": terms for isa, terms in _TERMS.items()}
_TERMS_ELSE = 1 << 16
_TERMS_BFLOAT16 = 1 << 20  # of a library whose processor has products of bfloat16


def in_one_kernel(n: int, m: int, d: int, batch: int, metric: int, *, bfloat16: bool = False) -> bool:
    """Whether the kernel is for n queries and m bank rows of width d, or a batch of such problems.

    `bfloat16`: products of bfloat16 could be had instead.
    """
    if n * m + (n + m) * d > BLOCK_NUMBERS:
        return False
    terms = n * m * d
    if batch > 1 and terms < _FEW_TERMS and metric in _DISTANCES:
        return False
    if metric == _L1:
        return True
    most = _TERMS.get(_isa(), _TERMS_ELSE)
    if metric == _SQEUCLIDEAN:
        most *= 8  # which torch looks at once more, to find what cancels
    return terms <= (min(most, _TERMS_BFLOAT16) if bfloat16 else most)


def _small(
    grad: Tensor, x: Tensor, bank: Tensor, metric: int, need_x: bool = True, need_bank: bool = True
) -> tuple[Tensor, Tensor]:
    check_pair(x, bank, metric)
    same_device(x, grad)
    check(bank.dtype != torch.float64, "bank must not be float64 here")
    check(metric not in BALL, "project_backward_small has no gradient of points in a ball")
    shape = (*x.shape[:-1], bank.shape[-2])
    check(tuple(grad.shape) == shape, f"grad must have shape {shape}, got {tuple(grad.shape)}")
    return x.new_empty(x.shape if need_x else (0,)), bank.new_empty(bank.shape if need_bank else (0,))


define("project_backward_small", fake=_small, gradient_of="project")
