"""The scores of sets of vectors in torch's own operations and the ops of pairs, a block of documents at a time.

This is how `multivector` goes where there are no kernels. Nothing of the size of all tokens times all tokens is made.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import _select
from ._ops import METRICS, SIMILARITIES, ops
from ._ops.blocks import BLOCK_BYTES
from ._token_sets import TokenSets


def blocks_of(documents: TokenSets, row_bytes: int) -> Iterator[tuple[int, int, int, int]]:
    """(first document, last, first row, last), by the block; a document larger than a block is one."""
    ends = documents.offsets.tolist()
    most, first = max(1, BLOCK_BYTES // max(1, row_bytes)), 0
    while first + 1 < len(ends):
        last = first + 1
        while last + 1 < len(ends) and ends[last + 1] - ends[first] <= most and last - first < most:
            last += 1
        yield first, last, ends[first], ends[last]
        first = last


def best_rows(queries: Tensor, documents: TokenSets, code: int) -> Tensor:
    """For each query token and document, (T, D) int64, the document's row of the best float64 score: the lowest of
    equal ones, the first NaN where there is one, and -1 of an empty document.
    """
    ranks, sign = _select._key_code(code), 1.0 if code in SIMILARITIES else -1.0
    tokens, pieces = queries.shape[0], []
    with torch.no_grad():
        for first, last, begin, end in blocks_of(documents, 32 * tokens):
            offsets = documents.offsets[first : last + 1]
            if begin == end:
                pieces.append(queries.new_full((tokens, last - first), -1, dtype=torch.int64))
                continue
            rows = torch.arange(begin, end, device=queries.device)
            of = torch.searchsorted(offsets, rows, right=True) - 1
            scores = sign * ops.exact_scores(queries, documents.rows[begin:end], ranks, torch.float64, None)
            of = of.expand(tokens, -1)
            most = scores.new_full((tokens, last - first), -torch.inf).scatter_reduce_(1, of, scores, "amax")
            best = (scores == most.gather(1, of)) | scores.isnan()
            none = torch.iinfo(torch.int64).max
            place = torch.where(best, rows, none)
            found = rows.new_full((tokens, last - first), none).scatter_reduce_(1, of, place, "amin")
            pieces.append(torch.where(found == none, -1, found))
    return torch.cat(pieces, 1) if pieces else queries.new_empty((tokens, 0), dtype=torch.int64)


def listed(documents: TokenSets, indices: Tensor) -> tuple[TokenSets, Tensor]:
    """These documents (n,) by number (-1: an empty one) as sets of their own, and which row each of their rows was."""
    starts, ends = documents.offsets[:-1], documents.offsets[1:]
    place = indices.clamp_min(0)
    sizes = torch.where(indices < 0, 0, ends[place] - starts[place])
    offsets = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    rows = torch.arange(int(offsets[-1]), device=indices.device)
    of = torch.searchsorted(offsets, rows, right=True) - 1
    numbers = starts[place[of]] + rows - offsets[of]
    return TokenSets(documents.rows.detach()[numbers], offsets), numbers


def best_rows_of(queries: TokenSets, documents: TokenSets, indices: Tensor, code: int) -> Tensor:
    """The same of the documents that are listed for each query (Q, k): (T, k)."""
    pieces, ends = [], queries.offsets.tolist()
    for q, (begin, end) in enumerate(zip(ends, ends[1:], strict=False)):
        some, numbers = listed(documents, indices[q])
        best = best_rows(queries.rows.detach()[begin:end], some, code)
        pieces.append(torch.where(best < 0, -1, numbers[best.clamp_min(0)]) if len(numbers) else best)
    return torch.cat(pieces) if pieces else queries.offsets.new_empty((0, indices.shape[1]))


def sums(queries: TokenSets, scores: Tensor) -> Tensor:
    """Of scores (T, n), for each query, its tokens' summed in their order: (Q, n)."""
    starts, sizes = queries.offsets[:-1], queries.offsets.diff()
    total = scores.new_zeros((queries.count, scores.shape[1]))
    most = int(sizes.max()) if queries.count else 0
    for t in range(most):
        some = (sizes > t).nonzero().squeeze(1)
        total = total.index_add(0, some, scores.index_select(0, starts[some] + t))
    return total


def values(queries: TokenSets, documents: TokenSets, rows: Tensor, missing: Tensor, code: int) -> Tensor:
    """The float64 scores from the best rows (T, n): (Q, n), differentiable in the rows of both sides; `missing` (Q, n)
    or (n,): where there is no document, or an empty one.
    """
    scores = ops.exact_scores(queries.rows, documents.rows, code, torch.float64, rows)
    total = sums(queries, scores if code in SIMILARITIES else -scores)
    return torch.where(missing, -torch.inf, total)


def topk(queries: TokenSets, documents: TokenSets, k: int, code: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """The k best keys, float64, and documents, (Q, k); -inf and -1 where there is none. allowed: (Q, D), or a view."""
    count, device = queries.count, queries.rows.device
    keys = torch.full((count, k), -torch.inf, dtype=torch.float64, device=device)
    indices = torch.full((count, k), -1, dtype=torch.int64, device=device)
    tokens, step = queries.rows.shape[0], max(1, BLOCK_BYTES // max(1, 32 * queries.rows.shape[0] + 64 * count))
    for first in range(0, documents.count, step):
        offsets = documents.offsets[first : first + step + 1]
        some = TokenSets(documents.rows[offsets[0] : offsets[-1]], offsets - offsets[0])
        best = best_rows(queries.rows, some, code) if tokens else offsets.new_empty((0, some.count))
        missing = (some.offsets.diff() == 0).expand(count, -1)
        found = values(queries, some, best, missing, code)
        numbers = torch.arange(first, first + some.count, device=device).expand(count, -1)
        if allowed is not None:
            missing = missing | ~allowed[:, first : first + some.count]
        numbers = torch.where(missing, -1, numbers)
        keys, indices = _select.merge(
            torch.cat([keys, found], 1), torch.cat([indices, numbers], 1), k, METRICS["dot"], wide=True
        )
    return keys, indices
