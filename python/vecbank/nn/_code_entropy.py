"""The two entropies of lookup-free codes: that of each row's codes, and that of the codes of the batch."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ._bits import bit_entropy, entropy, mean_code_probability
from ._distributed import mean_over_ranks
from ._draws import uniform

_FLOOR = 1e-5  # inside the entropies' logarithms


def code_entropies(log_odds: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """E H(p_n) and H(E p_n), averaged over c codebooks and, inside H(E p_n), over all ranks.

    Args:
        log_odds: (N, c, d) of independent bits. weights: (N,), whose sum is 1.
    """
    codebooks = log_odds.unbind(1)
    each = torch.stack([bit_entropy(logits, weights, _FLOOR) for logits in codebooks]).mean()
    means = [mean_over_ranks(mean_code_probability(logits, weights)) for logits in codebooks]
    return each, torch.stack([entropy(mean, _FLOOR) for mean in means]).mean()


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
