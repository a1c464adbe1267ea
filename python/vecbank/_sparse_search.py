"""Retrieval with sparse vectors: `sparse.scores` and `sparse.topk`.

The kernels are the CPU's. Elsewhere scores are put together by plain torch, a block of queries at a time, so that
nothing of the size N x M is made but the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks, _select
from ._numpy import entry_point
from ._ops import REDUCTIONS, ops
from ._ops.sets import Lowered
from ._sparse_bank import SparseBank
from .allowed import Allowed, lowered
from .results import TopK


class _Asked(NamedTuple):
    """Queries and lists, as the ops take them."""

    ids: Tensor  # (..., T) int64
    query_weights: Tensor  # (..., T)
    starts: Tensor
    documents: Tensor
    weights: Tensor
    rows: int  # documents


@entry_point
def scores(query_ids: Tensor, query_weights: Tensor | None, documents: SparseBank) -> Tensor:
    """The scores of all documents: `score(q, d) = sum_j query_weights[j] * D[d, query_ids[j]]`.

    Args:
        query_ids: (..., T) integers, the terms of each query, from 0 to width - 1 (looked for on the CPU alone); -1
            stands for none. A term that comes twice counts twice.
        query_weights: of the documents' dtype: (..., T), one for each term; or (V,), a table of weights by term, as IDF
            is, in which the terms are looked up (where query_ids has the shape (V,) too, they are one for each term).
            None: 1 each.
        documents: a `sparse.SparseBank`.

    Returns:
        (..., M) in the documents' dtype. Sums run in float64 in the order of the query's terms, every product rounded
        before it is added, and are rounded once: the bits of the dense product in this order, where weights are finite.
        (A term that a document does not hold adds nothing, even where the query's weight is infinite or NaN.)
        Differentiable once in query_weights (also in a table) and in the documents' weights; those sums run in float64
        in a fixed order.

    Raises:
        IndexError: a term out of range. TypeError, ValueError: dtypes, shapes, devices.

    Source: Geng et al., "Towards competitive search relevance for inference-free learned sparse retrievers", 2024.

    Example:
        >>> import torch, vecbank
        >>> documents = vecbank.sparse.SparseBank.from_dense(torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 0.0]]))
        >>> idf = torch.tensor([0.5, 2.0, 1.0])
        >>> vecbank.sparse.scores(torch.tensor([[1, 2], [0, -1]]), idf, documents).tolist()
        [[5.0, 0.0], [0.0, 0.5]]
    """
    asked = _asked(query_ids, query_weights, documents)
    if _select.kernels(asked.ids):
        result: Tensor = ops.sparse_scores(*asked)
        return result
    flat = _flat(asked)
    blocks = [block.to(asked.weights.dtype) for _, _, block in _blocks(flat)]
    shape = (*asked.ids.shape[:-1], asked.rows)
    return torch.cat(blocks).reshape(shape) if blocks else asked.weights.new_zeros(shape)


@entry_point
def topk(
    query_ids: Tensor,
    query_weights: Tensor | None,
    documents: SparseBank,
    k: int,
    *,
    allowed: Allowed | Tensor | None = None,
    pad: bool = False,
) -> TopK:
    """The k documents of the highest scores for every query, best first: exact retrieval with sparse vectors.

    Every document counts: one without a term of the query has score 0, and comes before those below 0. Ranking is by
    the float64 score, ties go to the lower index.

    Args:
        query_ids, query_weights, documents: as of `sparse.scores`.
        k: 1 to M; any number from 1 with `pad`.
        allowed: which documents may be returned to whom, as of `topk`.
        pad: fewer than k documents are no error: what there is not is index -1.

    Returns:
        TopK(values, indices), both (..., k): the values are those of `sparse.scores`, differentiable once through the
        selected pairs. Fewer than k candidates (because of `allowed` or `pad`, or of scores that are NaN, which never
        win): index -1 and -inf, through which no gradient passes. Nothing of the size N x M is made.

    Raises:
        IndexError: a term out of range. ValueError: k outside 1..M (below 1 with `pad`), shapes, devices. TypeError:
        dtypes.

    Source: Geng et al., "Towards competitive search relevance for inference-free learned sparse retrievers", 2024.

    Example:
        >>> import torch, vecbank
        >>> documents = vecbank.sparse.SparseBank.from_dense(torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 3.0]]))
        >>> values, indices = vecbank.sparse.topk(torch.tensor([[1], [0]]), torch.tensor([1.0, 2.0]), documents, k=2)
        >>> values.tolist(), indices.tolist()
        ([[6.0, 4.0], [1.0, 0.0]], [[2, 0], [1, 0]])
    """
    asked = _asked(query_ids, query_weights, documents)
    k, count = _checks.integer("k", k), asked.rows
    if k < 1 or (k > count and not pad):
        raise ValueError(f"k must lie between 1 and the {count} documents (pad=True: fills up with -1), got k = {k}")
    sets: Lowered | None = None
    if allowed is not None:
        rows = asked.query_weights.new_empty(1).expand(count, 1)  # for their number and their device
        sets = lowered(allowed, asked.query_weights, rows)
    places = min(k, count)
    if places == 0:
        values = scores(asked.ids, asked.query_weights, documents)  # (..., 0), and known to autograd
        indices = asked.ids.new_empty(values.shape)
    elif _select.kernels(asked.ids):
        values, indices = ops.sparse_topk(*asked, places, *([[], []] if sets is None else sets))
    else:
        values, indices = _topk_in_blocks(asked, places, sets)
    if k > places:
        more, fill = (0, k - places), torch.nn.functional.pad
        values, indices = fill(values, more, value=-torch.inf), fill(indices, more, value=-1)
    return TopK(values, indices)


def _asked(query_ids: Tensor, query_weights: Tensor | None, documents: SparseBank) -> _Asked:
    if not isinstance(documents, SparseBank):
        raise TypeError(
            f"documents must be a sparse.SparseBank (SparseBank.from_csr and from_dense make one), "
            f"got {type(documents).__name__}"
        )
    ids = _checks.integers(query_ids, "query_ids")
    if ids.dim() == 0:
        raise ValueError("query_ids must have shape (..., T), got a scalar")
    starts, listed, weights = documents.lists()
    if ids.device != weights.device:
        raise ValueError(f"query_ids must be on the documents' device {weights.device}, got {ids.device}")
    _checks.in_range(ids, documents.width, "query_ids")
    if query_weights is None:
        query_weights = weights.new_ones(ids.shape)
    _checks.floating("query_weights", query_weights)
    if query_weights.dtype != weights.dtype:
        raise TypeError(
            f"query_weights must have the documents' dtype {weights.dtype}, got {query_weights.dtype}"
            f"{' (float64 is what numpy makes by default)' if query_weights.dtype is torch.float64 else ''}"
        )
    if query_weights.device != weights.device:
        raise ValueError(f"query_weights must be on the documents' device {weights.device}, got {query_weights.device}")
    if query_weights.shape != ids.shape:
        if query_weights.shape != (documents.width,):
            raise ValueError(
                f"query_weights must have the shape of query_ids {tuple(ids.shape)}, or be a table of shape "
                f"({documents.width},), got {tuple(query_weights.shape)}"
            )
        query_weights = ops.lookup(ids, query_weights.unsqueeze(1), None, REDUCTIONS["none"]).squeeze(-1)
    return _Asked(ids, query_weights, starts, listed, weights, len(documents))


# ---- Where there are no kernels -------------------------------------------------------------------------------------


def _flat(asked: _Asked) -> _Asked:
    """Queries (N, T), and weights in float64, so that their gradients are added up in it."""
    lead, terms = asked.ids.shape[:-1].numel(), asked.ids.shape[-1]
    wide = asked.query_weights.double().reshape(lead, terms)
    return asked._replace(ids=asked.ids.reshape(lead, terms), query_weights=wide, weights=asked.weights.double())


def _blocks(flat: _Asked) -> Iterator[tuple[int, int, Tensor]]:
    """(first, last, the float64 scores (n, M) of queries [first, last))."""
    step = _select.block_of(32 * flat.rows)
    for first in range(0, flat.ids.shape[0], step):
        last = min(first + step, flat.ids.shape[0])
        yield first, last, _scores_of(flat, first, last)


def _scores_of(flat: _Asked, first: int, last: int) -> Tensor:
    total = flat.weights.new_zeros(last - first, flat.rows)
    for j in range(flat.ids.shape[1]):
        begin, length = _spans(flat, flat.ids[first:last, j])
        query = torch.arange(last - first, device=total.device).repeat_interleave(length)
        entry = torch.arange(query.shape[0], device=total.device) + (begin - length.cumsum(0) + length)[query]
        more = flat.query_weights[first:last, j][query] * flat.weights[entry]
        total = total.index_put((query, flat.documents[entry].long()), more, accumulate=True)  # each place once
    return total


def _spans(flat: _Asked, terms: Tensor) -> tuple[Tensor, Tensor]:
    """Where the lists of terms begin, and how long they are; of -1, empty."""
    width = flat.starts.shape[0] - 1
    if width == 0:
        return torch.zeros_like(terms), torch.zeros_like(terms)
    inside = (terms >= 0) & (terms < width)
    known = torch.where(inside, terms, 0)
    begin = flat.starts[known]
    return begin, torch.where(inside, flat.starts[known + 1] - begin, 0)


def _topk_in_blocks(asked: _Asked, k: int, sets: Lowered | None) -> tuple[Tensor, Tensor]:
    flat, lead, found = _flat(asked), asked.ids.shape[:-1], []
    with torch.no_grad():
        rows = flat.weights.new_empty(1).expand(flat.rows, 1)
        for first, last, block in _blocks(flat):
            counted = ~block.isnan()
            if sets is not None:
                counted = counted & sets.holds(first, last, lead, rows)
            order = _select._best_first(block, counted)
            rank = torch.arange(k, device=block.device)
            found.append(torch.where(rank < order.counts.unsqueeze(-1), order.indices[:, :k], -1))
        chosen = torch.cat(found) if found else flat.ids.new_empty((0, k))
    values = torch.where(chosen < 0, -torch.inf, _pairs(flat, chosen)).to(asked.weights.dtype)
    return values.reshape(*lead, k), chosen.reshape(*lead, k)


def _pairs(flat: _Asked, chosen: Tensor) -> Tensor:
    """The float64 scores of chosen documents (N, k)."""
    lengths = flat.starts.diff()
    term = torch.arange(lengths.shape[0], device=lengths.device).repeat_interleave(lengths)
    keys = term * flat.rows + flat.documents  # ascending
    total = flat.weights.new_zeros(chosen.shape)
    for j in range(flat.ids.shape[1] if keys.shape[0] else 0):
        terms = flat.ids[:, j : j + 1]
        wanted = torch.where((terms < 0) | (chosen < 0), -1, terms * flat.rows + chosen)
        entry = torch.searchsorted(keys, wanted).clamp_max(keys.shape[0] - 1)
        more = flat.query_weights[:, j : j + 1] * flat.weights[entry]
        total = total + torch.where(keys[entry] == wanted, more, 0.0)
    return total
