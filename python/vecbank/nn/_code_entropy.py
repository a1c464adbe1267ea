"""The two entropies of lookup-free codes: that of each row's codes, and that of the codes of the batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from .._ops.tangents import Function
from ._bits import NO_SECOND, bit_entropy, bit_patterns, entropy, mean_code_probability
from ._distributed import mean_over_ranks, several_ranks
from ._draws import uniform
from ._estimators import once, twice

_FLOOR = 1e-5  # inside the entropies' logarithms
_FEW = 1 << 15  # rows times codes: up to so many, the table of all of them is quicker than finding those that count
_LEAST = -60.0  # logarithms of smaller probabilities, which do not change a sum; their exponentials are no denormals


def code_entropies(log_odds: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """E H(p_n) and H(E p_n), averaged over c codebooks and, inside H(E p_n), over all ranks.

    Args:
        log_odds: (N, c, d) of independent bits. weights: (N,), whose sum is 1.
    """
    few = log_odds.shape[0] * log_odds.shape[1] << log_odds.shape[2] <= _FEW
    if few and log_odds.numel() and not torch.compiler.is_compiling() and not several_ranks():
        needed = log_odds.requires_grad and torch.is_grad_enabled()
        each, batch, _, _ = _FewEntropies.apply(log_odds, weights, needed)
        return each, batch
    each = torch.stack([bit_entropy(logits, weights, _FLOOR) for logits in log_odds.unbind(1)]).mean()
    return each, _batch_entropy(log_odds, weights)


def _batch_entropy(log_odds: Tensor, weights: Tensor) -> Tensor:
    means = [mean_over_ranks(mean_code_probability(logits, weights)) for logits in log_odds.unbind(1)]
    return torch.stack([entropy(mean, _FLOOR) for mean in means]).mean()


class _FewEntropies(Function):
    """Both entropies and their gradients from the table of all codes (N, c, 2^d), in float64."""

    operation = "the entropies of codes"

    @staticmethod
    def forward(log_odds: Tensor, weights: Tensor, needed: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        codebooks = log_odds.shape[1]
        wide = log_odds.double()
        patterns = bit_patterns(log_odds.shape[2], wide)
        share = weights.double().div(codebooks).view(-1, 1, 1)
        logs = (wide @ patterns.t()).log_softmax(-1)
        p = logs.clamp(_LEAST).exp_()
        floored = logs.clamp(math.log(_FLOOR))
        mean = (p * share).sum(0)  # times 1 / c
        mean_logs = (mean * codebooks).clamp_(_FLOOR).log_()
        each, batch = -(p * floored * share).sum(), -(mean * mean_logs).sum()
        slopes = [log_odds.new_empty(0), log_odds.new_empty(0)]
        if needed:  # of -p max(log p, floor) in p, and then in the logits of the codes, and in the log-odds
            inside = floored.add_(logs > math.log(_FLOOR)), mean_logs.add_(mean * codebooks >= _FLOOR)
            p.mul_(share)
            for i, slope in enumerate(inside):
                part = p * slope
                # sum_c p_c (slope_c - sum p slope) bit_c, with sum_c p_c bit_c = sigmoid of the log-odds
                along = part.sum(-1, keepdim=True) * wide.sigmoid()
                slopes[i] = (along - part @ patterns).to(log_odds.dtype)
        return each.to(log_odds.dtype), batch.to(log_odds.dtype), slopes[0], slopes[1]

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
