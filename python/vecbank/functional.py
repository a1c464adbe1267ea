"""The verbs. Every function takes a bank as a plain tensor (packed on the fly) or as a prepared `vecbank.Bank`.

Metrics: `dot` x.b; `cosine` x.b / (max(|x|, 1e-8) max(|b|, 1e-8)); `l2` |x - b|; `sqeuclidean` |x - b|^2;
`l1` the sum of |x_i - b_i|, and `poincare` 2 asinh(|x - b| / sqrt((1 - |x|^2) (1 - |b|^2))) of points of the unit
ball: these two have no screen, so every pair is scored in float64, by `project` too. `vecbank.metrics` has more.
Similarities are better when larger, distances when smaller. `topk`, `nearest` and `quantize` rank by the float64 score,
computed in a fixed order, ties to the lower index: the answer depends on neither processor nor thread count.
`project` is held to a tolerance instead.

numpy arrays are taken in place of tensors, and then the results are numpy arrays (without gradients). A tensor beside a
numpy array is a TypeError; a Bank goes with either kind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks, _farthest, _mapped, _select, bits
from ._bits_bank import PackedRows, of_bits
from ._deprecated import old_call
from ._numpy import entry_point
from ._ops import METRICS, REDUCTIONS, ops
from ._ops.fakes import value_dtype
from ._ops.names import POINCARE
from ._ops.sets import Lowered
from ._prepared import PreparedBank
from ._select import Search, worst_value
from .allowed import Allowed, lower
from .metrics import Metric, mapping, names
from .results import Nearest, Quantized, QuantizeTrain, TopK

_project, _topk, _nearest = ops.project, ops.topk, ops.nearest
_quantize, _quantize_train, _lookup, _segment_sum = ops.quantize, ops.quantize_train, ops.lookup, ops.segment_sum


def compared(
    verb: str,
    x: Tensor,
    bank: Tensor | PreparedBank,
    metric: str | Metric | None,
    default: str,
    *,
    biased: bool = False,
) -> tuple[Tensor, int]:
    """The bank's vectors and the metric's code, with x checked against them. `biased`: a bias is allowed."""
    if isinstance(bank, PreparedBank):
        vectors = bank._held()
        if bank._biased and not (biased and (metric is None or metric_code(metric) == METRICS["dot"])):
            raise ValueError(
                "a Bank with a bias scores by dot products, in topk, project, radius, radius_count, score_pairs, "
                "verify and search_part alone"
            )
        _checks.pair(x, vectors)
        code = bank._code_for(verb, default) if metric is None else metric_code(metric)
        if code == POINCARE:
            _checks.inside_ball("x", x)
            bank._check_inside(vectors)
        return vectors, code
    _checks.vectors("bank", bank)
    _checks.pair(x, bank)
    code = metric_code(default if metric is None else metric)
    if code == POINCARE:
        _checks.inside_ball("x", x)
        _checks.inside_ball("bank", bank)
    return bank, code


def resolve(
    verb: str,
    x: Tensor,
    bank: Tensor | PreparedBank,
    metric: str | Metric | None,
    default: str,
    *,
    biased: bool = False,
    k: int = 1,
) -> tuple[Tensor, Tensor | None, int]:
    """The bank's vectors, its pack if there is one for this metric, and the metric's code. `biased`: one is allowed."""
    vectors, code = compared(verb, x, bank, metric, default, biased=biased)
    return vectors, bank._packed(verb, vectors, code, x, k) if isinstance(bank, PreparedBank) else None, code


def metric_code(metric: str | Metric) -> int:
    code = METRICS.get(metric) if isinstance(metric, str) else None
    if code is None:
        if mapping(metric, None) is not None:
            raise ValueError(f"metric must be one of {', '.join(METRICS)} here, got {metric!r}")
        if metric == "hamming":
            raise ValueError(f"metric must be one of {', '.join(METRICS)} here: packed bits are not taken")
        raise ValueError(f"metric must be one of {names()}, got {metric!r}")
    return code


@entry_point
def project(
    x: Tensor,
    bank: Tensor | PreparedBank | PackedRows,
    metric: str | Metric | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Similarity (or distance) of every vector to every bank row: relative representations, class scores, kernels.

    Args:
        x: (..., d) float32, float64, bfloat16 or float16.
        bank: (M, d), or (B, M, d) with x (B, N, d), of x's dtype (or float32 with a 16-bit x); or a Bank.
        metric: "cosine", "dot", "l2", "sqeuclidean", "l1", "poincare", "pearson", "angular", or an object of
            `vecbank.metrics`. None (default): what a Bank names, else "cosine".
        out_dtype: dtype of the result; x's by default. Sums run in float32 (float64 for float64) and round once.

    Returns:
        (..., M). Differentiable once in x and in a tensor bank; a norm under 1e-8 counts as that constant, and an
        l2 distance of 0 has gradient 0, as has a coordinate of l1 where both are equal.

    Raises:
        TypeError: dtypes that do not go together. ValueError: shapes, devices or a metric that do not.

    Source: Moschella et al., "Relative representations enable zero-shot latent space communication", ICLR 2023.

    Example:
        >>> import torch, vecbank
        >>> anchors = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> vecbank.project(torch.tensor([[3.0, 0.0], [0.0, 5.0]]), anchors).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if (words := of_bits(metric, bank)) is not None:
        distances: Tensor = bits.scores(x, words)
        return distances if out_dtype is None else distances.to(out_dtype)
    assert not isinstance(bank, PackedRows)
    if out_dtype is not None and out_dtype not in _checks._FLOATS:
        raise TypeError(f"out_dtype must be float32, float64, bfloat16 or float16, got {out_dtype}")
    if (m := mapping(metric, bank)) is not None:
        return _mapped.project(m, x, bank, out_dtype, project)
    vectors, pack, code = resolve("project", x, bank, metric, "cosine", biased=True)
    if isinstance(bank, PreparedBank) and bank._biased:
        return (_project(x, vectors, None, code, value_dtype(x)) + bank.bias).to(out_dtype or x.dtype)
    result: Tensor = _project(x, vectors, pack, code, out_dtype)
    return result


@old_call(4, "allowed", dropped="exact")
@entry_point(mask="allowed")
def topk(
    x: Tensor,
    bank: Tensor | PreparedBank | PackedRows,
    k: int,
    metric: str | Metric | None = None,
    *,
    allowed: Allowed | Tensor | None = None,
    bias: Tensor | None = None,
    order: str = "best",
    pad: bool = False,
) -> TopK:
    """The k best bank rows for every vector, best first: exact nearest-neighbour search.

    Args:
        x: (..., d).
        bank: (M, d), (B, M, d) with x (B, N, d), or a Bank.
        k: 1 to M; any number from 1 with `pad`.
        metric: "dot", "cosine", "l2", "sqeuclidean", "l1", "poincare", "pearson", "angular", or an object of
            `vecbank.metrics`. None (default): what a Bank names, else "dot".
        allowed: which rows may be returned to whom: a `vecbank.Allowed`, or a bool tensor that broadcasts to (..., M)
            (True = this bank row may be returned). The rows that are left are ranked as if there were no others.
        bias: (M,) in the bank's dtype, added to dot products (with a tensor bank; a Bank brings its own): the encoder
            of a sparse autoencoder.
        order: "best" first (default), or "worst": the k worst rows, the worst first: farthest neighbours, least similar
            rows. Ties go to the lower index here too.
        pad: a bank of fewer than k rows is no error: what it does not have is index -1, as in FAISS.

    Returns:
        TopK(values, indices), both (..., k). Values are float64 scores rounded once to float32 (kept for float64
        input), differentiable once through the selected pairs. Fewer than k candidates (because of `allowed`, or of NaN
        scores, which never win; or with `pad` because k > M): index -1 and -inf (similarities) or +inf (distances; both
        the other way round for "worst"), through which no gradient passes.

    Raises:
        ValueError: k outside 1..M (below 1 with `pad`), shapes, devices, metric, order. TypeError: dtypes.

    Example:
        >>> import torch, vecbank
        >>> bank = vecbank.Bank(torch.tensor([[0.0], [1.0], [5.0], [1.0]]), metric="l2")
        >>> values, indices = vecbank.topk(torch.tensor([[0.75]]), bank, k=3)
        >>> values.tolist(), indices.tolist()
        ([[0.25, 0.25, 0.75]], [[1, 3, 0]])
        >>> odd = torch.tensor([False, True, False, True])
        >>> bank.topk(torch.tensor([[0.75]]), k=1, allowed=~odd).indices.tolist()
        [[0]]
        >>> bank.topk(torch.tensor([[0.75]]), k=1, order="worst").indices.tolist()
        [[2]]
    """
    k = _checks.integer("k", k)
    if order not in ORDERS:
        raise ValueError(f'order must be "best" or "worst", got {order!r}')
    if (words := of_bits(metric, bank)) is not None:
        if bias is not None or order != "best":
            raise ValueError('packed bits have no bias and no order="worst"')
        return bits.topk(x, words, k, allowed=allowed, pad=pad)
    assert not isinstance(bank, PackedRows)
    if (m := mapping(metric, bank)) is not None:
        if bias is not None:
            raise ValueError(f'bias goes with the "dot" metric, got {m.name!r}')
        mapped = _mapped.sides(m, x, bank)
        values, indices = topk(mapped.rows, mapped.bank, k, m.base, allowed=allowed, order=order, pad=pad)
        return TopK(mapped.rounded(values, indices), indices)
    vectors, pack, code = resolve("topk", x, bank, metric, "dot", biased=True, k=k)
    rows = vectors.shape[-2]
    if k < 1 or (k > rows and not pad):
        raise ValueError(f"k must lie between 1 and the bank's M = {rows} (pad=True: fills up with -1), got k = {k}")
    sets = None if allowed is None else lower(allowed, x, vectors)
    if isinstance(bank, PreparedBank):
        if bias is not None:
            raise ValueError('bias goes with a tensor bank; a Bank brings its own: Bank(vectors, "dot", bias=bias)')
        bias = bank.bias if bank._biased else None
    elif bias is not None:
        _checks.bias(bias, vectors, code)
    search, worst = Search(x, vectors, pack, code, sets, bias), order == "worst"
    if k > rows:
        return _padded(search, k, worst=worst)
    if worst and _select.kernels(x) and _farthest.serves(search, k):
        return TopK(*_farthest.farthest(search, k))
    if worst or isinstance(sets, Lowered):
        return TopK(*_select.topk(search, k, worst=worst))
    return TopK(*_topk(x, vectors, pack, k, code, sets, True, bias))


ORDERS = ("best", "worst")


def _padded(search: Search, k: int, *, worst: bool) -> TopK:
    """All rows, best first, and then nothing: index -1 with the worst value."""
    rows = search.bank.shape[-2]
    if rows:
        values, indices = _select.topk(search, rows, worst=worst)
    else:
        values = _project(
            search.x, search.bank, None, search.code, value_dtype(search.x)
        )  # (..., 0), and known to autograd
        indices = values.detach().long()
    more, pad = (0, k - rows), torch.nn.functional.pad
    value = worst_value(search.code, farthest=worst)
    return TopK(pad(values, more, value=value), pad(indices, more, value=-1))


@old_call(3, "allowed", dropped="exact")
@entry_point
def nearest(
    x: Tensor,
    bank: Tensor | PreparedBank | PackedRows,
    metric: str | Metric | None = None,
    *,
    allowed: Allowed | Tensor | None = None,
) -> Nearest:
    """The best bank row for every vector: `topk` with k = 1, on its own faster path.

    Args:
        x: (..., d).
        bank: (M, d), (B, M, d) with x (B, N, d), or a Bank.
        metric: as of `topk`. None (default): what a Bank names, else "l2".
        allowed: which rows may be returned to whom, as of `topk`.

    Returns:
        Nearest(values, indices), both (...): dtypes and gradients as in `topk`; index -1 where M = 0, no row is
        allowed or every score is NaN.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> vecbank.nearest(torch.tensor([3.0, 0.0]), bank)
        Nearest(values=tensor(3.), indices=tensor(0))
    """
    if (words := of_bits(metric, bank)) is not None:
        return bits.nearest(x, words, allowed=allowed)
    assert not isinstance(bank, PackedRows)
    if (m := mapping(metric, bank)) is not None:
        mapped = _mapped.sides(m, x, bank)
        values, indices = nearest(mapped.rows, mapped.bank, m.base, allowed=allowed)
        return Nearest(mapped.rounded(values, indices), indices)
    vectors, pack, code = resolve("nearest", x, bank, metric, "l2")
    if allowed is None or vectors.shape[-2] == 0:
        if allowed is not None:
            lower(allowed, x, vectors)
        return Nearest(*_nearest(x, vectors, pack, code, True))
    values, indices = _select.topk(Search(x, vectors, pack, code, lower(allowed, x, vectors)), 1)
    return Nearest(values.squeeze(-1), indices.squeeze(-1))


@entry_point
def quantize(x: Tensor, bank: Tensor | PreparedBank, metric: str | Metric | None = None) -> Quantized:
    """Replace every vector by its nearest bank row (vector quantisation), gathered in the same pass.

    Args:
        x: (..., d).
        bank: the codebook, (M, d), (B, M, d) with x (B, N, d), or a Bank.
        metric: "l2", "sqeuclidean", "l1", "poincare", "dot" or "cosine". None (default): what a Bank names, else "l2".

    Returns:
        Quantized(quantized, codes): (..., d) in the bank's dtype and (...) int64. Straight-through: the gradient of
        `quantized` goes to x unchanged and none goes to the bank (codebook losses go through `lookup`). A vector
        without a valid row (NaN, or M = 0) becomes NaN with code -1.

    Source: van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017.

    Example:
        >>> import torch, vecbank
        >>> codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> quantized, codes = vecbank.quantize(torch.tensor([[0.9, 0.8], [0.1, 0.0]]), codebook)
        >>> quantized.tolist(), codes.tolist()
        ([[1.0, 1.0], [0.0, 0.0]], [1, 0])
    """
    vectors, pack, code = resolve("quantize", x, bank, metric, "l2")
    return Quantized(*_quantize(x, vectors, pack, code))


@entry_point(mask="valid")
def quantize_train(
    x: Tensor, bank: Tensor | PreparedBank, metric: str | Metric | None = None, valid: Tensor | None = None
) -> QuantizeTrain:
    """`quantize` with everything a training step needs besides, without an N x M or one-hot matrix.

    Args:
        x: (..., d).
        bank: the codebook, (M, d), (B, M, d) with x (B, N, d), or a Bank.
        metric: "l2", "sqeuclidean", "l1", "poincare", "dot" or "cosine". None (default): what a Bank names, else "l2".
        valid: bool (...); True = this row of x counts. Rows that do not count get code -1 and come back as they were.

    Returns:
        QuantizeTrain(quantized, codes, loss, counts, sums): as `quantize`, then
        loss (): mean over counted rows and dimensions of (quantized - x)^2, float32 (float64 for float64), with a
        gradient to x (the commitment term); counts (M,) or (B, M): rows per code, float32; sums (M, d) or (B, M, d):
        sum of x per code, float32 (float64), as EMA codebooks and k-means need, added up as `segment_sum` does.

    Source: van den Oord et al. 2017; EMA form: Razavi et al., "Generating Diverse High-Fidelity Images with VQ-VAE-2".

    Example:
        >>> import torch, vecbank
        >>> x, codebook = torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([[2.0], [9.0]])
        >>> step = vecbank.quantize_train(x, codebook, valid=torch.tensor([True, True, False]))
        >>> step.codes.tolist(), step.loss.item(), step.counts.tolist(), step.sums.tolist()
        ([0, 0, -1], 1.0, [2.0, 0.0], [[4.0], [0.0]])
    """
    vectors, pack, code = resolve("quantize_train", x, bank, metric, "l2")
    if valid is not None:
        _checks.valid_rows(valid, x)
    return QuantizeTrain(*_quantize_train(x, vectors, pack, code, valid))


@entry_point
def lookup(
    codes: Tensor, bank: Tensor | PreparedBank, weights: Tensor | None = None, *, reduce: str = "none"
) -> Tensor:
    """Bank rows by number, or weighted sums of them: decoding, embedding bags, sparse dictionaries.

    Args:
        codes: integers of any dtype, (...) for reduce="none", (..., k) for "sum" and "mean"; -1 stands for a zero row.
        bank: (M, d), or (B, M, d) with codes (B, ...), or a Bank.
        weights: codes' shape, the bank's dtype; multiplies each row.
        reduce: "none", or "sum" / "mean" over the last axis of codes; mean divides by the number of codes that are
            not -1. Sums run in float64 in the order of codes and round once.

    Returns:
        (..., d) in the bank's dtype. Differentiable in the bank (a deterministic scatter-add) and in weights.

    Raises:
        IndexError: a code outside -1..M-1. TypeError, ValueError: dtypes and shapes.

    Example:
        >>> import torch, vecbank
        >>> bank = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
        >>> vecbank.lookup(torch.tensor([1, -1]), bank).tolist()
        [[10.0, 20.0], [0.0, 0.0]]
        >>> vecbank.lookup(torch.tensor([[0, 1]]), bank, torch.tensor([[2.0, 0.5]]), reduce="sum").tolist()
        [[7.0, 14.0]]
    """
    vectors = bank._held() if isinstance(bank, PreparedBank) else bank
    _checks.vectors("bank", vectors)
    codes = _checks.integers(codes)
    if not isinstance(reduce, str) or reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
    batched, listed = vectors.dim() == 3, reduce != "none"
    if codes.dim() < batched + listed or (batched and codes.shape[0] != vectors.shape[0]):
        shape = f"({'B, ' if batched else ''}...{', k' if listed else ''})"
        raise ValueError(
            f"codes must have shape {shape} for a bank {tuple(vectors.shape)} and reduce={reduce!r}, "
            f"got {'a scalar' if codes.dim() == 0 else tuple(codes.shape)}"
        )
    if codes.device != vectors.device:
        raise ValueError(f"codes must be on the bank's device {vectors.device}, got {codes.device}")
    if weights is not None:
        _checks.weights(weights, codes, vectors.dtype)
    if batched:  # one long bank
        batch, rows = vectors.shape[:2]
        which = torch.arange(batch, device=codes.device).view(-1, *[1] * (codes.dim() - 1))
        codes, vectors = _checks.stacked_rows(codes, rows, batch, which), vectors.flatten(0, 1)
    return _checks.by_kernel(_lookup, codes, vectors.shape[0], "codes", codes, vectors, weights, REDUCTIONS[reduce])


@entry_point
def segment_sum(x: Tensor, codes: Tensor, num_codes: int, weights: Tensor | None = None) -> Tensor:
    """Sum the vectors that share a code: k-means updates, EMA codebooks, the transpose of `lookup`.

    Args:
        x: (..., d).
        codes: integers (...), or (..., k) to add each vector to k sums; -1 leaves it out.
        num_codes: rows of the result.
        weights: codes' shape, x's dtype.

    Returns:
        (num_codes, d) in x's dtype. The vectors of a code are added up in float64 within blocks of 1024 rows of x, in
        ascending order of position, then the blocks are added up, and the result is rounded (to 16 bits by way of
        float32): the same bits for any thread count and device. Differentiable in x and weights.

    Raises:
        IndexError: a code outside -1..num_codes-1. TypeError, ValueError: dtypes and shapes.

    Example:
        >>> import torch, vecbank
        >>> vecbank.segment_sum(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 1, 0]), 3).tolist()
        [[5.0], [2.0], [0.0]]
    """
    _checks.floating("x", x)
    codes = _checks.integers(codes)
    if x.dim() == 0 or codes.shape[: x.dim() - 1] != x.shape[:-1] or codes.dim() > x.dim():
        raise ValueError(
            f"codes must be (...) or (..., k) for x (..., d), got {tuple(codes.shape)} and {tuple(x.shape)}"
        )
    num_codes = _checks.integer("num_codes", num_codes)
    if num_codes < 0:
        raise ValueError(f"num_codes must not be negative, got {num_codes}")
    if weights is not None:
        _checks.weights(weights, codes, x.dtype)
    return _checks.by_kernel(_segment_sum, codes, num_codes, "codes", x, codes, num_codes, weights)
