"""Residual quantisation: every stage codes what the stages before it left over.

``r_0 = x``; ``code_s`` = the row of book s nearest to ``r_s`` (exactly, ties to the lower index), ``q_s`` that row,
``r_{s+1} = r_s - q_s`` rounded to the books' dtype; x is approximated by ``sum_s q_s``, added in order of s.

Sources: Juang and Gray, "Multiple stage vector quantization for speech coding", ICASSP 1982; Zeghidour et al.,
"SoundStream: An End-to-End Neural Audio Codec", 2021; beam search: Babenko and Lempitsky, "Additive quantization for
extreme vector compression", CVPR 2014.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _checks, _interrupt
from ._deprecated import warn_of_change
from ._numpy import entry_point
from ._ops import METRICS
from ._ops import ResidualQuantized as ResidualQuantized
from .bank import Bank
from .functional import _metric_code, lookup, segment_sum, topk

_BEAM_BYTES = 8 << 20  # of the sequences that a block of rows carries along

Books: TypeAlias = Tensor | Sequence[Tensor | Bank]


def _stages(books: Books, num_stages: int | None, name: str = "num_stages") -> list[Tensor | Bank]:
    num_stages = None if num_stages is None else _checks.integer("num_stages", num_stages)
    if not isinstance(books, (Bank, Iterable)):
        raise TypeError(f"books must be a tensor, a Bank or a sequence of them, got {type(books).__name__}")
    if isinstance(books, Bank) or (isinstance(books, Tensor) and books.dim() == 2):
        if num_stages is None:
            raise ValueError("num_stages must be given where one book (M, d) serves every stage")
        stages: list[Tensor | Bank] = [books] * num_stages
    else:
        if isinstance(books, Tensor) and books.dim() != 3:
            raise ValueError(f"books must be (S, M, d), (M, d) or a sequence of (M_s, d), got {tuple(books.shape)}")
        stages = list(books)
    if num_stages is not None and not 1 <= num_stages <= len(stages):
        raise ValueError(f"{name} must lie between 1 and the number of books {len(stages)}, got {num_stages}")
    stages = stages[:num_stages]
    if not stages:
        raise ValueError("books must hold at least one stage")
    return stages


def _rows_of(stages: list[Tensor | Bank]) -> list[Tensor]:
    """What `_vectors` makes of each book; they have one width and one dtype."""
    found = [_vectors(book) for book in stages]
    for rows in found:
        if rows.shape[1] != found[0].shape[1]:
            raise ValueError(f"books must share a width, got {found[0].shape[1]} and {rows.shape[1]}")
        if rows.dtype != found[0].dtype:
            raise TypeError(f"books must share a dtype, got {found[0].dtype} and {rows.dtype}")
    return found


def _vectors(book: Tensor | Bank) -> Tensor:
    """A stage's rows; 16-bit ones become float32, so that what is left over is not rounded to 16 bits."""
    vectors = book.vectors if isinstance(book, Bank) else book
    _checks.vectors("books", vectors)
    if vectors.dim() != 2:
        raise ValueError(f"every book must be (M, d), got {tuple(vectors.shape)}")
    return vectors.float() if vectors.dtype in (torch.bfloat16, torch.float16) else vectors


@entry_point
def residual_quantize(
    x: Tensor,
    books: Books,
    metric: str | None = None,
    *,
    num_stages: int | None = None,
    beam: int = 1,
) -> ResidualQuantized:
    """All stages of a residual quantiser in one call: what is left over of a block of rows stays in cache.

    Args:
        x: (..., d) float32, float64, bfloat16 or float16.
        books: (S, M, d); or a sequence of (M_s, d) tensors or Banks (packed once); or one (M, d) book for all stages,
            with ``num_stages``. Of x's dtype, or float32 with a 16-bit x (16-bit books are read as float32).
        metric: what "nearest" means at each stage: "l2", "sqeuclidean", "l1", "cosine" or "dot". None (default) is
            the metric that the Banks name (one for all of them), and else "l2".
        num_stages: run only the first so many stages (quantise dropout, or fewer bits at run time).
        beam: keep so many sequences of codes from stage to stage, those with the smallest squared error so far (ties
            to the sequence that is ahead, then to the better code), instead of one. Distances only.

    Returns:
        ResidualQuantized(quantized, codes, losses): (..., d) in the books' dtype, (..., S) int64, and (S,), the mean
        of (q_s - r_s)^2 of every stage over rows and dimensions (with a beam: along the sequence that won).
        The gradient of `quantized` goes to x unchanged, that of `losses` to x as well; none goes to the books (they
        learn through `residual_lookup`). A row with NaN becomes NaN with codes -1 and counts in no loss.

    Raises:
        ValueError, TypeError: shapes, dtypes, metric, num_stages or beam, by name.
    """
    stages = _stages(books, num_stages)
    code = _metric_of(stages) if metric is None else _metric_code(metric)
    vectors = _rows_of(stages)
    for rows in vectors:
        _checks.pair(x, rows, "books")
    beam = _checks.integer("beam", beam)
    if beam < 1:
        raise ValueError(f"beam must be at least 1, got {beam}")
    if beam > 1:
        if code not in (METRICS["l2"], METRICS["sqeuclidean"]):
            raise ValueError(
                f'beam search adds up squared distances: metric must be "l2" or "sqeuclidean", got {_name(code)!r}'
            )
        if all(rows.shape[0] for rows in vectors):  # an empty book has no code to search for: -1, as without a beam
            return _searched(x, vectors, beam)
    if any(isinstance(b, Bank) and b._biased for b in stages):
        raise ValueError("books are banks without a bias")
    found = [b._packed(rows, code) if isinstance(b, Bank) else None for b, rows in zip(stages, vectors, strict=True)]
    packs = [pack for pack in found if pack is not None]
    if len(packs) < len(stages):
        packs = []
    return ResidualQuantized(*_interrupt.ops.residual_quantize(x, vectors, packs, code))


def _metric_of(stages: list[Tensor | Bank]) -> int:
    """What a call that names no metric means: what the Banks name, if they agree."""
    named = {bank.metric for bank in stages if isinstance(bank, Bank) and bank.metric is not None}
    if named <= {"l2", "sqeuclidean"}:  # one choice of codes
        return METRICS["l2"]
    if len(named) > 1:
        raise ValueError(f"books must share a metric, got Banks for {', '.join(sorted(named))}")
    metric = named.pop()
    warn_of_change(
        f'residual_quantize searches by "{metric}", the metric of its Banks, where it took "l2": name the metric'
    )
    return METRICS[metric]


def _name(code: int) -> str:
    return next(name for name, number in METRICS.items() if number == code)


def _searched(x: Tensor, books: list[Tensor], beam: int) -> ResidualQuantized:
    """The cascade along the best of `beam` sequences, a block of rows at a time."""
    d = x.shape[-1]
    flat = x.detach().reshape(-1, d).to(books[0].dtype)
    step = max(1, _BEAM_BYTES // (beam * d * flat.element_size()))
    parts = [_search_block(rows, books, beam) for rows in flat.split(step)] if flat.shape[0] else []
    codes = torch.cat(parts) if parts else flat.new_empty((0, len(books)), dtype=torch.int64)
    codes = codes.view(*x.shape[:-1], len(books))
    rest, total, losses = x.to(books[0].dtype), None, []
    for s, book in enumerate(books):
        row = lookup(codes[..., s], book.detach())
        row = torch.where(codes[..., s : s + 1] >= 0, row, torch.nan)
        rest = rest - row
        total = row if total is None else total + row
        valid = codes[..., s : s + 1] >= 0
        each = torch.where(valid, rest, 0.0).square().sum(-1, dtype=torch.float64).reshape(-1, 1)
        # in order: torch's own sum of so many parts follows the number of threads
        squares = segment_sum(each, torch.zeros_like(each[:, 0], dtype=torch.int64), 1).squeeze()
        losses.append((squares / (valid.sum() * d).clamp_min(1)).to(rest.dtype))
    assert total is not None
    passes = x.requires_grad or forward_ad._current_level >= 0
    straight = total + (x - x.detach()).to(total.dtype) if passes else total
    return ResidualQuantized(straight, codes, torch.stack(losses))


def _search_block(rows: Tensor, books: list[Tensor], beam: int) -> Tensor:
    n, d = rows.shape
    rest = rows.unsqueeze(1)  # (n, sequences, d)
    codes = torch.empty((n, 1, 0), dtype=torch.int64, device=rows.device)
    for s, book in enumerate(books):
        held = rest.shape[1]
        found = topk(rest.reshape(n * held, d), book, min(beam, book.shape[0]), "sqeuclidean")
        each = found.indices.shape[1]
        keep = min(beam if s + 1 < len(books) else 1, held * each)
        # a stable sort: equal errors stay in the order of sequences, then of codes
        order = found.values.view(n, held * each).sort(dim=1, stable=True).indices[:, :keep]
        parent = (order // each).unsqueeze(-1)
        chosen = found.indices.view(n, held * each).gather(1, order)
        rest = rest.gather(1, parent.expand(n, keep, d)) - lookup(chosen, book)
        codes = torch.cat([codes.gather(1, parent.expand(n, keep, s)), chosen.unsqueeze(-1)], 2)
    return codes[:, 0]


@entry_point
def residual_lookup(codes: Tensor, books: Books) -> Tensor:
    """What codes (..., S') of the first S' stages stand for: ``sum_s books[s][codes[..., s]]``, in order of s.

    Args:
        codes: (..., S') integers, S' up to the number of stages; -1 (a stage left out) adds nothing.
        books: as in `residual_quantize`.

    Returns:
        (..., d) in the books' dtype, differentiable in the books: what `residual_quantize` returned for these codes.
    """
    codes = _checks.integers(codes)
    if codes.dim() == 0 or codes.shape[-1] == 0:
        raise ValueError(f"codes must be (..., S) with S at least 1, got {tuple(codes.shape)}")
    stages = _stages(books, codes.shape[-1], "the stages of codes")
    total: Tensor | None = None
    for s, book in enumerate(_rows_of(stages)):
        rows = lookup(codes[..., s], book)
        total = rows if total is None else total + rows
    assert total is not None
    return total
