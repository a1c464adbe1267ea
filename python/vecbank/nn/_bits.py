"""Integers as sign bits, and entropies of independent bits, without a codebook of 2^d rows.

d independent bits with log-odds a (..., d) give the code c the probability p_c = prod_i sigmoid(+-a_i). The
table of all codes is the product of the table of the first bits and that of the last ones, (2^h x 2^l), h + l = d:
the batch mean of p is one matrix product of two narrow tables, and nothing of size N x 2^d is held.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._checks import readable
from .._ops.tangents import Function, refuse_tangents
from ._estimators import once, twice

_BLOCK = 1 << 20  # table entries held at a time
_KEPT_BITS = 10
_kept: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}
NO_SECOND = (
    "the gradient of the entropy of each row's codes has no derivative: a second backward pass needs a loss without it "
    "(entropy_loss_weight=0)"
)
_NEGLIGIBLE = 1e-20  # smaller probabilities do not change sums of probabilities
_LEAST = -60.0  # smaller logarithms of probabilities: their exponentials are slow to compute, and denormals at last
_FEW = 1 << 11  # log-odds, for which the calls take longer than their logarithms in float64
_LARGE = 1e30  # log-odds beyond it count as this: infinity times a bit that is 0 would be NaN


def pack_bits(bits: Tensor, powers: Tensor) -> Tensor:
    """Bools (..., d) to int64 (...): the sum of the powers whose bit is set."""
    return (bits * powers).sum(-1)


def unpack_bits(numbers: Tensor, powers: Tensor) -> Tensor:
    """Integers (...) to bools (..., d)."""
    return (numbers.unsqueeze(-1) & powers) != 0


def _log_table(logits: Tensor) -> Tensor:
    # log p_c = sum_i bit_i(c) a_i - sum_i log(1 + e^a_i): in float64, as large log-odds cancel there
    wide = logits.double().clamp(-_LARGE, _LARGE)
    table = wide @ _patterns(logits.shape[-1], wide)[0]
    if logits.numel() <= _FEW or (logits.requires_grad and torch.is_grad_enabled()):
        bends = F.softplus(wide, threshold=40.0)
    else:  # the same as max(a, 0) + log(1 + e^-|a|), whose last term float32 holds to 1e-7; at 0 it has no gradient
        bends = wide.clamp_min_(0).sub_(F.logsigmoid(logits.abs().clamp_max_(-_LEAST)))
    return table.sub_(bends.sum(-1, keepdim=True)).to(logits.dtype)


def log_table(logits: Tensor) -> Tensor:
    """Log-probabilities of all 2^k codes of k independent bits, (N, k) to (N, 2^k); the first bit is the highest."""
    rows = max(1, _BLOCK >> logits.shape[-1])
    if torch.compiler.is_compiling() or logits.shape[0] <= rows:
        return _log_table(logits)
    return torch.cat([_log_table(part) for part in logits.split(rows)])


def exponential(logs: Tensor) -> Tensor:
    """Probabilities from their logarithms, at least e^-60."""
    return logs.clamp_min(_LEAST).exp_()


def table(logits: Tensor) -> tuple[Tensor, Tensor]:
    """`log_table` and the probabilities; those below 1e-20 are 0, as denormals would make every product slow."""
    logs = log_table(logits)
    return logs, F.threshold(exponential(logs), _NEGLIGIBLE, 0.0)


def _patterns(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """`bit_patterns` transposed, and with a column of ones. Small ones are kept: every step reads them."""
    keeps = count <= _KEPT_BITS and readable(like) and not torch.is_inference_mode_enabled()
    found = _kept.get((count, like.dtype)) if keeps else None
    if found is None:
        powers = 2 ** torch.arange(count - 1, -1, -1, device=like.device)
        bits = unpack_bits(torch.arange(2**count, device=like.device), powers).to(like.dtype)
        found = bits.t().contiguous(), F.pad(bits, (0, 1), value=1.0)
        if keeps and type(bits) is Tensor:  # no mode that makes other tensors is on
            _kept[count, like.dtype] = found
    return found


def bit_patterns(count: int, like: Tensor) -> Tensor:
    """(2^count, count) zeros and ones, the first column the highest bit."""
    return _patterns(count, like)[0].t()


def odds_of(logits: Tensor) -> Tensor:
    """Probabilities of bits."""
    return logits.clamp(_LEAST, -_LEAST).sigmoid_()


def hits(weights: Tensor, odds: Tensor) -> Tensor:
    """sum_c w_c dlog p_c / da (..., d), for weights (..., 2^d) of all codes: dlog p_c / da_i = bit_i(c) - odds_i."""
    width = odds.shape[-1]
    found = weights @ _patterns(width, weights)[1]
    return found[..., :width].addcmul(found[..., width:], odds, value=-1)


def to_bits(logits: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """sum_c w_c dlog p_c / da (N, d) from the sums of w over each half's codes, (N, 2^h) and (N, 2^l).

    dlog p_c / da_i = bit_i(c) - sigmoid(a_i), and a bit of the first half depends on the first half's code alone.
    """
    high = first.shape[1].bit_length() - 1
    a = first @ _patterns(high, logits)[1]
    b = second @ bit_patterns(logits.shape[1] - high, logits)
    return torch.cat((a[:, :high], b), 1).addcmul(a[:, high:], odds_of(logits), value=-1)


def table_gradient(logits: Tensor, u: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """Gradient (N, d) in the log-odds of sum_c weight_c p_c, p_c = u_i v_j, for weight (N, 2^h, 2^l)."""
    part = weight * v.unsqueeze(1)  # not bmm: N tiny products are slow
    rows = u * part.sum(2)
    columns = (part * u.unsqueeze(2) if twice() else part.mul_(u.unsqueeze(2))).sum(1)
    return to_bits(logits, rows, columns)


def row_entropy(logits: Tensor, weights: Tensor, log_floor: float, need_grad: bool) -> tuple[Tensor, Tensor]:
    """sum_n weights_n H_n with H_n = -sum_c p_c max(log p_c, log_floor), and its gradient in logits (N, d).

    As sum_c p_c = 1, H_n = -log_floor - sum_c p_c max(log p_c - log_floor, 0): only codes above the floor are
    computed. They are found by their first half: p_c <= u_i max_j v_j.
    """
    n, d = logits.shape
    high = d // 2
    total = -log_floor * weights.sum(dtype=torch.float64)
    grad = torch.zeros_like(logits) if need_grad else logits.new_empty(0)
    step = max(1, _BLOCK >> (d - high))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        a, w = logits[rows], weights[rows]
        (log_u, u), (log_v, v) = table(a[:, :high]), table(a[:, high:])
        u = u * w.unsqueeze(1)
        counts = (log_u + log_v.amax(1, keepdim=True) > log_floor) & (w != 0).unsqueeze(1)
        first, second = torch.zeros_like(u), torch.zeros_like(v)
        for row, code in zip(
            *(t.split(max(1, _BLOCK >> (d - high))) for t in counts.nonzero(as_tuple=True)), strict=True
        ):
            above = (log_u[row, code].unsqueeze(1) + log_v[row] - log_floor).clamp_min_(0)
            weight, tail = u[row, code], v[row]
            total -= ((above * tail).sum(1) * weight).sum(dtype=torch.float64)
            if need_grad:  # dH / dlog p_c = -p_c (max(log p_c - log_floor, 0) + [log p_c > log_floor]) + const p_c
                slope = above.add_(above > 0).mul_(tail).mul_(weight.unsqueeze(1))
                first[row, code] = slope.sum(1)
                second.index_add_(0, row, slope)
        if need_grad:
            grad[rows] = -to_bits(a, first, second)
    return total.to(logits.dtype), grad


_bit_entropy = torch.library.custom_op("vecbank_nn::bit_entropy", row_entropy, mutates_args=())


@_bit_entropy.register_fake
def _(logits: Tensor, weights: Tensor, log_floor: float, need_grad: bool) -> tuple[Tensor, Tensor]:
    return logits.new_empty(()), torch.empty_like(logits) if need_grad else logits.new_empty(0)


class _BitEntropy(Function):
    operation = "the entropy of bits"

    @staticmethod
    def forward(logits: Tensor, weights: Tensor, log_floor: float) -> tuple[Tensor, Tensor]:
        value, slope = _bit_entropy(logits, weights, log_floor, True)
        return value, slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        logits, slope = ctx.saved_tensors
        slope = once(slope, logits, words=NO_SECOND) if twice() else slope
        return grad * slope, None, None


def bit_entropy(logits: Tensor, weights: Tensor, floor: float) -> Tensor:
    """Weighted sum over rows of the entropy of all 2^d codes, logarithms cut off at log(floor); a scalar.

    Args:
        logits: (N, d) log-odds of independent bits, float32 or float64. weights: (N,).
        floor: probabilities below it count as it inside the logarithm.

    Takes time in proportion to the codes above the floor (at most 1 / floor for each row), and a few MiB. The
    gradient comes from the same pass.
    """
    refuse_tangents(_BitEntropy.operation, logits)
    log_floor = math.log(floor)
    if logits.requires_grad and torch.is_grad_enabled():
        value: Tensor = _BitEntropy.apply(logits, weights, log_floor)[0]
        return value
    return _bit_entropy(logits, weights, log_floor, False)[0]


def mean_code_probability(logits: Tensor, weights: Tensor) -> Tensor:
    """sum_n weights_n p_n over all codes, (2^h, 2^l): a product of (N, 2^h) and (N, 2^l); differentiable."""
    high = logits.shape[1] // 2
    u, v = table(logits[:, :high])[1], table(logits[:, high:])[1]
    return (u * weights.unsqueeze(1)).t() @ v


def entropy(probability: Tensor, floor: float) -> Tensor:
    """-sum p log max(p, floor), over all elements."""
    return -(probability * probability.clamp_min(floor).log()).sum()
