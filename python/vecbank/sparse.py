"""Sparse dictionaries: encode with a few latents out of many, decode as a weighted sum of rows.

`z = relu(x W^T + b)` has one value per latent; only the chosen ones are kept. A code is a pair of padded
lists: `values (..., c)` and `indices (..., c)`, where index -1 (value 0) fills what a row does not use.
The matrix of all values is never stored: at most a block of it exists at a time. A value is the float64 score
in the library's order of summation, plus the bias, rounded once, and it decides the choice: every encoder
gives a pair the same bits, in any batch, on any number of threads and any processor (what a caller's own
function of z returns is the caller's). Choosing has no gradient;
the gradients of what was chosen (to x, W, b and the decoder) touch the chosen pairs only, and are summed in
a fixed order.

`SparseBank`, `scores` and `topk` are retrieval with sparse vectors: documents that are rows over a vocabulary, and
queries that are lists of terms.

numpy arrays are taken in place of tensors, and then the results are numpy arrays (without gradients); a function that
scores is handed tensors all the same.

Sources: top-k, Gao et al., "Scaling and evaluating sparse autoencoders", 2024; batch-wide k, Bussmann et
al., "BatchTopK sparse autoencoders", 2024; thresholds, Rajamanoharan et al., "Jumping ahead: improving
reconstruction fidelity with JumpReLU sparse autoencoders", 2024; the others are named where they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _checks, _sparse
from . import _sparse_arguments as arguments
from ._deprecated import old_names
from ._finite import finite_rows, voided
from ._numpy import entry_point
from ._ops import REDUCTIONS, ops
from ._prepared import PreparedBank
from ._sparse import Score
from ._sparse_bank import SparseBank
from ._sparse_search import scores, topk
from .functional import lookup
from .results import Fired, TopK

__all__ = [
    "SparseBank",
    "adapt_bias_",
    "decode",
    "encode",
    "encode_batch",
    "encode_norm",
    "encode_threshold",
    "firing_counts",
    "scores",
    "topk",
]
if not TYPE_CHECKING:  # a type checker would take any name for one of the module
    __getattr__ = old_names(
        __name__,
        {
            "sparse_encode": "encode",
            "sparse_encode_batch": "encode_batch",
            "sparse_encode_threshold": "encode_threshold",
            "sparse_encode_norm": "encode_norm",
            "sparse_decode": "decode",
        },
    )

# ---- The functions -----------------------------------------------------------------------------------------


@entry_point(mask="allowed")
def encode(
    x: Tensor,
    weight: Tensor | PreparedBank,
    bias: Tensor | None = None,
    k: int | Tensor | None = None,
    *,
    score: Tensor | Score | None = None,
    allowed: Tensor | None = None,
    max_k: int | None = None,
) -> TopK:
    """The k largest of `relu(x W^T + b)` in each row, without storing the rest.

    Args:
        x: (..., d).
        weight: (K, d), one row per latent, of x's dtype (or float32 with a 16-bit x); or a Bank of them, prepared once
            for an encoder that stays as it is: `Bank(weight, "dot", bias=bias)`.
        bias: (K,) or None; None with a Bank, which brings its own.
        k: how many latents each row keeps; or (...) integers, a number of its own for each row (0 to `max_k`).
        score: choose by this instead of by value; the value stays what is returned. Either (K,), a factor
            per latent (decoder norms, say), or a function of a block `z = x W^T + b` (r, K) and the slice
            of rows (of x flattened to (n, d)) that it is, giving (r, K). Influence on a loss, as in g-SAE,
            is `lambda z, rows: z * (1 + beta * vecbank.project(grad[rows], decoder, "dot").abs())`. A
            function may also return a pair (score, value): noise added to z, say, with z's gradient. Only
            positive values are chosen. A function gets z as it is returned, and its scores are taken as they
            are; without one the choice is exact (by float64 value, or value times factor). Ties go to the lower
            index. On a GPU a choice by score waits for the device.
        allowed: (K,) bool, True = this latent may be chosen.
        max_k: the largest of k (...); found by looking (a wait for the device) when not given.

    Returns:
        TopK(values, indices), (..., k), best first; value 0 and index -1 where fewer latents are positive.
        Values are float32 (float64 for float64), differentiable in x, weight and bias.

    Sources: Gao et al. 2024 (top-k); Olmo et al., "Features that make a difference: leveraging gradients for improved
    dictionary learning", 2024 (a score that is not the value).

    Example:
        >>> import torch, vecbank
        >>> encoder = vecbank.Bank(torch.eye(4), "dot", bias=torch.tensor([0.0, 0.0, 0.0, -9.0]))
        >>> values, latents = vecbank.sparse.encode(torch.tensor([[1.0, -1.0, 3.0, 5.0]]), encoder, k=3)
        >>> values.tolist(), latents.tolist()
        ([[3.0, 1.0, 0.0]], [[2, 0, -1]])
    """
    dictionary, rows = arguments.dictionary_of(x, weight, bias)
    weight, bias, bank = dictionary
    per_row: Tensor | None = None
    if isinstance(k, Tensor) and (k.dim() > 0 or x.dim() == 1):
        k = _checks.integers(k, "k")
        if k.shape != x.shape[:-1]:
            raise ValueError(f"k must have x's leading shape {tuple(x.shape[:-1])}, got {tuple(k.shape)}")
        per_row = k.reshape(-1, 1)
        most = weight.shape[0] if max_k is None else arguments.count_of("max_k", max_k, weight.shape[0])
        _checks.in_range(k, most + 1, "k", 0, ValueError)
        k = most if max_k is not None else max(1, int(k.max())) if k.numel() else 1
    elif max_k is not None:
        arguments.count_of("max_k", max_k, weight.shape[0])
    k = arguments.count_of("k", k, weight.shape[0])
    if allowed is not None:
        _checks.boolean("allowed", allowed, "may be chosen")
        if allowed.shape != weight.shape[:1]:
            raise ValueError(f"allowed must have shape ({weight.shape[0]},), got {tuple(allowed.shape)}")
        arguments.same_device("allowed", allowed, weight)
    if isinstance(score, Tensor):
        arguments.per_latent("score", score, weight)
    elif score is not None and not callable(score):
        raise TypeError(f"score must be a function or a tensor ({weight.shape[0]},), got {type(score).__name__}")
    with torch.no_grad():
        if score is None:
            values, indices = _sparse.largest(rows, bank, dictionary.beside, k, allowed)
        else:
            values, indices = _sparse.best_by_score(rows, dictionary, k, score, allowed)
        if per_row is not None:
            off = torch.arange(k, device=x.device) >= per_row
            values, indices = values.masked_fill(off, 0), indices.masked_fill(off, -1)
    return TopK(*arguments.like_input(x, _sparse.Pairs.apply(rows, weight, bias, indices, values), indices))


@entry_point
def encode_batch(
    x: Tensor,
    weight: Tensor | PreparedBank,
    bias: Tensor | None = None,
    k: int | None = None,
    *,
    max_k: int | None = None,
) -> TopK:
    """The `n k` largest of `relu(x W^T + b)` over all n rows together: rows share a budget of k on
    average.

    Args:
        x, weight, bias: as in `sparse.encode`.
        k: average number of latents per row. A row with NaN or inf has none, and adds nothing to the budget.
        max_k: take at most this many from one row. Then shapes are fixed and nothing waits for the device;
            without it, lists grow until no row could have given more.

    Returns:
        TopK(values, indices), (..., c) with c the longest row's count (or `max_k`); best first, padded by
        0 and -1. Equal values are taken from the row that comes first.

    Source: Bussmann et al. 2024.

    Example:
        >>> import torch, vecbank
        >>> x = torch.tensor([[1.0, 4.0, 3.0], [2.0, 0.0, 0.0]])
        >>> vecbank.sparse.encode_batch(x, torch.eye(3), k=1).indices.tolist()
        [[1, 2], [-1, -1]]
    """
    dictionary, rows = arguments.dictionary_of(x, weight, bias)
    weight, bias, bank = dictionary
    latents, k = weight.shape[0], arguments.count_of("k", k, weight.shape[0])
    arguments.bounded_under_export(max_k)
    width = min(latents, max(4 * k, 16)) if max_k is None else arguments.count_of("max_k", max_k, latents)
    with torch.no_grad():
        finite = finite_rows(rows)
        count: int | Tensor = rows.shape[0] if finite is None else finite.sum()
        budget = k * (count if max_k is not None else int(count))
        known = voided(rows, finite)
        while True:
            values, indices = _sparse.largest(known, bank, dictionary.beside, width)
            bar = _sparse.bar(values.flatten(), budget, k * rows.shape[0])
            full = (values[:, -1] > 0) & (values[:, -1] >= bar)  # rows that may hold more above the bar
            if max_k is not None or width == latents or not full.any():
                break
            width = min(latents, 2 * width)
        flat = values.flatten()
        above, level = flat > bar, (flat == bar) & (flat > 0)
        keep = (above | (level & (level.cumsum(0) <= budget - above.sum()))).view_as(values)
        if max_k is None:
            width = max(1, int(keep.sum(1).max())) if keep.numel() else 1
            values, indices, keep = values[:, :width], indices[:, :width], keep[:, :width]
        values, indices = values.masked_fill(~keep, 0), indices.masked_fill(~keep, -1)
    return TopK(*arguments.like_input(x, _sparse.Pairs.apply(rows, weight, bias, indices, values), indices))


@entry_point
def encode_threshold(
    x: Tensor,
    weight: Tensor | PreparedBank,
    bias: Tensor | None = None,
    threshold: float | Tensor = 0.0,
    *,
    bandwidth: float = 0.0,
    max_k: int | None = None,
) -> Fired:
    """All latents of `z = x W^T + b` above a threshold: `z 1[z > theta]` (JumpReLU; a plain relu at
    theta 0).

    Args:
        x, weight, bias: as in `sparse.encode`.
        threshold: one number, or theta (K,), not negative (nor NaN). Learnable with a bandwidth.
        bandwidth: width eps of the window around theta in which the step has a gradient: `d value / d
            theta = -theta / eps` and `d active / d theta = -1 / eps` where |z - theta| < eps / 2.
            Latents in the window but under the threshold are then in the lists too, with value 0.
        max_k: list at most this many per row (those furthest above their threshold). Then shapes are fixed
            and nothing waits for the device; without it lists are as long as the longest row needs.

    Returns:
        Fired(values, indices, active): values and indices (..., c), by ascending index (by excess, largest first, with
        `max_k`), padded by 0 and -1; active (...) float, the number of values kept. Differentiable.

    Source: Rajamanoharan et al. 2024.

    Example:
        >>> import torch, vecbank
        >>> fired = vecbank.sparse.encode_threshold(torch.tensor([[1.0, 4.0, 3.0]]), torch.eye(3), threshold=2.0)
        >>> fired.values.tolist(), fired.indices.tolist(), fired.active.tolist()
        ([[4.0, 3.0]], [[1, 2]], [2.0])
    """
    arguments.bounded_under_export(max_k)
    dictionary, rows = arguments.dictionary_of(x, weight, bias)
    weight, bias, bank = dictionary
    latents = weight.shape[0]
    _checks.number("bandwidth", bandwidth)
    if not bandwidth >= 0:
        raise ValueError(f"bandwidth must not be negative, got {bandwidth}")
    theta = arguments.thresholds(threshold, weight)
    with torch.no_grad():
        floor = theta - bandwidth / 2
        if max_k is not None:
            indices = _sparse.furthest_above(rows, weight, bias, floor, arguments.count_of("max_k", max_k, latents))
            values = None
        else:
            values, indices = _sparse.above(rows, dictionary, floor)
    values = _sparse.Pairs.apply(rows, weight, bias, indices, values)
    limits = lookup(indices.unsqueeze(-1), theta.unsqueeze(1), reduce="sum").squeeze(-1)
    values, gate = _sparse.Jump.apply(values, limits.masked_fill(indices < 0, torch.inf), bandwidth)
    if bandwidth == 0 and max_k is not None:
        indices = indices.masked_fill(gate == 0, -1)  # found by a rounded excess: one on the edge may be too many
    values, indices = arguments.like_input(x, values, indices)
    return Fired(values, indices, gate.sum(1).reshape(x.shape[:-1]))


@entry_point
def encode_norm(
    x: Tensor,
    weight: Tensor | PreparedBank,
    bias: Tensor | None = None,
    norms: Tensor | None = None,
    target: Tensor | None = None,
    *,
    max_k: int | None = None,
) -> TopK:
    """As many latents per row as it takes for the code to be as long as the input (top-AFA).

    With `z = relu(x W^T + b)` sorted by `z_j norms_j`, row by row `k = argmin_k | sqrt(sum_{j <= k}
    (z_j norms_j)^2) - target |` (the smallest such k, at least 1): the norm that the decoded code would
    have if the decoder's rows were orthogonal.

    Args:
        x, weight, bias: as in `sparse.encode`.
        norms: (K,), norms of the decoder's rows, positive.
        target: (...), |x| when not given.
        max_k: at most this many per row.

    Returns:
        TopK(values, indices), (..., c): by falling score, padded by 0 and -1. Differentiable in x,
            weight, bias.

    Source: Lee et al., "Evaluating and designing sparse autoencoders by approximating quasi-orthogonality", 2025.

    Example:
        >>> import torch, vecbank
        >>> x = torch.tensor([[3.0, 4.0, 0.0]])
        >>> vecbank.sparse.encode_norm(x, torch.eye(3), norms=torch.ones(3)).indices.tolist()
        [[1, 0]]
    """
    dictionary, rows = arguments.dictionary_of(x, weight, bias)
    weight, bias, bank = dictionary
    if norms is None:
        raise TypeError("norms must be given: (K,), the norms of the decoder's rows")
    arguments.per_latent("norms", norms, weight)
    if _checks.readable(norms) and bool((norms < 0).any()):
        raise ValueError(f"norms must not be negative, got {float(norms.min())}")
    if target is None:
        target = _sparse.lengths(rows.detach())
    else:
        _checks.floating("target", target)
        if target.shape != x.shape[:-1]:
            raise ValueError(f"target must have x's leading shape {tuple(x.shape[:-1])}, got {tuple(target.shape)}")
    most = weight.shape[0] if max_k is None else arguments.count_of("max_k", max_k, weight.shape[0])
    with torch.no_grad():
        wanted, factor, lists = target.detach().double().reshape(-1, 1), norms.detach().double(), []
        latents = _sparse.Latents(rows, dictionary)
        for block in latents.blocks():
            width = min(most, 64)
            while True:
                scores, chosen, values = latents.best(block, factor, width)
                length = _sparse.running_sum(scores.clamp_min(0).square()).sqrt()
                reached = (length[:, -1:] >= wanted[block.rows]) | (scores[:, -1:] == -torch.inf)
                if width == most or reached.all():  # lengths only grow: what follows can only be further off
                    break
                width = min(most, 2 * width)
            k = (length - wanted[block.rows]).abs().argmin(1, keepdim=True) + 1
            off = (torch.arange(width, device=x.device) >= k) | (scores == -torch.inf)
            width = max(1, int(k.max()))
            lists.append((values.masked_fill(off, 0)[:, :width], chosen.masked_fill(off, -1)[:, :width]))
        width = max([v.shape[1] for v, _ in lists], default=1)
        values = torch.cat([_pad(v, width, 0) for v, _ in lists]) if lists else x.new_zeros(0, 1)
        indices = torch.cat([_pad(i, width, -1) for _, i in lists]) if lists else values.long()
    return TopK(*arguments.like_input(x, _sparse.Pairs.apply(rows, weight, bias, indices, values), indices))


def _pad(t: Tensor, width: int, value: int) -> Tensor:
    return torch.nn.functional.pad(t, (0, width - t.shape[1]), value=value)


@entry_point
def decode(values: Tensor, indices: Tensor, decoder: Tensor | PreparedBank, bias: Tensor | None = None) -> Tensor:
    """`sum_t values[..., t] decoder[indices[..., t]] + bias`: what a sparse code stands for.

    Args:
        values, indices: (..., c), as the encoders return them; index -1 adds nothing.
        decoder: (K, d), one row per latent, or a Bank of them.
        bias: (d,) or None.

    Returns:
        (..., d) in decoder's dtype; float64 sums, rounded (to 16 bits by way of float32). Differentiable in values,
        decoder (a deterministic scatter-add over the chosen rows) and bias.

    Example:
        >>> import torch, vecbank
        >>> decoder = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> vecbank.sparse.decode(torch.tensor([[2.0, 0.0]]), torch.tensor([[1, -1]]), decoder).tolist()
        [[0.0, 2.0]]
    """
    decoder = decoder.vectors if isinstance(decoder, PreparedBank) else decoder
    _checks.floating("values", values)
    _checks.shaped("decoder", decoder, ("K", "d"))
    indices = _checks.integers(indices, "indices")
    if indices.dim() == 0 or values.shape != indices.shape:
        raise ValueError(
            f"values and indices must have one shape (..., c), got {tuple(values.shape)} and {tuple(indices.shape)}"
        )
    for name, t in (("values", values), ("indices", indices)):
        if t.device != decoder.device:
            raise ValueError(f"{name} must be on decoder's device {decoder.device}, got {t.device}")
    if bias is not None:
        _checks.floating("bias", bias)
        if bias.shape != decoder.shape[-1:]:
            raise ValueError(f"bias must have shape ({decoder.shape[-1]},), got {tuple(bias.shape)}")
    weights, rows = values.to(decoder.dtype), decoder.shape[0]
    decoded = _checks.by_kernel(ops.lookup, indices, rows, "indices", indices, decoder, weights, REDUCTIONS["sum"])
    return decoded if bias is None else decoded + bias


@entry_point
def firing_counts(indices: Tensor, latents: int, values: Tensor | None = None) -> Tensor:
    """How often each latent is in a code, (latents,) int64; with values, how often at more than 0.

    `indices` are integers of any shape, `values` has it too. Index -1 counts for nothing. Nothing waits for the
    device, and integers add up the same in any order.

    Example:
        >>> import torch, vecbank
        >>> vecbank.sparse.firing_counts(torch.tensor([[2, 0], [2, -1]]), 4).tolist()
        [1, 0, 2, 0]
    """
    indices, latents = _checks.integers(indices, "indices"), _checks.at_least(0, "latents", latents)
    _checks.in_range(indices, latents, "indices")
    if values is not None:
        _checks.tensor("values", values)
        if values.shape != indices.shape:
            raise ValueError(f"values must have the shape of indices {tuple(indices.shape)}, got {tuple(values.shape)}")
    place = torch.where(indices < 0, latents, indices)
    if values is not None:
        place = torch.where(values > 0, place, latents)
    place = place.reshape(-1)
    return torch.zeros(latents + 1, dtype=torch.int64, device=indices.device).scatter_add_(
        0, place, torch.ones_like(place)
    )[:latents]


@torch.no_grad()
def adapt_bias_(
    bias: Tensor,
    counts: Tensor,
    samples: int,
    target: float | Tensor,
    step: float,
    *,
    ceiling: float | None = None,
) -> Tensor:
    """Nudges biases in place so that latents fire at their target frequency; returns the bias.

    One that fires more often than `target` is lowered by `step`, one that never fires is raised by it
    (no further than `ceiling`). For use with `sparse.encode_threshold` at threshold 0, where the bias
    alone controls sparsity.

    Args:
        bias: (K,).
        counts: (K,), from `firing_counts`, over `samples` rows.
        target: frequency in (0, 1), one number or (K,) (groups of latents with frequencies of their own).

    Source: Chen et al., "Taming polysemanticity in LLMs: provable feature recovery via sparse autoencoders", 2025.

    Example:
        >>> import torch, vecbank
        >>> bias, counts = torch.zeros(3), torch.tensor([0, 5, 90])
        >>> vecbank.sparse.adapt_bias_(bias, counts, samples=100, target=0.1, step=0.5).tolist()
        [0.5, 0.0, -0.5]
    """
    if counts.shape != bias.shape:
        raise ValueError(f"counts must have the shape of bias {tuple(bias.shape)}, got {tuple(counts.shape)}")
    often = (counts > target * samples).to(bias.dtype)
    dead = (counts == 0).to(bias.dtype)
    raised = bias + step * dead
    if ceiling is not None:
        raised = torch.where(dead > 0, raised.clamp_max(ceiling).maximum(bias), bias)
    return bias.copy_(raised - step * often)
