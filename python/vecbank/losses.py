"""Contrastive losses, whose sums over all pairs are `logsumexp`: the matrix of similarities is never in memory.

Each is a line or two on `logsumexp` and `score_pairs`, to be read and varied: `allowed` says which rows are negatives,
and a Bank or a queue of rows may stand for the keys.

    lse = vecbank.logsumexp(x, keys, "cosine", beta=1 / temperature)
    positive = vecbank.score_pairs(x, keys, torch.arange(len(x)).unsqueeze(1), "cosine").squeeze(1) / temperature
    loss = (lse - positive).mean()  # InfoNCE
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _checks, _select
from ._numpy import entry_point
from ._ops import METRICS
from ._prepared import PreparedBank
from .allowed import Allowed, lowered
from .attention import logsumexp
from .selections import score_pairs

__all__ = ["debiased", "info_loob", "info_nce"]

_REDUCTIONS = ("mean", "sum", "none")


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction not in _REDUCTIONS:
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def _positives(
    x: Tensor, keys: Tensor | PreparedBank, positives: Tensor | None, metric: str, temperature: Tensor | float
) -> tuple[Tensor, Tensor, Tensor | float]:
    """The numbers (N, 1) of the positives, their scores over the temperature (N,), and one over that."""
    if metric not in ("cosine", "dot"):
        raise ValueError(f'metric must be "cosine" or "dot", got {metric!r}')
    _checks.tensor("x", x)
    if x.dim() != 2:
        raise ValueError(f"x must be (N, d), got {tuple(x.shape)}")
    _checks.number("temperature", temperature)
    plain = temperature.detach() if isinstance(temperature, Tensor) else temperature
    if not isinstance(plain, Tensor) or _checks.readable(plain):
        number = float(plain)
        if not (0 < number < math.inf and math.isfinite(1.0 / number)):
            raise ValueError(f"temperature must be above 0 and finite, got {number}")
    rows = keys._held() if isinstance(keys, PreparedBank) else keys
    _checks.vectors("keys", rows)
    if rows.dim() != 2:
        raise ValueError(f"keys must be (M, d), got {tuple(rows.shape)}")
    if positives is None:
        if rows.shape[0] < x.shape[0]:
            raise ValueError(
                f"keys must have a row for each of x's {x.shape[0]} (or name them: positives=), got {rows.shape[0]}"
            )
        positives = torch.arange(x.shape[0], device=x.device)
    positives = _checks.integers(positives, "positives")
    _checks.in_range(positives, rows.shape[0], "positives", low=0)
    if positives.shape != x.shape[:1]:
        raise ValueError(f"positives must be ({x.shape[0]},), got {tuple(positives.shape)}")
    chosen, beta = positives.unsqueeze(1), 1.0 / temperature
    return chosen, score_pairs(x, keys, chosen, metric).squeeze(1) * beta, beta


def _negatives(chosen: Tensor, allowed: Allowed | Tensor | None) -> Allowed:
    """What is allowed, less the positives."""
    others = Allowed.exclude(chosen)
    return others if allowed is None else others & allowed


@entry_point
def info_nce(
    x: Tensor,
    keys: Tensor | PreparedBank,
    positives: Tensor | None = None,
    *,
    temperature: Tensor | float = 0.07,
    metric: str = "cosine",
    allowed: Allowed | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """InfoNCE (NT-Xent, the batch softmax): log(sum_j exp(s_ij / t)) - s_ip / t, of positive p.

    Args:
        x: (N, d).
        keys: (M, d), or a Bank.
        positives: (N,) integers, the key of each row; None (default): its own number.
        temperature: t, a number above 0, or a learned tensor without dimensions.
        metric: "cosine" (default) or "dot".
        allowed: which keys are in the sum, as of `topk`; the positive should be among them.
        reduction: "mean" (default), "sum" or "none".

    Returns:
        A number, or (N,), float32 (float64 for float64). Differentiable once in x, keys and temperature; the memory
        of a training step is O((N + M) d).

    Raises:
        ValueError, TypeError: shapes, dtypes, metric, temperature, reduction. IndexError: positives.

    Source: van den Oord et al., "Representation learning with contrastive predictive coding", 2018.

    Example:
        >>> import torch, vecbank
        >>> x = torch.eye(3)
        >>> round(float(vecbank.losses.info_nce(x, x, temperature=1.0)), 4)
        0.5514
    """
    _, positive, beta = _positives(x, keys, positives, metric, temperature)
    return _reduce(logsumexp(x, keys, metric, beta=beta, allowed=allowed) - positive, reduction)


@entry_point
def info_loob(
    x: Tensor,
    keys: Tensor | PreparedBank,
    positives: Tensor | None = None,
    *,
    temperature: Tensor | float = 1 / 30,
    metric: str = "cosine",
    allowed: Allowed | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """InfoLOOB: InfoNCE whose sum leaves the positive out (leave one out bound): log(sum_{j != p} exp(s_ij / t)) -
    s_ip / t.

    Args, Returns, Raises: as of `info_nce`; without a negative the loss of a row is -inf.

    Source: Fürst et al., "CLOOB: modern Hopfield networks with InfoLOOB outperform CLIP", NeurIPS 2022; Poole et al.,
        "On variational bounds of mutual information", ICML 2019.

    Example:
        >>> import torch, vecbank
        >>> x = torch.eye(3)
        >>> round(float(vecbank.losses.info_loob(x, x, temperature=1.0)), 4)
        -0.3069
    """
    chosen, positive, beta = _positives(x, keys, positives, metric, temperature)
    negatives = _negatives(chosen, allowed)
    return _reduce(logsumexp(x, keys, metric, beta=beta, allowed=negatives) - positive, reduction)


@entry_point
def debiased(
    x: Tensor,
    keys: Tensor | PreparedBank,
    positives: Tensor | None = None,
    *,
    class_prior: float = 0.1,
    temperature: Tensor | float = 0.5,
    metric: str = "cosine",
    allowed: Allowed | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The debiased contrastive loss: some negatives are of the positive's class, and their share is taken out.

    log(exp(p) + n g) - p, where p = s_ip / t, n is the number of negatives, and g = max((mean_j exp(s_ij / t) -
    class_prior exp(p)) / (1 - class_prior), exp(-1 / t)).

    Args: as of `info_nce`, and
        class_prior: the share of negatives that are of the positive's class, 0 to below 1; 0 is InfoNCE but for the
            least value of g.
        allowed: which keys are negatives; never the positive.

    Returns, Raises: as of `info_nce`; a row without negatives has the loss 0.

    Source: Chuang et al., "Debiased contrastive learning", NeurIPS 2020 (with one positive).

    Example:
        >>> import torch, vecbank
        >>> x = torch.eye(3)
        >>> round(float(vecbank.losses.debiased(x, x, class_prior=0.0, temperature=1.0)), 4)
        0.5514
    """
    _checks.number("class_prior", class_prior)
    if not 0 <= class_prior < 1:
        raise ValueError(f"class_prior must lie from 0 to below 1, got {class_prior}")
    chosen, positive, beta = _positives(x, keys, positives, metric, temperature)
    negatives = _negatives(chosen, allowed)
    count = _counts(x, keys, negatives).to(positive.dtype)
    lse = logsumexp(x, keys, metric, beta=beta, allowed=negatives)
    mean = lse - count.clamp_min(1).log()
    # log(exp(mean) - prior exp(positive)), which is -inf where the difference is not above 0.
    least = -beta * torch.ones_like(mean)
    if class_prior > 0:
        apart = positive + math.log(class_prior) - mean
        above = apart < 0
        safe = torch.where(above, apart, -1.0)
        estimate = torch.where(above, mean + torch.log1p(-safe.exp()), -torch.inf) - math.log1p(-class_prior)
    else:
        estimate = mean
    negative = torch.where(estimate > least, estimate, least) + count.clamp_min(1).log()
    loss = torch.where(count > 0, torch.nn.functional.softplus(negative - positive), 0.0)
    return _reduce(loss, reduction)


def _counts(x: Tensor, keys: Tensor | PreparedBank, negatives: Allowed) -> Tensor:
    """How many keys each row may be given, (N,)."""
    rows = keys._held() if isinstance(keys, PreparedBank) else keys
    sets = lowered(negatives, x, rows)
    assert sets is not None
    spans = _select.spans(_select.Search(x, rows, None, METRICS["dot"]), 16 * rows.shape[0])
    parts = [sets.holds(first, last, x.shape[:-1], rows).sum(-1) for first, last in spans]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=x.device)
