"""A bank in parts, on several machines or larger than memory: one search a part, and their merge to the bits of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import _checks, _mapped, _select
from ._numpy import entry_point, tensor_of
from ._ops import METRICS
from ._ops.fakes import value_dtype
from ._ops.names import metric_name
from ._prepared import PreparedBank
from .allowed import Allowed
from .metrics import Metric, mapping, named, names
from .results import Nearest, RadiusHits, SearchPart, TopK
from .selections import search_of


@entry_point
@torch.no_grad()
def search_part(
    x: Tensor,
    part: Tensor | PreparedBank,
    k: int,
    metric: str | Metric | None = None,
    *,
    first_row: int = 0,
    allowed: Allowed | Tensor | None = None,
) -> SearchPart:
    """The k best rows of a part of a bank, as `merge_topk` takes them: `topk` before anything is rounded.

    Args:
        x: (..., d).
        part: rows first_row, first_row + 1, ... of the whole bank: (M, d), (B, M, d) with x (B, N, d), or a Bank.
        k: from 1; a part of fewer rows leaves the others empty (index -1).
        metric: as of `topk`.
        first_row: the number of the part's first row in the whole bank.
        allowed: as of `topk`, by the numbers of rows within the part.

    Returns:
        SearchPart(keys, indices, metric, dtype): keys (..., k) float64, indices (..., k) int64 in the whole bank. It
        has no gradient: `score_pairs` has one.

    Raises:
        ValueError: k, first_row below 0, shapes, devices, metric. TypeError: dtypes.

    Example:
        >>> import torch, vecbank
        >>> x, bank = torch.tensor([[0.75]]), torch.tensor([[0.0], [1.0], [5.0], [1.0]])
        >>> parts = [vecbank.search_part(x, bank[:2], 2, "l2"), vecbank.search_part(x, bank[2:], 2, "l2", first_row=2)]
        >>> vecbank.merge_topk(parts).indices.tolist()
        [[1, 3]]
    """
    k = _checks.at_least(1, "k", k)
    first_row = _checks.at_least(0, "first_row", first_row)
    if (m := mapping(metric, part)) is not None:
        mapped = _mapped.sides(m, x, part)
        found = search_part(mapped.rows, mapped.bank, k, m.base, first_row=first_row, allowed=allowed)
        keys, indices = found.keys, found.indices
        return SearchPart(keys, indices, named(m), value_dtype(x))
    s = search_of("search_part", x, part, metric, "dot", allowed, k=k)
    keys, indices = _select.keys(s, k)
    if first_row:
        indices = torch.where(indices < 0, -1, indices + first_row)
    return SearchPart(keys, indices, metric_name(s.code), value_dtype(x))


@entry_point
@torch.no_grad()
def merge_topk(parts: Sequence[SearchPart], k: int | None = None) -> TopK:
    """The k best rows of a bank from those of its parts: the bits of one search of all of it.

    Args:
        parts: what `search_part` returned for each part, in any order. (Sent between machines as tensors, a SearchPart
            is made again from them: `SearchPart(keys, indices, part.metric, part.dtype)`.)
        k: at most what the parts were asked for, which is the default.

    Returns:
        TopK(values, indices), both (..., k), as of `topk` with `pad=True`. Without a gradient.

    Raises:
        TypeError: results of `topk`, `nearest` or `radius`: their values were rounded, so that their order is lost.
        ValueError: no parts, parts of different searches (shape, metric, dtype, device), or k outside 1 and theirs.

    Example:
        >>> import torch, vecbank
        >>> x, bank = torch.tensor([[3.0]]), torch.tensor([[1.0], [2.0], [3.0]])
        >>> one, two = vecbank.search_part(x, bank[:2], 2), vecbank.search_part(x, bank[2:], 2, first_row=2)
        >>> vecbank.merge_topk([one, two]).indices.tolist()
        [[2, 1]]
    """
    if isinstance(parts, SearchPart):
        raise TypeError("parts must be a list of SearchPart, got a single one")
    parts = list(parts)
    for i, part in enumerate(parts):
        if isinstance(part, (TopK, Nearest, RadiusHits)):
            raise TypeError(
                f"parts[{i}] is a {type(part).__name__}, whose values were rounded, so that near ties would be merged "
                "in the wrong order: search the parts with search_part"
            )
        if not isinstance(part, SearchPart):
            raise TypeError(f"parts[{i}] must be what search_part returned, got {type(part).__name__}")
    if not parts:
        raise ValueError("parts must not be empty")
    arrays = any(isinstance(part.keys, np.ndarray) for part in parts)  # of numpy queries
    if arrays:
        tensors = [(tensor_of(np.asarray(p.keys), "keys"), tensor_of(np.asarray(p.indices), "indices")) for p in parts]
        parts = [SearchPart(*two, part.metric, part.dtype) for two, part in zip(tensors, parts, strict=True)]
    first = parts[0]
    for i, part in enumerate(parts):
        _checks.codes(part.indices, f"parts[{i}].indices")
        _checks.tensor(f"parts[{i}].keys", part.keys)
        if part.keys.dtype != torch.float64:
            raise TypeError(f"parts[{i}].keys must be float64, as search_part returns them, got {part.keys.dtype}")
        if part.keys.shape != part.indices.shape or part.keys.dim() == 0:
            raise ValueError(
                f"parts[{i}]: keys and indices must both be (..., k), got {tuple(part.keys.shape)} and "
                f"{tuple(part.indices.shape)}"
            )
        same = part.keys.shape[:-1] == first.keys.shape[:-1] and part.keys.device == first.keys.device
        if not same or (part.metric, part.dtype) != (first.metric, first.dtype):
            raise ValueError(f"parts[0] and parts[{i}] are of different searches: {_of(first)} and {_of(part)}")
    mapped = mapping(first.metric, None)
    base = first.metric if mapped is None else mapped.base
    if base not in METRICS:
        raise ValueError(f"parts[0].metric must be one of {names()}, got {first.metric!r}")
    most = max(part.keys.shape[-1] for part in parts)
    k = most if k is None else _checks.integer("k", k)
    if not 1 <= k <= most:
        raise ValueError(f"k must lie between 1 and what the parts were asked for, {most}, got {k}")
    keys = torch.cat([part.keys for part in parts], -1)
    indices = torch.cat([part.indices for part in parts], -1)
    found = _select.merge(keys, indices, k, METRICS[base], wide=mapped is not None or first.dtype == torch.float64)
    if mapped is not None:
        found = mapped.value(found[0]).to(first.dtype), found[1]
    return TopK(*(t.numpy() for t in found)) if arrays else TopK(*found)  # type: ignore[arg-type]


def _of(part: SearchPart) -> str:
    return f"{tuple(part.keys.shape[:-1])} by {part.metric!r} in {part.dtype} on {part.keys.device}"
