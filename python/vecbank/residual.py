"""Residual quantisation: every stage codes the residual that the stages before it leave.

`r_0 = x`; `code_s` is the row of codebook s nearest to `r_s` (exactly, ties to the lower index), `q_s` is that row, and
`r_{s+1} = r_s - q_s` is rounded to the codebooks' dtype. x is approximated by `sum_s q_s`, added in order of s.

Sources: Juang and Gray, "Multiple stage vector quantization for speech coding", ICASSP 1982; Zeghidour et al.,
"SoundStream: An End-to-End Neural Audio Codec", 2021; beam search: Babenko and Lempitsky, "Additive quantization for
extreme vector compression", CVPR 2014.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _checks, functional
from ._deprecated import old_names, warn
from ._numpy import entry_point
from ._ops import METRICS, ops
from ._ops.names import metric_name
from ._prepared import PreparedBank
from .functional import metric_code, segment_sum, topk
from .results import ResidualQuantized

__all__ = ["lookup", "quantize"]
if not TYPE_CHECKING:  # a type checker would take any name for one of the module
    __getattr__ = old_names(__name__, {"residual_quantize": "quantize", "residual_lookup": "lookup"})

_BEAM_BYTES = 8 << 20  # of the sequences that a block of rows carries along

Codebooks: TypeAlias = Tensor | PreparedBank | Sequence[Tensor | PreparedBank]


def _stages(codebooks: Codebooks, num_stages: int | None, name: str = "num_stages") -> list[Tensor | PreparedBank]:
    """The codebook of each stage; those of a Bank (S, M, d) are its tensors."""
    num_stages = None if num_stages is None else _checks.integer("num_stages", num_stages)
    if not isinstance(codebooks, (PreparedBank, Iterable)):
        raise TypeError(f"codebooks must be a tensor, a Bank or a sequence of them, got {type(codebooks).__name__}")
    whole = codebooks.vectors if isinstance(codebooks, PreparedBank) else codebooks
    if isinstance(whole, Tensor) and whole.dim() == 2:
        if num_stages is None:
            raise ValueError("num_stages must be given where one codebook (M, d) serves every stage")
        stages: list[Tensor | PreparedBank] = [codebooks] * num_stages  # type: ignore[list-item]
    elif isinstance(whole, Tensor) and whole.dim() != 3:
        raise ValueError(f"codebooks must be (S, M, d), (M, d) or a sequence of (M_s, d), got {tuple(whole.shape)}")
    else:
        stages = list(whole)
    if num_stages is not None and not 1 <= num_stages <= len(stages):
        raise ValueError(f"{name} must lie between 1 and the number of codebooks {len(stages)}, got {num_stages}")
    stages = stages[:num_stages]
    if not stages:
        raise ValueError("codebooks must hold at least one stage")
    return stages


def _rows_of(stages: list[Tensor | PreparedBank]) -> list[Tensor]:
    """What `_vectors` makes of each codebook; they have one width and one dtype."""
    found = [_vectors(codebook) for codebook in stages]
    for rows in found:
        if rows.shape[1] != found[0].shape[1]:
            raise ValueError(f"codebooks must share a width, got {found[0].shape[1]} and {rows.shape[1]}")
        if rows.dtype != found[0].dtype:
            raise TypeError(f"codebooks must share a dtype, got {found[0].dtype} and {rows.dtype}")
    return found


def _vectors(codebook: Tensor | PreparedBank) -> Tensor:
    """A stage's rows; 16-bit ones become float32, so that the residual is not rounded to 16 bits."""
    vectors = codebook.vectors if isinstance(codebook, PreparedBank) else codebook
    _checks.vectors("codebooks", vectors)
    if vectors.dim() != 2:
        raise ValueError(f"every codebook must be (M, d), got {tuple(vectors.shape)}")
    return vectors.float() if vectors.dtype in (torch.bfloat16, torch.float16) else vectors


def _packs(codebooks: Codebooks, stages: list[Tensor | PreparedBank], vectors: list[Tensor], code: int) -> list[Tensor]:
    """A current pack for each stage, or none at all."""
    if isinstance(codebooks, PreparedBank) and codebooks.vectors.dim() == 3:
        if torch.compiler.is_compiling() or vectors[0].dtype != codebooks.vectors.dtype:
            return []  # the pack's stamp, which a compiled program relies on, is that of all stages together
        whole = codebooks._packed("residual.quantize", codebooks.vectors, code)
        return [] if whole is None else list(whole[: len(stages)])
    found = [
        stage._packed("residual.quantize", rows, code) if isinstance(stage, PreparedBank) else None
        for stage, rows in zip(stages, vectors, strict=True)
    ]
    packs = [pack for pack in found if pack is not None]
    return packs if len(packs) == len(stages) else []


@entry_point(books="codebooks")
def quantize(
    x: Tensor,
    codebooks: Codebooks,
    metric: str | None = None,
    *,
    num_stages: int | None = None,
    beam: int = 1,
    valid: Tensor | None = None,
) -> ResidualQuantized:
    """All stages of a residual quantiser in one call: the residual of a block of rows stays in cache.

    Args:
        x: (..., d) float32, float64, bfloat16 or float16.
        codebooks: (S, M, d), a tensor or a Bank; or a sequence of (M_s, d) tensors or Banks (packed once); or one
            (M, d) codebook for all stages, with `num_stages`. Of x's dtype, or float32 with a 16-bit x (16-bit
            codebooks are read as float32).
        metric: what "nearest" means at each stage: "l2", "sqeuclidean", "l1", "cosine" or "dot". None (default) is
            the metric that the Banks name (one for all of them), and else "l2".
        num_stages: run only the first so many stages (quantise dropout, or fewer bits at run time).
        beam: keep so many sequences of codes from stage to stage, those with the smallest squared error so far (ties
            to the sequence that is ahead, then to the better code), instead of one. By "l2" or "sqeuclidean" alone.
        valid: bool (...); True = this row of x counts. Rows that do not count get codes -1, come back as they were and
            are in no loss.

    Returns:
        ResidualQuantized(quantized, codes, losses): (..., d) in the codebooks' dtype, (..., S) int64, and (S,), the
        mean of (q_s - r_s)^2 of every stage over rows and dimensions (with a beam: along the sequence that won).
        The gradient of `quantized` goes to x unchanged, that of `losses` to x as well; none goes to the codebooks (they
        learn through `residual.lookup`). A row with NaN becomes NaN with codes -1 and counts in no loss.

    Raises:
        ValueError, TypeError: shapes, dtypes, metric, num_stages, beam or valid, by name.

    Example:
        >>> import torch, vecbank
        >>> codebooks = torch.tensor([[[0.0, 0.0], [4.0, 4.0]], [[0.5, 0.0], [0.0, 0.5]]])
        >>> found = vecbank.residual.quantize(torch.tensor([[4.5, 4.0]]), codebooks)
        >>> found.codes.tolist(), found.quantized.tolist()
        ([[1, 0]], [[4.5, 4.0]])
    """
    stages = _stages(codebooks, num_stages)
    banks = [bank for bank in (codebooks, *stages) if isinstance(bank, PreparedBank)]
    if any(bank._biased for bank in banks):
        raise ValueError("codebooks must be Banks without a bias, got a Bank with one")
    code = _metric_of(banks) if metric is None else metric_code(metric)
    if code == METRICS["poincare"]:
        raise ValueError('metric must not be "poincare": residuals of points of a ball mean nothing there')
    vectors = _rows_of(stages)
    for rows in vectors:
        _checks.pair(x, rows, "codebooks")
    beam = _checks.integer("beam", beam)
    if beam < 1:
        raise ValueError(f"beam must be at least 1, got {beam}")
    if beam > 1 and code not in (METRICS["l2"], METRICS["sqeuclidean"]):
        raise ValueError(
            f'beam search adds up squared distances: metric must be "l2" or "sqeuclidean", got {metric_name(code)!r}'
        )
    asked = x
    if valid is not None:
        _checks.valid_rows(valid, x)
        asked = torch.where(valid.unsqueeze(-1), x, torch.nan)
    if beam > 1 and all(rows.shape[0] for rows in vectors):  # an empty codebook has no code to search for: -1
        found = _searched(asked, stages, vectors, beam)
    else:
        packs = _packs(codebooks, stages, vectors, code)
        found = ResidualQuantized(*ops.residual_quantize(asked, vectors, packs, code))
    if valid is not None:
        kept = torch.where(valid.unsqueeze(-1), found.quantized, x.to(found.quantized.dtype))
        found = found._replace(quantized=kept)
    return found


def _metric_of(banks: list[PreparedBank]) -> int:
    """What a call that names no metric means: what the Banks name, if they agree."""
    for bank in banks:
        if bank.metric is not None and bank._native is None:
            raise ValueError(f"residual.quantize has no form by {bank.metric!r}, the metric of a codebook")
    named = {bank._native for bank in banks if bank._native is not None}
    if named <= {"l2", "sqeuclidean"}:  # one choice of codes
        return METRICS["l2"]
    if len(named) > 1:
        raise ValueError(f"codebooks must share a metric, got Banks for {', '.join(sorted(named))}")
    metric = named.pop()
    warn(f'residual.quantize searches by "{metric}", the metric of its Banks, where it took "l2": name the metric')
    return METRICS[metric]


def _searched(x: Tensor, stages: list[Tensor | PreparedBank], codebooks: list[Tensor], beam: int) -> ResidualQuantized:
    """The cascade along the best of `beam` sequences, a block of rows at a time."""
    d = x.shape[-1]
    flat = x.detach().reshape(-1, d).to(codebooks[0].dtype)
    step = max(1, _BEAM_BYTES // (beam * d * flat.element_size()))
    parts = [_search_block(rows, stages, codebooks, beam) for rows in flat.split(step)] if flat.shape[0] else []
    codes = torch.cat(parts) if parts else flat.new_empty((0, len(codebooks)), dtype=torch.int64)
    codes = codes.view(*x.shape[:-1], len(codebooks))
    residual, total, losses = x.to(codebooks[0].dtype), None, []
    for s, codebook in enumerate(codebooks):
        row = functional.lookup(codes[..., s], codebook.detach())
        row = torch.where(codes[..., s : s + 1] >= 0, row, torch.nan)
        residual = residual - row
        total = row if total is None else total + row
        valid = codes[..., s : s + 1] >= 0
        each = torch.where(valid, residual, 0.0).square().sum(-1, dtype=torch.float64).reshape(-1, 1)
        # in order: torch's own sum of so many parts follows the number of threads
        squares = segment_sum(each, torch.zeros_like(each[:, 0], dtype=torch.int64), 1).squeeze()
        losses.append((squares / (valid.sum() * d).clamp_min(1)).to(residual.dtype))
    assert total is not None
    passes = x.requires_grad or forward_ad._current_level >= 0
    straight = total + (x - x.detach()).to(total.dtype) if passes else total
    return ResidualQuantized(straight, codes, torch.stack(losses))


def _search_block(rows: Tensor, stages: list[Tensor | PreparedBank], codebooks: list[Tensor], beam: int) -> Tensor:
    n, d = rows.shape
    residual = rows.unsqueeze(1)  # (n, sequences, d)
    codes = torch.empty((n, 1, 0), dtype=torch.int64, device=rows.device)
    for s, codebook in enumerate(codebooks):
        stage = stages[s]  # a Bank brings its pack
        bank = stage if isinstance(stage, PreparedBank) and stage.vectors is codebook else codebook
        held = residual.shape[1]
        found = topk(residual.reshape(n * held, d), bank, min(beam, codebook.shape[0]), "sqeuclidean")
        each = found.indices.shape[1]
        keep = min(beam if s + 1 < len(codebooks) else 1, held * each)
        # a stable sort: equal errors stay in the order of sequences, then of codes
        order = found.values.view(n, held * each).sort(dim=1, stable=True).indices[:, :keep]
        parent = (order // each).unsqueeze(-1)
        chosen = found.indices.view(n, held * each).gather(1, order)
        residual = residual.gather(1, parent.expand(n, keep, d)) - functional.lookup(chosen, codebook)
        codes = torch.cat([codes.gather(1, parent.expand(n, keep, s)), chosen.unsqueeze(-1)], 2)
    return codes[:, 0]


@entry_point(books="codebooks")
def lookup(codes: Tensor, codebooks: Codebooks) -> Tensor:
    """What codes (..., S') of the first S' stages stand for: `sum_s codebooks[s][codes[..., s]]`, in order of s.

    Args:
        codes: (..., S') integers, S' up to the number of stages; -1 (a stage left out) adds nothing.
        codebooks: as in `residual.quantize`.

    Returns:
        (..., d) in the codebooks' dtype, differentiable in the codebooks: what `residual.quantize` returned for these
        codes.

    Example:
        >>> import torch, vecbank
        >>> codebooks = torch.tensor([[[0.0, 0.0], [4.0, 4.0]], [[0.5, 0.0], [0.0, 0.5]]])
        >>> vecbank.residual.lookup(torch.tensor([[1, 0], [1, -1]]), codebooks).tolist()
        [[4.5, 4.0], [4.0, 4.0]]
    """
    codes = _checks.integers(codes)
    if codes.dim() == 0 or codes.shape[-1] == 0:
        raise ValueError(f"codes must be (..., S) with S at least 1, got {tuple(codes.shape)}")
    stages = _stages(codebooks, codes.shape[-1], "the stages of codes")
    total: Tensor | None = None
    for s, codebook in enumerate(_rows_of(stages)):
        rows = functional.lookup(codes[..., s], codebook)
        total = rows if total is None else total + rows
    assert total is not None
    return total
