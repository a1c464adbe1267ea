"""The two entropies of lookup-free codes: that of each row's codes, and that of the codes of the batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from .._checks import readable
from .._ops.tangents import Function
from ._bits import (
    NO_SECOND,
    bit_entropy,
    bit_patterns,
    entropy,
    mean_code_probability,
    row_entropy,
    table,
    to_bits,
)
from ._distributed import mean_over_ranks, several_ranks
from ._draws import uniform
from ._estimators import once, twice

_FLOOR = 1e-5  # inside the entropies' logarithms
_KEPT_BITS = 10
_kept: dict[tuple[int, torch.dtype], Tensor] = {}
_FEW = 1 << 16  # rows times codes: up to so many, the table of all of them is quicker than finding those that count
_SHORT = 5  # bits: so few codes all count, and up to 16 times as many entries (8 MiB) are a table
_LEAST = -60.0  # logarithms of smaller probabilities, which do not change a sum; their exponentials are no denormals


def code_entropies(log_odds: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """E H(p_n) and H(E p_n), averaged over c codebooks and, inside H(E p_n), over all ranks.

    Args:
        log_odds: (N, c, d) of independent bits. weights: (N,), whose sum is 1.
    """
    if several_ranks():
        each = torch.stack([bit_entropy(logits, weights, _FLOOR) for logits in log_odds.unbind(1)]).mean()
        return each, _batch_entropy(log_odds, weights)
    each, batch, _, _ = _Entropies.apply(log_odds, weights, log_odds.requires_grad and torch.is_grad_enabled())
    return each, batch


def _batch_entropy(log_odds: Tensor, weights: Tensor) -> Tensor:
    means = [mean_over_ranks(mean_code_probability(logits, weights)) for logits in log_odds.unbind(1)]
    return torch.stack([entropy(mean, _FLOOR) for mean in means]).mean()


def _slope(probability: Tensor, needed: bool) -> tuple[Tensor, Tensor]:
    """-sum p log max(p, floor), and its gradient in p."""
    logs = probability.clamp_min(_FLOOR).log_()
    value = (probability * logs).sum().neg_()
    return value, logs.add_(probability >= _FLOOR).neg_() if needed else probability.new_empty(0)


def _patterns(width: int, like: Tensor) -> Tensor:
    """`bit_patterns`, kept for the small tables that every step of a small batch reads."""
    if width > _KEPT_BITS or not readable(like) or torch.is_inference_mode_enabled():
        return bit_patterns(width, like)
    found = _kept.get((width, like.dtype))
    if found is None:
        found = bit_patterns(width, like)
        if type(found) is Tensor:  # no mode that makes other tensors is on
            _kept[width, like.dtype] = found
    return found


def _of_table(log_odds: Tensor, weights: Tensor, needed: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_entropies` from the table of all codes (N, c, 2^d).

    Logits are sums of log-odds, of which the best code's is subtracted: in float64, as large ones cancel there.
    """
    codebooks, width, wide = log_odds.shape[1], log_odds.shape[2], log_odds.double()
    logits = (wide @ _patterns(width, wide).t()).sub_(wide.clamp_min(0).sum(-1, keepdim=True))
    logs = logits.to(log_odds.dtype).log_softmax(-1)
    share = logs.clamp_min(_LEAST).exp_().mul_(weights.view(-1, 1, 1))
    floored = logs.clamp_min(math.log(_FLOOR))
    each = (share * floored).sum().div_(-codebooks)
    batch, slope = _slope(share.sum(0), needed)
    batch.div_(codebooks)
    if not needed:
        return each, batch, slope, slope
    patterns, odds = _patterns(width, log_odds), log_odds.sigmoid()
    slopes = []
    share.div_(-codebooks)
    for inside in (floored.add_(logs > math.log(_FLOOR)), slope.neg_()):
        part = share * inside
        # sum_c p_c (slope_c - sum p slope) bit_c, where sum_c p_c bit_c is the sigmoid of the log-odds
        slopes.append((part @ patterns).addcmul_(part.sum(-1, keepdim=True), odds, value=-1))
    return each, batch, slopes[0], slopes[1]


def _of_halves(log_odds: Tensor, weights: Tensor, needed: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_entropies` of one codebook (N, d) from the tables of each half of the bits."""
    each, slope = row_entropy(log_odds, weights, math.log(_FLOOR), needed)
    high = log_odds.shape[1] // 2
    u, v = table(log_odds[:, :high])[1], table(log_odds[:, high:])[1]
    u.mul_(weights.unsqueeze(1))
    batch, inside = _slope(u.t() @ v, needed)
    if not needed:
        return each, batch, slope, slope
    return each, batch, slope, to_bits(log_odds, (v @ inside.t()).mul_(u), (u @ inside).mul_(v))


def _entropies(log_odds: Tensor, weights: Tensor, needed: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both entropies, averaged over codebooks, and their gradients in the log-odds (N, c, d), empty if not needed."""
    count, codebooks, width = log_odds.shape
    if count * codebooks << width <= (_FEW if width > _SHORT else _FEW << 4):
        each, batch, slope, slope_batch = _of_table(log_odds, weights, needed)
    else:
        found = [_of_halves(log_odds[:, i], weights, needed) for i in range(codebooks)]
        each, batch = (torch.stack([parts[i] for parts in found]).mean() for i in (0, 1))
        slope, slope_batch = (torch.stack([parts[i] for parts in found], 1).div_(codebooks) for i in (2, 3))
    if not needed:
        return each, batch, log_odds.new_empty(0), log_odds.new_empty(0)
    return each, batch, slope, slope_batch


_traced = torch.library.custom_op("vecbank_nn::code_entropies", _entropies, mutates_args=())


@_traced.register_fake
def _(log_odds: Tensor, weights: Tensor, needed: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    slope, slope_batch = (torch.empty_like(log_odds) if needed else log_odds.new_empty(0) for _ in range(2))
    return log_odds.new_empty(()), log_odds.new_empty(()), slope, slope_batch


class _Entropies(Function):
    operation = "the entropies of codes"

    @staticmethod
    def forward(log_odds: Tensor, weights: Tensor, needed: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        run = _traced if torch.compiler.is_compiling() else _entropies
        each, batch, slope, slope_batch = run(log_odds, weights, needed)
        return each, batch, slope, slope_batch

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: tuple[Tensor, ...]) -> None:
        _, _, *slopes = output
        ctx.mark_non_differentiable(*slopes)
        ctx.save_for_backward(*inputs[:2], *slopes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_batch: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        log_odds, weights, slope, slope_batch = ctx.saved_tensors
        if not twice():
            return slope * grad + slope_batch * grad_batch, None, None
        again = _batch_entropy(log_odds, weights)
        (passed,) = torch.autograd.grad(again, log_odds, grad_batch, create_graph=True)
        return once(slope, log_odds, words=NO_SECOND) * grad + passed, None, None


def sample_rows(rows: Tensor, weights: Tensor, share: float, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """A random share of the rows (N, ...) whose weight is not 0, with new weights, whose sum is 1.

    The number of rows that count stays on the device, so that the host does not wait for it.
    """
    draw = uniform(weights.shape, rows, generator)
    most = torch.sym_int(weights.shape[0] * share)  # int() would make it a constant of a traced program
    order = draw.masked_fill(weights == 0, 2.0).argsort()[:most]
    taken = ((weights > 0).sum() * share).long()
    chosen = torch.arange(order.shape[0], device=rows.device) < taken
    return rows[order], chosen.to(weights.dtype) / taken.clamp_min(1)
