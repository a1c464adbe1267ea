"""The two entropies of lookup-free codes: that of each row's codes, and that of the codes of the batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from .._ops.tangents import Function
from ._bits import (
    NO_SECOND,
    bit_entropy,
    entropy,
    exponential,
    hits,
    log_table,
    mean_code_probability,
    odds_of,
    row_entropy,
    table,
    to_bits,
)
from ._distributed import mean_over_ranks, several_ranks
from ._draws import uniform
from ._estimators import once, twice

_FLOOR = 1e-5  # inside the entropies' logarithms
_LOG_FLOOR = math.log(_FLOOR)
_FEW = 1 << 16  # rows times codes: up to so many, the table of all of them is quicker than finding those that count
_SHORT = 5  # bits: so few codes all count
_BLOCK = 1 << 16  # entries of such a table that are computed at a time
_HELD = 1 << 21  # entries (8 MiB) that are kept; those of larger tables are computed again


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


def _added(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _shares(log_odds: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the probabilities of all codes (N, 2^d), and the weighted probabilities."""
    logs = log_table(log_odds)
    return logs, exponential(logs).mul_(weights)


def _of_table(log_odds: Tensor, weights: Tensor, needed: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_entropies` from the table of all codes (N, c, 2^d), a block of rows at a time."""
    _, codebooks, width = log_odds.shape
    flat, column = log_odds.reshape(-1, width), weights.unsqueeze(1)
    if codebooks > 1:
        column = column.repeat_interleave(codebooks, 0)
    step, rows = max(1, _BLOCK // (codebooks << width)) * codebooks, [(flat, column)]
    if flat.shape[0] > step:
        rows = list(zip(flat.split(step), column.split(step), strict=True))
    held = flat.shape[0] << width <= _HELD
    each, mean, slopes = [], [], []
    kept: list[tuple[Tensor, Tensor | None]] = []
    for a, w in rows:
        logs, share = _shares(a, w)
        inside = logs.clamp_min_(_LOG_FLOOR)
        each.append((share * inside).sum())
        mean.append(share.view(-1, codebooks, share.shape[1]).sum(0))
        if needed:
            odds = odds_of(a)
            slopes.append(hits(inside.add_(inside > _LOG_FLOOR).mul_(share), odds))
            kept.append((odds, share if held else None))
    batch, inside = _slope(_added(mean), needed)
    found = _added(each).div_(-codebooks), batch.div_(codebooks)
    if not needed:
        return *found, inside, inside
    slopes_batch = []
    for (a, w), (odds, known) in zip(rows, kept, strict=True):
        share = _shares(a, w)[1] if known is None else known
        share.view(-1, codebooks, share.shape[1]).mul_(inside)
        slopes_batch.append(hits(share, odds))
    slope, slope_batch = ((t[0] if len(t) == 1 else torch.cat(t)).view(log_odds.shape) for t in (slopes, slopes_batch))
    return *found, slope.div_(-codebooks), slope_batch.div_(codebooks)


def _of_halves(log_odds: Tensor, weights: Tensor, needed: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_entropies` of one codebook (N, d) from the tables of each half of the bits."""
    each, slope = row_entropy(log_odds, weights, _LOG_FLOOR, needed)
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
    if width <= _SHORT or count * codebooks << width <= _FEW:
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
