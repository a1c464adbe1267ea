"""Sets of vectors: late interaction (MaxSim, ColBERT), and the best or mean score of groups of bank rows.

The score of a query and a document, both sets of vectors ("tokens"), is the sum over the query's tokens of the largest
score among the document's tokens. A set may be given as `TokenSets` (rows and offsets), as a tuple of both, or, where
all have one size, as a tensor (S, T, d), which is not copied.

An empty document scores -inf, because a maximum over nothing is -inf, and is never a result. An empty query scores 0
with every document that is not empty, because a sum over nothing is 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple, SupportsIndex

import torch
from torch import Tensor

from . import _checks, _select, _token_blocks
from ._fixed_encodings import FixedEncoding
from ._numpy import entry_point
from ._ops import METRICS, ops
from ._ops.fakes import value_dtype
from ._ops.sets import Lowered
from ._prepared import PreparedBank
from ._prepared_documents import PreparedDocuments, metric_code
from ._token_sets import TokenSets, check_offsets, token_sets
from .allowed import Allowed, lowered
from .functional import segment_sum, topk
from .results import TopK

__all__ = [
    "DocumentBank",
    "FixedEncoding",
    "TokenSets",
    "encoded_topk",
    "group_max",
    "group_mean",
    "maxsim",
    "maxsim_pairs",
    "maxsim_topk",
]

Sets = TokenSets | tuple[Tensor, Tensor] | Tensor
Documents = Sets | PreparedDocuments


class _Sides(NamedTuple):
    """Both sides, checked, the code of the metric, and the codes of the documents' tokens where there are some."""

    q: TokenSets
    d: TokenSets
    code: int
    prepared: PreparedDocuments | None


def _sides(queries: Any, documents: Any, metric: object) -> _Sides:
    prepared = documents if isinstance(documents, PreparedDocuments) else None
    code = prepared._code if prepared is not None and metric is None else metric_code(metric)
    q = token_sets("queries", queries)
    d = token_sets("documents", documents) if prepared is None else prepared.documents
    _checks.pair(q.rows, d.rows, "documents", "queries")
    if code == METRICS["poincare"]:
        _checks.inside_ball("queries", q.rows)
        _checks.inside_ball("documents", d.rows)
    return _Sides(q, d, code, prepared)


def _allowed(allowed: Allowed | Tensor | None, q: TokenSets, d: TokenSets) -> Lowered | None:
    """Which documents each query may be given."""
    return lowered(allowed, q.rows.new_empty((q.count, 0)), d.rows.new_empty((d.count, 0)))


def _mask(sets: Lowered | None, q: TokenSets, d: TokenSets) -> Tensor | None:
    """The same as bools, (Q, D)."""
    return None if sets is None else sets.holds(0, q.count, torch.Size([q.count]), d.rows.new_empty((d.count, 0)))


def _recorded(q: TokenSets, d: TokenSets) -> bool:
    """Whether autograd wants to know of the scores."""
    return torch.is_grad_enabled() and (q.rows.requires_grad or d.rows.requires_grad)


@entry_point
def maxsim(queries: Sets, documents: Documents, metric: str | None = None) -> Tensor:
    """The scores of all documents: for each query, the sum over its tokens of the best score among the document's
    tokens.

    Args:
        queries: Q sets of vectors: TokenSets, (rows, offsets), or a tensor (Q, T, d).
        documents: D sets, likewise, or a DocumentBank. Dtypes as of `topk`: 16-bit tokens are read as they are.
        metric: "dot", "cosine", or a distance ("l2", "sqeuclidean", "l1", "poincare"), whose best score is the negated
            distance of the nearest token. None (default): that of a DocumentBank, else "dot".

    Returns:
        (Q, D) float32, float64 for float64 tokens. A gradient goes to both sides, through the token that was best
        (of equal ones the first); no matrix of tokens by tokens is kept. -inf for an empty document, NaN where a
        token's score is NaN.

    Raises:
        ValueError: shapes, offsets that do not fit, devices, metric. TypeError: dtypes.

    Example:
        >>> import torch, vecbank
        >>> queries = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> documents = vecbank.TokenSets.of([torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 1.0]])])
        >>> vecbank.maxsim(queries, documents).tolist()
        [[5.0, 2.0]]

    Source: Khattab and Zaharia, "ColBERT: Efficient and Effective Passage Search via Contextualized Late Interaction
    over BERT", 2020 (arXiv:2004.12832).
    """
    q, d, code, _ = _sides(queries, documents, metric)
    if _select.kernels(q.rows):
        scores: Tensor = ops.maxsim(q.rows, q.offsets, d.rows, d.offsets, code, _recorded(q, d))[0]
        return scores
    rows = _token_blocks.best_rows(q.rows.detach(), TokenSets(d.rows.detach(), d.offsets), code)
    missing = d.offsets.diff() == 0
    return _token_blocks.values(q, d, rows, missing, code).to(value_dtype(q.rows))


@entry_point
def maxsim_pairs(queries: Sets, documents: Documents, indices: Tensor, metric: str | None = None) -> Tensor:
    """The exact scores of chosen documents: re-ranking, losses on what a search has found.

    Args:
        queries, documents, metric: as of `maxsim`.
        indices: integers (Q, k): documents for each query; -1 stands for none.

    Returns:
        (Q, k): float64 sums of the float64 scores of `topk`, in the order of the query's tokens, rounded once to
        float32 (kept for float64 tokens). Differentiable in the tokens of both sides. -inf for -1 and for an empty
        document.

    Raises:
        IndexError: an index outside -1..D-1. ValueError, TypeError: as of `maxsim`.

    Example:
        >>> import torch, vecbank
        >>> queries, documents = torch.ones(1, 2, 3), torch.tensor([[[1.0, 1.0, 1.0]], [[2.0, 0.0, 0.0]]])
        >>> vecbank.maxsim_pairs(queries, documents, torch.tensor([[1, -1, 0]])).tolist()
        [[4.0, -inf, 6.0]]
    """
    q, d, code, _ = _sides(queries, documents, metric)
    return _pairs(q, d, _listed("indices", indices, q, d), code).to(value_dtype(q.rows))


def _listed(name: str, indices: object, q: TokenSets, d: TokenSets) -> Tensor:
    found = _checks.rows(indices, d.count, name)
    if found.dim() != 2 or found.shape[0] != q.count:
        raise ValueError(f"{name} must have shape ({q.count}, k) for {q.count} queries, got {tuple(found.shape)}")
    if found.device != q.rows.device:
        raise ValueError(f"{name} must be on the queries' device {q.rows.device}, got {found.device}")
    return found


def _pairs(q: TokenSets, d: TokenSets, indices: Tensor, code: int) -> Tensor:
    """In float64."""
    if _select.kernels(q.rows):
        scores: Tensor = ops.maxsim_pairs(q.rows, q.offsets, d.rows, d.offsets, indices, code, _recorded(q, d))[0]
        return scores
    rows = _token_blocks.best_rows_of(q, d, indices, code)
    if d.count == 0:
        return q.rows.new_full(indices.shape, -torch.inf, dtype=torch.float64)
    missing = (indices < 0) | (d.offsets.diff() == 0)[indices.clamp_min(0)]
    return _token_blocks.values(q, d, rows, missing, code)


@entry_point
def maxsim_topk(
    queries: Sets,
    documents: Documents,
    k: SupportsIndex,
    metric: str | None = None,
    *,
    candidates: Tensor | None = None,
    allowed: Allowed | Tensor | None = None,
) -> TopK:
    """The k documents of the largest `maxsim`, exact: the same documents on every instruction set and number of
    threads.

    Args:
        queries, documents, metric: as of `maxsim`.
        k: 1 to D; with `candidates`, to C.
        candidates: integers (Q, C): only these documents are looked at for each query (re-ranking); -1 stands for
            none, and a document that is named twice counts once.
        allowed: which documents may be returned to whom: bools (D,) or (Q, D), or a `vecbank.Allowed`, for which each
            document is a row of the bank.

    Returns:
        TopK(values, indices), (Q, k), best first: documents are ranked by the float64 score that `maxsim_pairs`
        rounds, equal scores by the lower document. A document that is empty, not allowed, or whose score is NaN is
        never a result; where there are fewer than k, the other ranks hold -inf and -1. A gradient goes through the
        values.

    Raises:
        ValueError: k, shapes, offsets that do not fit, devices, metric. IndexError: a candidate outside -1..D-1.
        TypeError: dtypes.

    Example:
        >>> import torch, vecbank
        >>> documents = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]], [[2.0, 2.0]]])
        >>> vecbank.maxsim_topk(torch.tensor([[[1.0, 1.0]]]), documents, 2).indices.tolist()
        [[2, 1]]
    """
    q, d, code, prepared = _sides(queries, documents, metric)
    k = _checks.integer("k", k)
    listed = None if candidates is None else _listed("candidates", candidates, q, d)
    most, of = (d.count, "documents") if listed is None else (listed.shape[1], "candidates")
    if not 1 <= k <= most:
        raise ValueError(f"k must lie between 1 and the number of {of} {most}, got {k}")
    sets = _allowed(allowed, q, d)
    with torch.no_grad():
        if listed is not None:
            keys, indices = _best_of(q, d, _once(listed), sets, code, k)
        elif _select.kernels(q.rows):
            some = ([], []) if sets is None else (sets.sets, sets.program)
            packed = None if prepared is None else prepared.codes_for(code)
            keys, indices = ops.maxsim_topk(
                q.rows, q.offsets, d.rows, d.offsets, k, code, *some, *(packed or (None, None))
            )
        else:
            keys, indices = _token_blocks.topk(q, d, k, code, _mask(sets, q, d))
    if _recorded(q, d):
        keys = _pairs(q, d, indices, code)
    return TopK(keys.to(value_dtype(q.rows)), indices)


def _once(listed: Tensor) -> Tensor:
    """The same with -1 for what is there already."""
    order = torch.sort(listed, dim=1, stable=True)
    again = torch.zeros_like(listed, dtype=torch.bool)
    again[:, 1:] = order.values.diff(dim=1) == 0
    return listed.masked_fill(torch.zeros_like(again).scatter(1, order.indices, again), -1)


def _best_of(
    q: TokenSets, d: TokenSets, listed: Tensor, sets: Lowered | None, code: int, k: int
) -> tuple[Tensor, Tensor]:
    """The best of these documents."""
    if d.count:
        missing = (d.offsets.diff() == 0)[listed.clamp_min(0)]
        if sets is not None:
            bank = d.rows.new_empty((d.count, 0))
            missing = missing | ~sets.holds(0, q.count, torch.Size([q.count]), bank, listed.clamp_min(0))
        listed = listed.masked_fill(missing, -1)
    return _select.merge(_pairs(q, d, listed, code), listed, k, METRICS["dot"], wide=True)


class DocumentBank(PreparedDocuments):
    """Documents that are searched many times: they keep codes of 8 bits of their tokens, a quarter of float32.

    A search looks at the codes first, whose bounds are proved, and then at the tokens of the documents that these do
    not rule out; the answer is that of `maxsim_topk`, to the bit. The codes are made at the first search, for "dot" and
    "cosine" on the CPU (elsewhere, for other metrics and for float64 tokens there are none, and all tokens are looked
    at). Tokens are shared with the caller, not copied, and have no gradient here. When torch counts a write into them,
    the next search makes the codes again; call `repack()` after writes that torch does not count.

    Args:
        documents: D sets of vectors: TokenSets, (rows, offsets), or a tensor (D, T, d).
        metric: what calls without a metric use: as of `maxsim`; None is "dot". Calls with another metric use no codes.

    Raises:
        ValueError: shapes, offsets that do not fit, metric. TypeError: dtypes.

    Example:
        >>> import torch, vecbank
        >>> bank = vecbank.DocumentBank(torch.tensor([[[1.0, 0.0]], [[3.0, 4.0]]]), "cosine")
        >>> bank.topk(torch.tensor([[[0.0, 1.0]]]), 1).indices.tolist(), len(bank)
        ([[1]], 2)
    """

    def prepare(self) -> DocumentBank:
        """Makes the codes now, where they serve; returns the bank."""
        self.codes_for(self._code)
        return self

    def repack(self) -> DocumentBank:
        """Makes the codes again, whatever torch has counted; returns the bank."""
        self._codes = None
        return self.prepare()

    def maxsim(self, queries: Sets, metric: str | None = None) -> Tensor:
        """The scores of all documents: `vecbank.maxsim`."""
        return maxsim(queries, self, metric)

    def pairs(self, queries: Sets, indices: Tensor, metric: str | None = None) -> Tensor:
        """The exact scores of chosen documents: `vecbank.maxsim_pairs`."""
        return maxsim_pairs(queries, self, indices, metric)

    def topk(
        self,
        queries: Sets,
        k: SupportsIndex,
        metric: str | None = None,
        *,
        candidates: Tensor | None = None,
        allowed: Allowed | Tensor | None = None,
    ) -> TopK:
        """The k best documents: `vecbank.maxsim_topk`."""
        return maxsim_topk(queries, self, k, metric, candidates=candidates, allowed=allowed)


# ---- Groups of bank rows --------------------------------------------------------------------------------------------


def _grouped(bank: Tensor, groups: object, num_groups: object) -> TokenSets:
    """The rows of each group, one group after the other."""
    _checks.shaped("bank", bank, ("M", "d"))
    m = bank.shape[0]
    if num_groups is None:
        try:
            return TokenSets(bank, check_offsets("groups", groups, m, bank.device))
        except ValueError as error:
            raise ValueError(f"{error} (labels of the rows need num_groups)") from None
    count = _checks.at_least(0, "num_groups", num_groups)
    labels = _checks.rows(groups, count, "groups")
    if labels.shape != (m,):
        raise ValueError(f"groups must be labels ({m},), one for each bank row, got {tuple(labels.shape)}")
    if labels.device != bank.device:
        raise ValueError(f"groups must be on the bank's device {bank.device}, got {labels.device}")
    order = torch.sort(labels, stable=True).indices
    offsets = torch.searchsorted(labels[order], torch.arange(count + 1, device=bank.device))
    order = order[offsets[0] :] if count else order[m:]
    return TokenSets(bank[order], offsets - offsets[0])


def _rows_alone(x: Tensor) -> TokenSets:
    """Each vector of x (..., d) as a set of its own."""
    _checks.dense("x", x)
    if x.dim() < 1:
        raise ValueError("x must have shape (..., d), got a scalar")
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return TokenSets(rows, torch.arange(rows.shape[0] + 1, device=x.device))


@entry_point
def group_max(
    x: Tensor,
    bank: Tensor,
    groups: Tensor,
    metric: str | None = None,
    *,
    num_groups: SupportsIndex | None = None,
) -> Tensor:
    """The best score of each vector within each group of bank rows: class descriptors, prototypes, interests, parts.

    Args:
        x: (..., d).
        bank: (M, d).
        groups: without `num_groups`, offsets (G + 1,): group g is the rows groups[g]:groups[g + 1]. With it, labels
            (M,) below `num_groups`; -1 is no group.
        metric: as of `maxsim`: a distance counts negated.
        num_groups: the number of groups, where `groups` are labels.

    Returns:
        (..., G), as of `maxsim` with sets of one token: float32, float64 for float64 input; -inf for an empty group,
        because a maximum over nothing is -inf. A gradient goes to x and to the best row of each group.

    Raises:
        ValueError: shapes, offsets that do not fit, devices, metric. IndexError: labels outside -1..G-1.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[1.0], [5.0], [3.0]])
        >>> vecbank.group_max(torch.tensor([[2.0]]), bank, torch.tensor([0, 1, 0]), num_groups=3).tolist()
        [[6.0, 10.0, -inf]]
    """
    sets = _grouped(bank, groups, num_groups)
    alone = _rows_alone(x)
    _checks.pair(x, bank)  # else maxsim would name queries and documents, which the caller does not have
    return maxsim(alone, sets, metric).reshape(*x.shape[:-1], sets.count)


@entry_point
def group_mean(
    x: Tensor,
    bank: Tensor,
    groups: Tensor,
    metric: str | None = None,
    *,
    num_groups: SupportsIndex | None = None,
) -> Tensor:
    """The mean score of each vector with the rows of each group: a product with the group's mean row.

    Args:
        x, bank, groups, num_groups: as of `group_max`.
        metric: "dot" (None, the default) or "cosine": the mean of the cosines.

    Returns:
        (..., G): float32, float64 for float64 input; 0 for an empty group, whose mean row is taken for zero (as
        `segment_sum` of no rows is), so that losses and gradients stay finite. A gradient goes to x and to the bank.

    Raises:
        As of `group_max`.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[1.0], [5.0], [3.0]])
        >>> vecbank.group_mean(torch.tensor([[2.0]]), bank, torch.tensor([0, 2, 3, 3])).tolist()
        [[6.0, 6.0, 0.0]]
    """
    code = metric_code(metric)
    if code not in (METRICS["dot"], METRICS["cosine"]):
        raise ValueError(f'metric must be "dot" or "cosine" for the mean score of a group, got {metric!r}')
    sets = _grouped(bank, groups, num_groups)
    alone = _rows_alone(x)
    _checks.pair(x, bank)
    wide = torch.float64
    rows, queries = sets.rows.to(wide), alone.rows.to(wide)
    if code == METRICS["cosine"]:
        rows = torch.nn.functional.normalize(rows, dim=-1, eps=1e-8)
        queries = torch.nn.functional.normalize(queries, dim=-1, eps=1e-8)
    sizes = sets.offsets.diff()
    of = torch.repeat_interleave(torch.arange(sets.count, device=bank.device), sizes, output_size=rows.shape[0])
    means = segment_sum(rows, of, sets.count) / sizes.clamp_min(1).unsqueeze(1)
    return (queries @ means.mT).to(value_dtype(x)).reshape(*x.shape[:-1], sets.count)


# ---- Candidates by fixed-dimensional encodings ----------------------------------------------------------------------


@entry_point
def encoded_topk(
    queries: Sets,
    documents: Documents,
    encoded: Tensor | PreparedBank,
    encoding: FixedEncoding,
    k: SupportsIndex,
    *,
    candidates: SupportsIndex | None = None,
    allowed: Allowed | Tensor | None = None,
) -> TopK:
    """The k best documents of those whose fixed-dimensional encodings promise most (MUVERA): one search among single
    vectors, then the exact scores of what it found.

    Args:
        queries: Q sets of vectors: TokenSets, (rows, offsets), or a tensor (Q, T, d).
        documents: D sets, likewise, or a DocumentBank.
        encoded: `encoding.documents(documents)`, (D, size), made once, or a Bank of it ("dot"); 16-bit ones are
            compared with encodings of the queries in 16 bits.
        encoding: the `FixedEncoding` that made them. Its metric is that of the scores.
        k: 1 to D.
        candidates: C, how many documents get their exact score: k to D. None (default): 10 k, at least 100; a number
            beyond D means D.
        allowed: as of `maxsim_topk`.

    Returns:
        TopK(values, indices), (Q, k): what `maxsim_topk` returns with the C documents of the largest dot products as
        candidates. With C = D it is exact. Differentiable values.

    Raises:
        ValueError: k, candidates, shapes, devices. TypeError: dtypes.

    Source: Dhulipala, Hadian, Jayaram, Lee and Mirrokni, "MUVERA: Multi-Vector Retrieval via Fixed Dimensional
    Encodings", NeurIPS 2024.

    Example:
        >>> import torch
        >>> from vecbank.multivector import FixedEncoding, encoded_topk
        >>> documents = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]], [[2.0, 2.0]]])
        >>> encoding = FixedEncoding(2)
        >>> encoded = encoding.documents(documents)
        >>> encoded_topk(torch.tensor([[[1.0, 1.0]]]), documents, encoded, encoding, 2).indices.tolist()
        [[2, 1]]
    """
    if not isinstance(encoding, FixedEncoding):
        raise TypeError(f"encoding must be a FixedEncoding, got {type(encoding).__name__}")
    q, d, _, _ = _sides(queries, documents, encoding.metric)
    vectors = encoded._held() if isinstance(encoded, PreparedBank) else encoded
    _checks.shaped("encoded", vectors, (d.count, encoding.size))
    k = _checks.integer("k", k)
    if not 1 <= k <= d.count:
        raise ValueError(f"k must lie between 1 and the number of documents {d.count}, got {k}")
    most = max(10 * k, 100) if candidates is None else _checks.at_least(k, "candidates", candidates)
    if most >= d.count:  # every document is a candidate, whatever its encoding (one of 16 bits may overflow)
        return maxsim_topk(q, documents, k, encoding.metric, allowed=allowed)
    held = d.offsets.diff() > 0  # encoded as zeros, an empty document would be one of the better candidates
    with torch.no_grad():
        few = allowed
        if not bool(held.all()):
            few = Allowed.mask(held) if allowed is None else Allowed.mask(held) & allowed
        x = encoding.queries(q).to(vectors.dtype)
        found = topk(x, encoded, most, "dot", allowed=few).indices
    return maxsim_topk(q, documents, k, encoding.metric, candidates=found, allowed=allowed)
