"""`attend`: sums of a bank's rows, weighted by their similarity to a query; and the log-sum-exp of the similarities.

Attention over a fixed set, the retrieval of modern Hopfield networks, the lookup of dictionaries, kernel classifiers,
contrastive losses. The weights of all pairs are never in memory at once.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, SupportsIndex, overload

import torch
from torch import Tensor

from . import _attend_blocks, _attend_few, _attend_fused, _checks
from ._attend_blocks import Given, Problem, Weight
from ._numpy import entry_point
from ._ops import METRICS, SIMILARITIES
from ._ops.fakes import value_dtype
from ._ops.names import metric_name
from ._prepared import PreparedBank
from .allowed import Allowed, lowered
from .functional import compared, project
from .metrics import Metric, mapping
from .results import Attended

WEIGHTS = ("softmax", "sparsemax")


def _betas(beta: object, x: Tensor, dtype: torch.dtype) -> Tensor:
    """beta as (N,), one for each row of x."""
    lead = x.shape[:-1]
    if isinstance(beta, Tensor) and beta.dim() > 0:
        _checks.floating("beta", beta)
        if beta.device != x.device:
            raise ValueError(f"beta must be on x's device {x.device}, got {beta.device}")
        try:
            found = beta.to(dtype).expand(lead)
        except RuntimeError:
            raise ValueError(f"beta must be a number or broadcast to {tuple(lead)}, got {tuple(beta.shape)}") from None
    else:
        _checks.number("beta", beta)
        if not isinstance(beta, Tensor):
            number = float(beta)  # type: ignore[arg-type]
            if not abs(number) <= torch.finfo(dtype).max:
                raise ValueError(f"beta must be finite in {dtype}, got {number}")
            return torch.full((lead.numel(),), number, dtype=dtype, device=x.device)
        found = beta.to(x.device, dtype).expand(lead)
    found = found.reshape(lead.numel())
    plain = found.detach()
    if _checks.readable(plain) and plain.numel() and not bool(plain.isfinite().all()):
        raise ValueError(f"beta must be finite, got {float(plain[~plain.isfinite()][0])}")
    return found


def _given(
    verb: str,
    x: Tensor,
    bank: Tensor | PreparedBank,
    values: Tensor | PreparedBank | None,
    metric: str | Metric | None,
    beta: object,
    allowed: Allowed | Tensor | None,
) -> Given:
    m = mapping(metric, bank)
    if m is not None:
        rows = bank._held() if isinstance(bank, PreparedBank) else bank
        _checks.vectors("bank", rows)
        _checks.pair(x, rows)
        code, similarity = None, m.similarity
    else:
        rows, code = compared(verb, x, bank, metric, "dot", biased=True)
        metric, similarity = metric_name(code), code in SIMILARITIES
    if isinstance(values, PreparedBank):
        values = values._held()
    if values is not None:
        _checks.vectors("values", values)
        if values.device != x.device:
            raise ValueError(f"values must be on x's device {x.device}, got {values.device}")
        if values.shape[:-1] != rows.shape[:-1]:
            lead = "".join(f"{size}, " for size in rows.shape[:-1])
            raise ValueError(f"values must have a row for each row of the bank, ({lead}e), got {tuple(values.shape)}")
    sets = lowered(allowed, x, rows)
    work = torch.promote_types(value_dtype(x), torch.float64 if rows.dtype == torch.float64 else torch.float32)
    return Given(x, bank, rows, values, metric, code, similarity, _betas(beta, x, work), allowed, sets)


@overload
def attend(
    x: Tensor,
    bank: Tensor | PreparedBank,
    values: Tensor | PreparedBank | None = ...,
    metric: str | Metric | None = ...,
    *,
    beta: Tensor | float = ...,
    weight: str | Weight | None = ...,
    k: SupportsIndex | None = ...,
    allowed: Allowed | Tensor | None = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...
@overload
def attend(
    x: Tensor,
    bank: Tensor | PreparedBank,
    values: Tensor | PreparedBank | None = ...,
    metric: str | Metric | None = ...,
    *,
    beta: Tensor | float = ...,
    weight: str | Weight | None = ...,
    k: SupportsIndex | None = ...,
    allowed: Allowed | Tensor | None = ...,
    return_lse: Literal[True],
) -> Attended: ...
@entry_point
def attend(
    x: Tensor,
    bank: Tensor | PreparedBank,
    values: Tensor | PreparedBank | None = None,
    metric: str | Metric | None = None,
    *,
    beta: Tensor | float = 1.0,
    weight: str | Weight | None = "softmax",
    k: SupportsIndex | None = None,
    allowed: Allowed | Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | Attended:
    """Sums of rows weighted by similarity: `weight(beta * scores) @ values`, without the matrix of weights.

    Args:
        x: (..., d), the queries.
        bank: (M, d), (B, M, d) with x (B, N, d), or a Bank: what queries are compared with.
        values: (M, e), or (B, M, e): the rows that are summed, finite even where no query may be given them (0 times
            NaN is NaN). None (default): those of the bank.
        metric: as of `project`. None (default): what a Bank names, else "dot". Distances count negatively, so that
            near rows weigh more, whatever the metric.
        beta: the scale of the scores (an inverse temperature): a finite number, or a tensor that broadcasts to (...).
            For scaled dot-product attention d ** -0.5.
        weight: what becomes of a row's scores z = beta * score. "softmax" (default): exp(z) / sum(exp(z));
            "sparsemax": the point of the simplex nearest to z, most of whose weights are 0; None: z itself; or a
            function from scores (n, M) to weights of that shape, which is called for a block of queries at a time (and
            once more for each on the way back); scores of rows that are not allowed are -inf, and their weights count
            as 0.
        k: over the k best rows of each query alone (exact, as `topk` finds them), 1 to M. None (default): over all.
            As in `topk`, rows of the bank with NaN are passed over, and a query with NaN finds no row: its sums are 0.
        allowed: which rows count for whom, as of `topk`.
        return_lse: return `Attended(output, lse)`; of "softmax" alone.

    Returns:
        (..., e), of values' dtype. Sums run in float32 (float64 for float64). Where no row is allowed: zeros.
        Differentiable once in x, a tensor bank, values and beta: on the way back scores are made again, so that memory
        stays O((N + M) d). On the CPU the sums have a fixed order: the same bits for every number of threads.
        lse: (...), float32 or float64: log(sum(exp(beta * score))) over the rows that count, differentiable; -inf where
        there is none.

    Raises:
        ValueError: beta not finite, k outside 1..M, weight, shapes, devices, metric. TypeError: dtypes.

    Source: Vaswani et al., "Attention is all you need", 2017; Ramsauer et al., "Hopfield networks is all you need",
        ICLR 2021; the sums in one pass: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, and
        Dao et al., "FlashAttention", NeurIPS 2022.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> vecbank.attend(torch.tensor([[1.0, 0.0]]), bank, beta=200.0).tolist()
        [[1.0, 0.0]]
        >>> out, lse = vecbank.attend(torch.tensor([[0.0, 0.0]]), bank, torch.tensor([[2.0], [4.0]]), return_lse=True)
        >>> out.tolist(), round(float(lse), 4)
        ([[3.0]], 0.6931)
    """
    if not (weight is None or callable(weight) or (isinstance(weight, str) and weight in WEIGHTS)):
        raise ValueError(f'weight must be "softmax", "sparsemax", None or a function of scores, got {weight!r}')
    if return_lse and weight != "softmax":
        raise ValueError(f'return_lse goes with weight="softmax", got {weight!r}')
    g = _given("attend", x, bank, values, metric, beta, allowed)
    if g.values is None:
        g = g._replace(values=g.rows)
    m = g.rows.shape[-2]
    if k is not None:
        k = _checks.integer("k", k)
        if not 1 <= k <= m:
            raise ValueError(f"k must lie between 1 and the bank's M = {m}, got {k}")
    found = _attend(g, weight, k, return_lse)
    assert found.output is not None and g.values is not None
    output = found.output.to(g.values.dtype)
    if not return_lse:
        return output
    assert found.lse is not None
    return Attended(output, found.lse)


class Found(NamedTuple):
    output: Tensor | None
    lse: Tensor | None


def _attend(g: Given, weight: str | Weight | None, k: int | None, wants_lse: bool) -> Found:
    if k is not None:
        return Found(*_attend_few.best(g, weight, k))
    if weight == "sparsemax":
        output = _attend_few.sparse(g)
        if output is not None:
            return Found(output, None)
    if weight is None and g.code == METRICS["dot"] and g.allowed is None and not g.biased:
        return Found(_linear(g), None)
    if weight == "softmax":
        fused = _attend_fused.attend(g)
        if fused is not None:
            return Found(fused[0], fused[1].to(g.beta.dtype))
    return Found(*_attend_blocks.attend(_problem(g, wants_lse), weight))


def _linear(g: Given) -> Tensor:
    """(x B^T) V = x (B^T V)."""
    assert g.values is not None
    work = g.beta.dtype
    wide = g.x.to(work) * g.beta.reshape(*g.x.shape[:-1], 1)
    return _attend_blocks.product(wide, _attend_blocks.product(g.rows.to(work).mT, g.values.to(work)))


def _problem(g: Given, wants_lse: bool) -> Problem:
    work = g.beta.dtype
    bank: Any = g.bank

    def score(x: Tensor, batch: int) -> Tensor:
        rows = bank[batch] if g.rows.dim() == 3 else bank
        return project(x, rows, g.metric, out_dtype=work)

    signed = score if g.similarity else (lambda x, batch: -score(x, batch))
    values = None if g.values is None else g.values.to(work)
    m = mapping(g.metric, g.bank)
    learned = m is not None and m.learned
    return Problem(g.x, signed, g.rows, values, g.beta, g.sets, wants_lse, learned)


@entry_point
def logsumexp(
    x: Tensor,
    bank: Tensor | PreparedBank,
    metric: str | Metric | None = None,
    *,
    beta: Tensor | float = 1.0,
    allowed: Allowed | Tensor | None = None,
) -> Tensor:
    """log(sum_j exp(beta * score_j)) of every query over the bank's rows: what contrastive losses subtract, the energy
    of a modern Hopfield network, a log density by kernels.

    Args: as of `attend`.

    Returns:
        (...), float32 (float64 for float64), differentiable once in x, a tensor bank and beta; -inf where no row is
        allowed.

    Example:
        >>> import torch, vecbank
        >>> round(float(vecbank.logsumexp(torch.zeros(2), torch.ones(4, 2))), 4)
        1.3863
    """
    g = _given("logsumexp", x, bank, None, metric, beta, allowed)
    lse = _attend(g, "softmax", None, True).lse
    assert lse is not None
    return lse
