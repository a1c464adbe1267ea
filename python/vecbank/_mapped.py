"""What the verbs need of a metric that compares mapped rows (metrics.py): a verb maps both sides and calls itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _checks
from ._ops import METRICS, ops
from ._ops.fakes import value_dtype
from ._ops.tangents import Function
from ._prepared import PreparedBank
from .metrics import EXACT, Angular, Metric


class Sides(NamedTuple):
    """Queries and a bank as the base of a metric compares them, in float64."""

    metric: Metric
    x: Tensor  # before it was mapped
    rows: Tensor  # mapped
    bank: Any

    def values(self, found: Tensor, places: Tensor, of: Tensor | None = None) -> Tensor:
        """The values, float64, from those of the base. places: the bank rows that were found; of: the queries of these,
        as numbers of rows (None: places is (..., k) or (...) as x is (..., d)).
        """
        values = self.metric.value(found)
        if not isinstance(self.metric, Angular) or self.x.dtype != torch.float64:
            return values
        return _near_pi(self, values, found, places, _queries_of(self.x, places) if of is None else of)

    def rounded(self, found: Tensor, places: Tensor) -> Tensor:
        """The same as a verb returns them."""
        return self.values(found, places).to(value_dtype(self.x))


def sides(m: Metric, x: Tensor, bank: Tensor | PreparedBank) -> Sides:
    vectors = _fitting(m, x, bank)
    m.check("x", x)
    if isinstance(bank, PreparedBank):
        rows, room = bank._mapped_by(m, room=m.needs_room(x))
        return Sides(m, x, m.rows(x, room=room), rows)
    m.check("bank", vectors)
    room = m.needs_room(x) or m.needs_room(vectors)
    return Sides(m, x, m.rows(x, room=room), m.rows(vectors, room=room))


def _fitting(m: Metric, x: Tensor, bank: Tensor | PreparedBank) -> Tensor:
    """The bank's vectors, to which x fits."""
    if isinstance(bank, PreparedBank):
        vectors = bank._held()
        if bank._biased:
            raise ValueError(f"a Bank with a bias scores by dot products, got the metric {m.name!r}")
    else:
        _checks.vectors("bank", bank)
        vectors = bank
    _checks.pair(x, vectors)
    return vectors


def _queries_of(x: Tensor, indices: Tensor) -> Tensor:
    """Which row of x (..., d), by number, each of the indices (..., k) or (...) was found for."""
    n = x.shape[:-1].numel()
    rows = torch.arange(n, device=x.device).reshape(x.shape[:-1])
    return rows if indices.dim() < x.dim() else rows.unsqueeze(-1).expand(indices.shape)


_FAR = 1.99  # a distance of unit rows above which, in float64, the distance from the mirrored row says more


def _near_pi(s: Sides, values: Tensor, found: Tensor, places: Tensor, of: Tensor) -> Tensor:
    far = (found.detach() > _FAR) & (places >= 0)
    if not _checks.readable(far) or not bool(far.any()):
        return values
    vectors = s.bank._held() if isinstance(s.bank, PreparedBank) else s.bank
    row, column = of[far], places[far]
    if vectors.dim() == 3:
        column = column + row // s.rows.shape[1] * vectors.shape[1]
    rest = torch.linalg.vector_norm(s.rows.flatten(0, -2)[row] + vectors.flatten(0, -2)[column], dim=-1)
    return values.index_put((far,), torch.pi - s.metric.value(rest))


# ---- project ------------------------------------------------------------------------------------------------------

Project = Callable[[Tensor, Any, str], Tensor]


def project(
    m: Metric, x: Tensor, bank: Tensor | PreparedBank, out_dtype: torch.dtype | None, project: Project
) -> Tensor:
    """Products run in float32, unless the inputs are float64 or only float64 tells (near the boundary of a ball)."""
    out = out_dtype or x.dtype
    if isinstance(m, Angular):
        return _angles(m, x, _fitting(m, x, bank), project).to(out)
    if m.base in EXACT:
        return _through(sides(m, x, bank), project).to(out)
    vectors, work = _fitting(m, x, bank), value_dtype(x)
    m.check("x", x)
    m.check("bank", vectors)
    return m.value(project(m.narrow(x, work), m.narrow(vectors, work), m.base)).to(out)


def _through(s: Sides, project: Project) -> Tensor:
    """All values, by projection in float64."""
    return s.metric.value(project(s.rows, s.bank, s.metric.base))


_FLAT = 0.01  # 1 - |cosine| below which cosines have lost digits of the angle
_SHORT = 1e-7  # norms that cosines of float32 have room for
_MOST_PAIRS = 1 / 16  # that are worth being scored one by one


def _angles(m: Angular, x: Tensor, vectors: Tensor, project: Project) -> Tensor:
    work = value_dtype(x)
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    if vectors.dim() == 3 or forward_mode or not _checks.readable(x):
        return _through(sides(m, x, vectors), project)
    for rows in (x, vectors):  # cosines count short norms as longer ones
        norms = torch.linalg.vector_norm(rows.detach(), dim=-1, dtype=work)
        short = norms < _SHORT
        if bool((norms > 1 / _SHORT).any()) or (bool(short.any()) and bool((rows[short] != 0).any())):
            return _through(sides(m, x, vectors), project)
    found: Tensor = _Angles.apply(x.reshape(x.shape[:-1].numel(), x.shape[-1]), vectors, m, project)
    return found.reshape(*x.shape[:-1], vectors.shape[-2])


class _Angles(Function):
    """arccos of the cosines, and where these are nearly 1 or -1 the angle from the distance of unit rows."""

    operation = "project by angular"

    @staticmethod
    def forward(ctx: Any, x: Tensor, vectors: Tensor, m: Angular, project: Project) -> Tensor:
        angles = project(x, vectors, "cosine").to(value_dtype(x))
        pairs = (angles.abs() > 1 - _FLAT).nonzero()
        if len(pairs) > _MOST_PAIRS * angles.numel():
            angles = _all_exact(m, x, vectors).to(angles.dtype)
        else:
            angles = angles.clamp_(-1, 1).acos_()
            _score_flat_pairs(m, x, vectors, pairs, angles)
        ctx.save_for_backward(x, vectors, angles)
        return angles

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, vectors, angles = ctx.saved_tensors
        need_x, need_bank = ctx.needs_input_grad[:2]
        sines = angles.sin()
        slope = torch.where(sines.abs() < 1e-7, 0.0, -grad / sines).to(x.dtype)  # at 0 and pi there is no gradient
        grad_x, grad_bank = ops.project_backward(slope, x, vectors, METRICS["cosine"], need_x, need_bank)
        return grad_x if need_x else None, grad_bank if need_bank else None, None, None


def _all_exact(m: Angular, x: Tensor, vectors: Tensor) -> Tensor:
    """All angles, float64, from exact distances of unit rows; near pi from those of the mirrored rows."""
    _, _, mapped, rows = sides(m, x, vectors)
    apart: Tensor = ops.exact_scores(mapped, rows, METRICS["l2"], torch.float64, None)
    angles = m.value(apart)
    if bool((apart > _FAR).any()):
        rest: Tensor = ops.exact_scores(mapped, -rows, METRICS["l2"], torch.float64, None)
        angles = torch.where(apart > _FAR, torch.pi - m.value(rest), angles)
    return angles


def _score_flat_pairs(m: Angular, x: Tensor, vectors: Tensor, pairs: Tensor, angles: Tensor) -> None:
    """Writes the angles of these pairs (n, 2), and of zero rows."""
    if len(pairs):
        rows = m.rows(vectors)
        for some in pairs.split(1 << 16):
            i, j = some.unbind(1)
            a, b = m.rows(x[i]), rows[j]
            apart, rest = (m.value(torch.linalg.vector_norm(t, dim=-1)) for t in (a - b, a + b))
            angles[i, j] = torch.where(apart < rest, apart, torch.pi - rest).to(angles.dtype)
    blank = (x == 0).all(-1)
    if bool(blank.any()):
        angles[blank.unsqueeze(1) & (vectors == 0).all(-1)] = 0.0
