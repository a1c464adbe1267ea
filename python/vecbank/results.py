"""What the functions return: named tuples, so that a result can be unpacked or read by name."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._deprecated import warn_renamed


class TopK(NamedTuple):
    """Best first: float32 values (float64 for float64 input) and int64 indices, both (..., k)."""

    values: Tensor
    indices: Tensor


class Nearest(NamedTuple):
    """The best row per query: values and int64 indices, both (...)."""

    values: Tensor
    indices: Tensor


class Attended(NamedTuple):
    """What `attend(return_lse=True)` returns: the sums (..., e), and the log-sum-exp of their scores (...)."""

    output: Tensor
    lse: Tensor


class RadiusHits(NamedTuple):
    """What `radius` returns: the hits of query i, in the order of x's leading dimensions, are the elements
    `offsets[i]:offsets[i + 1]` of the other two, best first.
    """

    offsets: Tensor  # (N + 1,) int64
    indices: Tensor  # (hits,) int64
    values: Tensor  # (hits,) float32, float64 for float64 input


class SearchPart(NamedTuple):
    """What `search_part` returns, for `merge_topk`: the best of a part of a bank, before anything is rounded.

    keys: (..., k) float64, larger is better whatever the metric: the score of a similarity; of "l1" the negated
        distance, of "l2" and "sqeuclidean" the negated square, of "poincare" the negated ratio below its root. -inf
        where there is no row.
    indices: (..., k) int64 within the whole bank, -1 where there is no row.
    metric: by which the keys rank: its name, or the object that was given.
    dtype: of the values to come.
    """

    keys: Tensor
    indices: Tensor
    metric: Any
    dtype: torch.dtype


class Verified(NamedTuple):
    """What `verify` returns for each query (...) and its list of k indices.

    right: the list is the exact answer: the indices of `topk` in the same order.
    right_up_to_ties: the same but for rows of equal float64 scores, of which the list may name others.
    first_wrong: the first rank (from 0) that is wrong, not counting ties; -1 where none is.
    recall: the share of the exact answer that the list names, in any order; a row whose float64 score equals that of
        the last one of the answer counts as one of it. 1 where the answer is empty.
    """

    right: Tensor  # bool
    right_up_to_ties: Tensor  # bool
    first_wrong: Tensor  # int64
    recall: Tensor  # float64


class Quantized(NamedTuple):
    """The nearest rows (..., d) in the bank's dtype, and their int64 codes (...)."""

    quantized: Tensor
    codes: Tensor


class Explanation(NamedTuple):
    """How one search on the CPU went. Threads cut a bank into parts, and each part searches for itself.

    screened: (query, part) pairs that each screen ("head", "int8", "int16", "float32") scanned; empty where every row
        was scored exactly.
    why: why the first of these screens was chosen, and why others followed it.
    queries: the number of queries.
    refined: (query, row) pairs that were scored in float64; a pair that two screens leave counts twice.
    repeated: (query, part) pairs that fell back: no screen decided, and every row of the part was scored. Where these
        are many, a finer screen (`Bank(screen=)`) may be faster. Where `screened` is empty they are all, which is no
        fault.
    bytes_read: of the bank and its packed copies, however often: each block of queries reads them.
    seconds: of the search.
    head: the width of the head that searches of this Bank look at first; None: there is none, they look at all
        coordinates.
    dimensions: how many coordinates of a row a query looked at, on average: those of the head, and the others of rows
        that the head left. Rows of the first sample are looked at twice, and a screen that follows another one looks
        at all again, so this can exceed d.
    predicted: `dimensions`, as the cost model predicted them when the head was chosen; None: the model was not asked
        yet, or never is (`vecbank.Bank` says for which shapes).
    gain: the time of all coordinates divided by that of the best head, as predicted, not measured (`why` says where
        queries take longer); below 1.1 all coordinates are kept. None as above.
    """

    screened: dict[str, int]
    why: str
    queries: int
    refined: int
    repeated: int
    bytes_read: int
    seconds: float
    head: int | None
    dimensions: float
    predicted: float | None
    gain: float | None


class QuantizeTrain(NamedTuple):
    """What a training step needs: quantized (..., d), codes (...), loss (), counts (M,), sums (M, d)."""

    quantized: Tensor
    codes: Tensor
    loss: Tensor
    counts: Tensor
    sums: Tensor


class ResidualQuantized(NamedTuple):
    """A cascade's result: the stages' rows summed (..., d), codes (..., S), losses (S,)."""

    quantized: Tensor
    codes: Tensor
    losses: Tensor


class Fired(NamedTuple):
    """What `sparse.encode_threshold` returns: a sparse code, and how many latents of each row are in it."""

    values: Tensor  # (..., c)
    indices: Tensor  # (..., c) int64
    active: Tensor  # (...) float: its gradient reaches the threshold (the penalty that makes codes sparse)


class KMeans(NamedTuple):
    """What `cluster.kmeans` returns."""

    centroids: Tensor  # (k, d)
    codes: Tensor  # (N,) int64: the nearest of these centroids
    inertia: float  # sum of (weighted) squared distances, or of 1 - cosine, to these centroids
    iterations: int  # steps (or passes over the data) of the restart that won

    @property
    def centres(self) -> Tensor:
        """The old name of `centroids`."""
        warn_renamed("KMeans.centres", "centroids")
        return self.centroids


# so that torch.export can save programs that return them
for _tuple in (TopK, Nearest, RadiusHits, Verified, Quantized, QuantizeTrain, ResidualQuantized):
    torch.utils._pytree._register_namedtuple(_tuple, serialized_type_name=f"vecbank.{_tuple.__name__}")
