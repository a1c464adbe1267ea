"""The contract, written out in plain torch and float64: slow, readable, and what the tests compare with.

Same names and meanings as `vecbank`, on tensors only. `topk`, `nearest`, `quantize`, `lookup`
and `segment_sum` follow the contract's order of operations; a compiled kernel has to return the same bits:

* every sum over the `d` features is kept in eight lanes: feature `i` goes to lane `i % 8`, each lane is
  added up in ascending order from zero, and the lanes are joined as `((0+1)+(2+3)) + ((4+5)+(6+7))`;
* a product is rounded before it is added (no fused multiply-add, hence no matmul, einsum or `sum` here);
* a sum of rows by code is added up over blocks of 1024 rows: first the rows of a code within a block, in ascending
  order, then the sums of the blocks, in ascending order;
* ranking is by the float64 score (`l2` by its square), equal scores go to the lower index, a NaN score is
  never chosen, and only the value that is returned is rounded, once.

`project` here is the same score matrix; the library's own is held to a tolerance around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._reference_roots import _sqrt, _TwiceAsinhRoot
from .results import Attended, Nearest, Quantized, QuantizeTrain, RadiusHits, ResidualQuantized, TopK

__all__ = [
    "attend",
    "hamming",
    "lookup",
    "maxsim",
    "nearest",
    "project",
    "quantize",
    "quantize_train",
    "radius",
    "residual_quantize",
    "segment_sum",
    "sparse_scores",
    "sparse_topk",
    "topk",
]

EPS = 1e-8  # a norm below this counts as this
SIMILARITIES = ("dot", "cosine")
DISTANCES = ("l2", "sqeuclidean", "l1", "poincare")

_LANES = 8
_BLOCK = 1 << 17  # elements held per lane step: small enough to stay in cache
_SUM_BLOCK = 1024  # rows whose terms are added up before they enter a sum of rows by code


def project(x: Tensor, bank: Tensor, metric: str = "cosine", *, out_dtype: torch.dtype | None = None) -> Tensor:
    """Score of every query against every row of the bank, `(..., M)`. Differentiable by plain autograd.

    Example:
        >>> import torch, vecbank
        >>> vecbank.reference.project(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), "l2").tolist()
        [[5.0]]
    """
    ranks = _scores(x, bank, metric)
    return _round(_finish(ranks, metric), out_dtype or x.dtype)


def topk(
    x: Tensor,
    bank: Tensor,
    k: int,
    metric: str = "dot",
    allowed: Tensor | None = None,
    bias: Tensor | None = None,
    order: str = "best",
) -> TopK:
    """The best (or worst) `k` rows of the bank for every query, in that order; `bias` `(M,)` adds to the scores.

    Example:
        >>> import torch, vecbank
        >>> vecbank.reference.topk(torch.tensor([[1.0]]), torch.tensor([[2.0], [3.0], [1.0]]), 2).indices.tolist()
        [[1, 0]]
    """
    m = bank.shape[-2]
    if not 1 <= k <= m:
        raise ValueError(f"topk: k must be between 1 and the bank's {m} rows, got k = {k}")
    scores = _scores(x, bank, metric)
    if bias is not None:
        scores = scores + bias.to(torch.float64)
    ranks, indices = _best(scores, k, metric, allowed, worst=order == "worst")
    found = torch.where(indices < 0, ranks, _finish(ranks.masked_fill(indices < 0, 0.0), metric))
    return TopK(_round(found, _value_dtype(x)), indices)


def nearest(x: Tensor, bank: Tensor, metric: str = "l2", allowed: Tensor | None = None) -> Nearest:
    """The best row of the bank for every query; index -1 where no row qualifies.

    Example:
        >>> import torch, vecbank
        >>> vecbank.reference.nearest(torch.tensor([[1.0]]), torch.tensor([[2.0], [3.0], [1.0]])).indices.tolist()
        [2]
    """
    ranks, indices = _best(_scores(x, bank, metric), 1, metric, allowed)
    return Nearest(_round(_finish(ranks, metric), _value_dtype(x)).squeeze(-1), indices.squeeze(-1))


def radius(x: Tensor, bank: Tensor, r: Tensor | float, metric: str = "l2", allowed: Tensor | None = None) -> RadiusHits:
    """All rows of the bank within `r` of every query, best first; `r` is a number or `(...)`.

    Example:
        >>> import torch, vecbank
        >>> vecbank.reference.radius(torch.tensor([[1.0]]), torch.tensor([[2.0], [3.0], [1.5]]), 1.0).indices.tolist()
        [2, 0]
    """
    ranks, indices = _best(_scores(x, bank, metric), bank.shape[-2], metric, allowed)
    scores = _finish(ranks, metric)
    limits = torch.as_tensor(r, dtype=torch.float64).expand(x.shape[:-1]).unsqueeze(-1)
    hits = (indices >= 0) & (scores >= limits if metric in SIMILARITIES else scores <= limits)
    offsets = torch.nn.functional.pad(hits.sum(-1).reshape(-1).cumsum(0), (1, 0))
    return RadiusHits(offsets, indices[hits], _round(scores[hits], _value_dtype(x)))


def attend(
    x: Tensor,
    bank: Tensor,
    values: Tensor | None = None,
    metric: str = "dot",
    *,
    beta: Tensor | float = 1.0,
    allowed: Tensor | None = None,
) -> Attended:
    """`softmax(beta * score) @ values` and the log-sum-exp, in float64; distances count negatively. `vecbank.attend` is
    held to a tolerance around it.

    Example:
        >>> import torch, vecbank
        >>> vecbank.reference.attend(torch.tensor([[0.0]]), torch.tensor([[1.0], [3.0]])).output.tolist()
        [[2.0]]
    """
    scores = _finish(_scores(x, bank, metric), metric)
    z = (scores if metric in SIMILARITIES else -scores) * torch.as_tensor(beta, dtype=torch.float64).unsqueeze(-1)
    if allowed is not None:
        z = z.masked_fill(~allowed, float("-inf"))
    lse = z.logsumexp(-1)
    empty = (lse == float("-inf")).unsqueeze(-1)
    weights = (z - lse.unsqueeze(-1).masked_fill(empty, 0.0)).exp()
    return Attended(weights @ (bank if values is None else values).double(), lse)


def maxsim(queries: Sequence[Tensor], documents: Sequence[Tensor], metric: str = "dot") -> Tensor:
    """`maxsim` of lists of sets (T, d): the sum, token after token, of the largest scores, float64, (Q, D). -inf of an
    empty document.

    Example:
        >>> import torch, vecbank
        >>> tokens = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> vecbank.reference.maxsim([tokens], [tokens, tokens[:1], tokens[:0]]).tolist()
        [[5.0, 1.0, -inf]]
    """
    found = torch.full((len(queries), len(documents)), float("-inf"), dtype=torch.float64)
    for i, query in enumerate(queries):
        for j, document in enumerate(documents):
            if len(document) == 0:
                continue
            scores = _finish(_scores(query, document, metric), metric)
            found[i, j] = 0.0
            for of_token in scores if metric in SIMILARITIES else -scores:
                found[i, j] += of_token.amax()
    return found


def quantize(x: Tensor, bank: Tensor, metric: str = "l2") -> Quantized:
    """The best row itself, and its index; NaN and -1 without a valid row. (No straight-through gradient.)

    Example:
        >>> import torch, vecbank
        >>> vecbank.reference.quantize(torch.tensor([[1.4]]), torch.tensor([[2.0], [1.0]])).quantized.tolist()
        [[1.0]]
    """
    codes = nearest(x, bank, metric).indices
    rows = lookup(codes, bank.detach())
    return Quantized(rows.masked_fill((codes < 0).unsqueeze(-1), float("nan")), codes)


def quantize_train(x: Tensor, bank: Tensor, metric: str = "l2", valid: Tensor | None = None) -> QuantizeTrain:
    """`quantize` with the mean squared error, rows per code and their sums; rows that do not count stay as they are.

    Example:
        >>> import torch, vecbank
        >>> vecbank.reference.quantize_train(torch.tensor([[1.5], [9.0]]), torch.tensor([[1.0], [9.0]])).loss.item()
        0.125
    """
    quantized, codes = quantize(x, bank, metric)
    if valid is not None:
        quantized = torch.where(valid.unsqueeze(-1), quantized, x.to(bank.dtype))
        codes = codes.masked_fill(~valid, -1)
    dtype = torch.float64 if bank.dtype == torch.float64 else torch.float32
    counted = codes >= 0
    squares = (quantized.to(torch.float64) - x.to(torch.float64))[counted].square()
    loss = squares.mean() if squares.numel() else squares.sum()
    m, d = bank.shape[-2:]
    groups = list(zip(x, codes, strict=True)) if bank.dim() == 3 else [(x, codes)]
    counts, sums = torch.zeros(len(groups), m), torch.zeros(len(groups), m, d, dtype=torch.float64)
    for i, (rows, group) in enumerate(groups):
        counts[i] = torch.bincount(group[group >= 0], minlength=m)
        sums[i] = _segment_sum(rows, group, m, None)
    return QuantizeTrain(
        quantized, codes, loss.to(dtype), counts.reshape(bank.shape[:-1]), sums.to(dtype).reshape(bank.shape)
    )


def residual_quantize(x: Tensor, codebooks: Sequence[Tensor], metric: str = "l2") -> ResidualQuantized:
    """A cascade: every codebook quantises the residual of those before it, rounded to the codebooks' dtype.

    Example:
        >>> import torch, vecbank
        >>> stages = [torch.tensor([[0.0], [4.0]]), torch.tensor([[0.0], [1.0]])]
        >>> vecbank.reference.residual_quantize(torch.tensor([[5.0]]), stages).codes.tolist()
        [[1, 1]]
    """
    residual, parts, codes, losses = x.to(codebooks[0].dtype), [], [], []
    for codebook in codebooks:
        row, code = quantize(residual, codebook, metric)
        residual = residual - row
        squares = residual.to(torch.float64)[code >= 0].square()
        parts.append(row)
        codes.append(code)
        losses.append((squares.mean() if squares.numel() else squares.sum()).to(codebook.dtype))
    total = parts[0]
    for row in parts[1:]:
        total = total + row
    return ResidualQuantized(total, torch.stack(codes, -1), torch.stack(losses))


def lookup(codes: Tensor, bank: Tensor, weights: Tensor | None = None, *, reduce: str = "none") -> Tensor:
    """Rows of the bank by index, -1 giving a zero row; `sum`/`mean` go over the last axis of `codes`.

    A batched bank `(B, M, d)` takes codes `(B, ...)`.

    Example:
        >>> import torch, vecbank
        >>> vecbank.reference.lookup(torch.tensor([1, -1]), torch.tensor([[2.0], [3.0]])).tolist()
        [[3.0], [0.0]]
    """
    if reduce not in ("none", "sum", "mean"):
        raise ValueError(f"lookup: reduce must be 'none', 'sum' or 'mean', got {reduce!r}")
    m, d = bank.shape[-2:]
    _check_codes(codes, m)
    valid = codes >= 0
    slots = codes.clamp(min=0)
    if bank.dim() == 3:  # one long bank, the codes of batch b moved on by b * M
        offset = torch.arange(bank.shape[0], device=codes.device) * m
        slots = slots + offset.reshape(-1, *[1] * (codes.dim() - 1))
    if m == 0:
        rows = torch.zeros(*codes.shape, d, dtype=torch.float64, device=codes.device)
    else:
        rows = bank.flatten(0, -2).to(torch.float64)[slots]
    if weights is not None:
        rows = rows * weights.to(torch.float64).unsqueeze(-1)
    # A left-out row is zero whatever its slot or its weight holds.
    rows = torch.where(valid.unsqueeze(-1), rows, torch.zeros_like(rows))
    if reduce != "none":
        total = torch.zeros(*codes.shape[:-1], d, dtype=torch.float64, device=codes.device)
        for t in range(codes.shape[-1]):
            total = total + rows[..., t, :]
        if reduce == "mean":
            total = total / valid.sum(-1, keepdim=True).clamp(min=1)
        rows = total
    return _round(rows, bank.dtype)


def segment_sum(x: Tensor, codes: Tensor, num_codes: int, weights: Tensor | None = None) -> Tensor:
    """`out[c]` = sum of the rows of `x` whose code is `c`, block by block of 1024 rows; code -1 is left out.

    Codes `(..., k)` beside `x` `(..., d)` add every row to `k` sums.

    Example:
        >>> import torch, vecbank
        >>> vecbank.reference.segment_sum(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 1]), 3).tolist()
        [[0.0], [3.0], [0.0]]
    """
    return _round(_segment_sum(x, codes, num_codes, weights), x.dtype)


def hamming(x: Tensor, bank: Tensor, bits: int, x_planes: int = 1, bank_planes: int = 1) -> Tensor:
    """All distances of packed bits, int64 `(..., M)`: of every pair of planes, the bits that differ, weighted.

    Example:
        >>> import torch, vecbank
        >>> x, bank = torch.tensor([[0b0011]], dtype=torch.uint8), torch.tensor([[0b1111]], dtype=torch.uint8)
        >>> vecbank.reference.hamming(x, bank, 4).tolist(), vecbank.reference.hamming(x, bank, 3).tolist()
        ([[2]], [[1]])
    """

    def planes_of(words: Tensor, planes: int) -> list[Tensor]:  # bools (..., bits)
        place = torch.arange(8, dtype=torch.uint8)
        of_bytes = (words.unsqueeze(-1) >> place & 1).bool().unflatten(-2, (planes, (bits + 7) // 8))
        return [plane[..., :bits] for plane in of_bytes.flatten(-2).unbind(-2)]

    total = torch.zeros(*x.shape[:-1], bank.shape[0], dtype=torch.int64)
    for u, own in enumerate(planes_of(x, x_planes)):
        for v, rows in enumerate(planes_of(bank, bank_planes)):
            differ = (own.unsqueeze(-2) != rows).sum(-1)
            total += differ * 2 ** (x_planes - 1 - u + bank_planes - 1 - v)
    return total


def _segment_sum(x: Tensor, codes: Tensor, num_codes: int, weights: Tensor | None) -> Tensor:
    """`segment_sum` before it is rounded."""
    _check_codes(codes, num_codes)
    per_row = 1
    if codes.dim() == x.dim():
        per_row = codes.shape[-1]
        x = x.unsqueeze(-2).expand(*codes.shape, x.shape[-1])
    d = x.shape[-1]
    codes = codes.reshape(-1)
    rows = x.reshape(codes.numel(), d).to(torch.float64)
    if weights is not None:
        rows = rows * weights.reshape(-1, 1).to(torch.float64)
    # Sums of the (code, block) pairs that have rows, then of the pairs of each code; blocks lie at absolute rows.
    blocks = torch.arange(codes.numel(), device=codes.device) // max(1, per_row) // _SUM_BLOCK
    many = int(blocks.max()) + 1 if codes.numel() else 1
    rows, blocks, codes = rows[codes >= 0], blocks[codes >= 0], codes[codes >= 0]
    pairs, pair_of_row = torch.unique(codes * many + blocks, return_inverse=True)
    return _sums_in_order(_sums_in_order(rows, pair_of_row, len(pairs)), pairs // many, num_codes)


def _sums_in_order(rows: Tensor, codes: Tensor, num_codes: int) -> Tensor:
    """The sum from zero of the rows of every code, one after another in ascending order."""
    # The r-th row of every code is added in round r: ascending within a code, and no code twice in a round.
    order = torch.sort(codes, stable=True).indices
    counts = torch.bincount(codes, minlength=num_codes)
    starts = counts.cumsum(0) - counts
    total = torch.zeros(num_codes, rows.shape[-1], dtype=torch.float64, device=rows.device)
    for r in range(int(counts.max()) if codes.numel() else 0):
        live = (counts > r).nonzero().squeeze(-1)
        total = total.index_put((live,), total[live] + rows[order[starts[live] + r]])
    return total


def _ordered_sum(a: Tensor, b: Tensor, term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sum over the first axis of `term(a[i], b[i])`, in the order this module's docstring gives."""
    lanes = [torch.zeros((), dtype=torch.float64, device=a.device)] * _LANES
    full = a.shape[0] // _LANES * _LANES
    if full:  # all eight lanes in one step
        block = torch.zeros((), dtype=torch.float64, device=a.device)
        for start in range(0, full, _LANES):
            block = block + term(a[start : start + _LANES], b[start : start + _LANES])
        lanes = list(block)
    for i in range(full, a.shape[0]):
        lanes[i % _LANES] = lanes[i % _LANES] + term(a[i], b[i])
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))


def _product(a: Tensor, b: Tensor) -> Tensor:
    return a * b


def _squared_difference(a: Tensor, b: Tensor) -> Tensor:
    difference = a - b
    return difference * difference


def _absolute_difference(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs()


def _scores(x: Tensor, bank: Tensor, metric: str) -> Tensor:
    """The float64 scores that rank, `(..., M)`: as defined, but the square for `l2`."""
    if metric not in SIMILARITIES + DISTANCES:
        raise ValueError(f"unknown metric {metric!r}")
    batched = bank.dim() == 3
    m = bank.shape[-2]
    # Features first, so that a step over them works on whole score tiles: (d, B, N, 1) against (d, B, 1, M).
    queries = x if batched else x.reshape(1, x.shape[:-1].numel(), x.shape[-1])
    rows = bank if batched else bank.unsqueeze(0)
    queries = queries.to(torch.float64).movedim(-1, 0).unsqueeze(-1)
    rows = rows.to(torch.float64).movedim(-1, 0).unsqueeze(-2).contiguous()
    n = queries.shape[2]
    step = max(1, _BLOCK // max(1, _LANES * rows.shape[1] * m))
    tiles = [_tile(queries[:, :, i : i + step], rows, metric) for i in range(0, n, step)]
    return torch.cat(tiles, dim=1).reshape(*x.shape[:-1], m) if n else queries.new_zeros(*x.shape[:-1], m)


def _tile(queries: Tensor, rows: Tensor, metric: str) -> Tensor:
    shape = (queries.shape[1], queries.shape[2], rows.shape[3])
    if metric in DISTANCES:
        term = _absolute_difference if metric == "l1" else _squared_difference
        distance = _ordered_sum(queries, rows, term).expand(shape)
        return distance if metric != "poincare" else distance / (_inside(queries) * _inside(rows))
    dot = _ordered_sum(queries, rows, _product).expand(shape)
    if metric == "dot":
        return dot
    query_norms = _sqrt(_ordered_sum(queries, queries, _product)).clamp(min=EPS)
    row_norms = _sqrt(_ordered_sum(rows, rows, _product)).clamp(min=EPS)
    return dot / (query_norms * row_norms)


def _inside(rows: Tensor) -> Tensor:
    """1 - |row|^2 of points of the unit ball, NaN of others."""
    squares = _ordered_sum(rows, rows, _product)
    return torch.where(squares < 1, 1 - squares, torch.nan)


def _best(ranks: Tensor, k: int, metric: str, allowed: Tensor | None, *, worst: bool = False) -> tuple[Tensor, Tensor]:
    """The best `k` along the last axis; index -1 and the worst value where candidates run out."""
    largest = (metric in SIMILARITIES) != worst
    nothing = float("-inf") if largest else float("inf")
    shape = (*ranks.shape[:-1], k)
    if ranks.shape[-1] == 0:
        return ranks.new_full(shape, nothing), torch.full(shape, -1, dtype=torch.int64, device=ranks.device)
    key = (-ranks if largest else ranks).detach()
    if allowed is not None:
        key = key.masked_fill(~allowed.expand(ranks.shape), float("nan"))
    # A stable sort leaves equal scores in order of index, and puts NaN (what may not be chosen) after +inf.
    indices = torch.sort(key, dim=-1, stable=True).indices[..., :k]
    missing = key.gather(-1, indices).isnan()
    return ranks.gather(-1, indices).masked_fill(missing, nothing), indices.masked_fill(missing, -1)


def _finish(ranks: Tensor, metric: str) -> Tensor:
    if metric == "poincare":
        found: Tensor = _TwiceAsinhRoot.apply(ranks)
        return found
    return _sqrt(ranks) if metric == "l2" else ranks


def _value_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check_codes(codes: Tensor, limit: int) -> None:
    if codes.numel() and (int(codes.min()) < -1 or int(codes.max()) >= limit):
        raise IndexError(f"codes must be -1 or below {limit}")


def _round(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 to `dtype` once. (torch goes to the 16-bit types by way of float32, rounding twice.)"""
    if dtype not in (torch.bfloat16, torch.float16) or x.requires_grad:
        return x.to(dtype)
    # Round to odd first: the last bit of the float32 then records that something was cut off.
    single = x.to(torch.float32)
    error = x - single.to(torch.float64)
    even = (single.view(torch.int32) & 1) == 0
    towards = torch.where(error > 0, torch.inf, -torch.inf).to(torch.float32)
    odd = torch.where(even & (error != 0) & x.isfinite(), torch.nextafter(single, towards), single)
    return odd.to(dtype)


def sparse_scores(query_ids: Tensor, query_weights: Tensor, documents: Tensor) -> Tensor:
    """`sparse.scores` for documents (M, V) with their zeros: term after term, in float64. Weights are finite.

    Example:
        >>> import torch, vecbank
        >>> matrix = torch.tensor([[0.0, 2.0], [1.0, 3.0]])
        >>> vecbank.reference.sparse_scores(torch.tensor([1, 0, -1]), torch.tensor([1.0, 4.0, 9.0]), matrix).tolist()
        [2.0, 7.0]
    """
    return _sparse_sums(query_ids, query_weights, documents).to(documents.dtype)


def sparse_topk(
    query_ids: Tensor, query_weights: Tensor, documents: Tensor, k: int, allowed: Tensor | None = None
) -> TopK:
    """`sparse.topk` for documents (M, V) with their zeros.

    Example:
        >>> import torch, vecbank
        >>> matrix = torch.tensor([[0.0, 2.0], [1.0, 3.0]])
        >>> vecbank.reference.sparse_topk(torch.tensor([1]), torch.tensor([1.0]), matrix, 1).indices.tolist()
        [1]
    """
    sums, indices = _best(_sparse_sums(query_ids, query_weights, documents), k, "dot", allowed)
    return TopK(sums.to(documents.dtype), indices)


def _sparse_sums(query_ids: Tensor, query_weights: Tensor, documents: Tensor) -> Tensor:
    columns = documents.double().T  # (V, M)
    total = columns.new_zeros((*query_ids.shape[:-1], documents.shape[0]))
    for ids, weights in zip(query_ids.unbind(-1), query_weights.double().unbind(-1), strict=True):
        held = (ids >= 0).unsqueeze(-1)
        products = weights.unsqueeze(-1) * columns[ids.clamp_min(0)]
        total = total + torch.where(held, products, 0.0)
    return total
