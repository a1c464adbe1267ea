"""Backward passes in plain torch, on blocks of rows so that no N x M or N x d copy is made; and second
opinions for tests of ops that have kernels.

`project`: matrix products, and no kernel of ours on any device; for distances torch.cdist's backward where they
cancel, on the CPU. Rotation trick: Fifty et al., "Restructuring
Vector Quantization with the Rotation Trick", ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ._codes import ESTIMATORS, METRICS
from ._fakes import check_project_backward

_NORM_FLOOR = 1e-8
_UNIT_FLOOR = 1e-6  # the rotation trick's: norms below this count as this
# Of distances, |x - p| + |b - p| over |x - b|: up to which multiplied-out sums are kept whatever the weights, and
# in the mean over a row's weights.
_REACH_ALONE, _REACH = 4.0, 2.0
_NARROW = 8  # the widest rows whose differences are summed one by one without asking
_WIDER = 2.0**22  # by how much the limit grows in float64 for float32
_SMALL_BLOCK_BYTES = 4 << 20  # where a block is read several times
BLOCK_BYTES = 16 << 20  # temporaries of one block; small enough to stay near the cache, large enough for BLAS


def inverse_norms(rows: Tensor) -> tuple[Tensor, Tensor]:
    """1 / max(|row|, floor), and a factor that is 0 where the floor stands in for the norm (it has no gradient)."""
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return norms.clamp_min(_NORM_FLOOR).reciprocal_(), (norms >= _NORM_FLOOR).to(rows.dtype)


def _similarity(grad: Tensor, x: Tensor, bank: Tensor, cosine: bool, grad_x: Tensor, grad_bank: Tensor) -> None:
    """Gradients of dot products, or of cosines; one that is not wanted is empty."""
    need_x, need_bank = grad_x.numel() > 0, grad_bank.numel() > 0
    if cosine:
        bank_inverse, bank_alive = inverse_norms(bank)
        bank = bank * bank_inverse
    for rows in _blocks(x.shape[0], BLOCK_BYTES, x.shape[1] * x.element_size()):
        g, xs = grad[rows], x[rows]
        if cosine:
            inverse, alive = inverse_norms(xs)
            xs = xs * inverse
        if need_x:
            along = torch.mm(g, bank, out=grad_x[rows])
            if cosine:
                along.sub_(xs * ((along * xs).sum(-1, keepdim=True) * alive)).mul_(inverse)
        if need_bank:
            grad_bank.addmm_(g.T, xs)
    if need_bank and cosine:
        along = (grad_bank * bank).sum(-1, keepdim=True) * bank_alive
        grad_bank.sub_(bank * along).mul_(bank_inverse)


class _Distance:
    """Gradients of l2 (a distance) or sqeuclidean: sums of w (x - b), multiplied out, about a point within the bank.

    What is lost there grows with reach = |x - p| + |b - p| over |x - b|. A row whose least distance shows that nothing
    much can have been lost for any weights keeps its sum; for the others its own weights are asked (`_lost`); and where
    they have lost, torch.cdist's backward adds up the differences themselves.
    """

    def __init__(self, x: Tensor, bank: Tensor, root: bool) -> None:
        self.x, self.bank, self.root = x, bank, root
        # The median of some rows, so that a few rows far away do not draw the point to them.
        self.point = bank[:: max(1, bank.shape[0] // 64)].nanmedian(0).values
        self.near = bank - self.point
        self.factor = 1.0 if root else 2.0  # d sq / d x = 2 (x - b); l2 divides by twice its value

    def run(self, grad: Tensor, grad_x: Tensor, grad_bank: Tensor, row_least: Any, column_least: Any) -> None:
        need_x, need_bank = grad_x.numel() > 0, grad_bank.numel() > 0
        (n, d), m = self.x.shape, self.bank.shape[0]
        on_cpu = grad.device.type == "cpu"
        if on_cpu and d <= _NARROW:
            return self._narrow(grad, grad_x, grad_bank)
        columns, norms = self.bank.new_zeros(m, 1), self.x.new_empty(n)
        near_norms = torch.linalg.vector_norm(self.near, dim=-1)
        # `project` multiplies out about a point of its own, near the mean: is that near enough for every pair?
        drift = torch.linalg.vector_norm(self.near.mean(0)) if self.root else near_norms
        fused = not on_cpu or bool(2 * drift.max() <= near_norms.min())
        for rows in _blocks(n, _SMALL_BLOCK_BYTES, (d + m) * grad.element_size()):
            w, xs = grad[rows], self.x[rows] - self.point
            torch.linalg.vector_norm(xs, dim=-1, out=norms[rows])
            if self.root:
                score = torch.ops.vecbank.project(xs, self.near, None, 2) if fused else _dense(xs, self.near)
                least = None if row_least is None or not on_cpu else row_least[rows]
                clean = least is not None and self._suspects(least, norms[rows], near_norms).numel() == 0
                w = torch.div(w, score, out=score) if clean else torch.where(score > 0, w / score, 0.0)
            if need_x:
                out = torch.mm(w, self.near, out=grad_x[rows])
                out.neg_().addcmul_(xs, w.sum(-1, keepdim=True)).mul_(self.factor)
            if need_bank:
                grad_bank.addmm_(w.T, xs, alpha=-self.factor)
                columns.add_(w.sum(0).unsqueeze(-1), alpha=self.factor)
        if need_bank:
            grad_bank.addcmul_(self.near, columns)
        if not on_cpu:
            return  # to ask which rows are left would wait for the device, which no op may
        if need_x:
            suspects = self._suspects(row_least, norms, near_norms)
            self._refine(grad_x, suspects, grad, (self.x, norms), (self.bank, near_norms))
        if need_bank:
            suspects = self._suspects(column_least, near_norms, norms)
            self._refine(grad_bank, suspects, grad.T, (self.bank, near_norms), (self.x, norms))

    def _suspects(self, least: Tensor | None, norms: Tensor, others: Tensor) -> Tensor:
        """Rows where some pair may have a reach of more than the limit; NaN is none, as nothing would mend it."""
        if least is None:
            return torch.arange(norms.shape[0], device=norms.device)
        least = least.to(norms.dtype)
        least = least.square() if self.root else least
        furthest = others.max()
        # The forward pass has multiplied out too, about a point of its own; these are its worst roundings.
        least = least - 8 * torch.finfo(norms.dtype).eps * (norms + 3 * furthest).square()
        # An other row of more than twice the norm has a reach below 3 by itself.
        reach = torch.fmin(3 * norms, norms + furthest)
        return (reach.square() >= _REACH_ALONE**2 * least).nonzero().squeeze(-1)  # equal: both may be 0

    def _refine(
        self, out: Tensor, suspects: Tensor, grad: Tensor, own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]
    ) -> None:
        """Writes over the suspects' sums where too much was lost: in float64 if that is wider, then by differences."""
        (rows, norms), (others, other_norms) = own, other
        if suspects.numel() == 0:
            return
        moved: dict[torch.dtype, Tensor] = {}
        for block in _blocks(suspects.shape[0], _SMALL_BLOCK_BYTES, others.shape[0] * grad.element_size(), least=1):
            chosen = suspects[block]
            g = grad[block] if suspects.shape[0] == rows.shape[0] else grad[chosen]
            for dtype in dict.fromkeys((rows.dtype, torch.float64)):
                if dtype not in moved:
                    moved[dtype] = others.to(dtype) - self.point.to(dtype)
                wide = moved[dtype]
                a, w = rows[chosen].to(wide.dtype) - self.point.to(wide.dtype), g.to(wide.dtype)
                score = _dense(a, wide) if self.root else None
                if dtype != rows.dtype:
                    weights = w if score is None else w / score  # 0 for distance 0 is never left: such a row has lost
                    sums = (a * weights.sum(-1, keepdim=True)).sub_(weights @ wide)
                    out[chosen] = sums.mul_(self.factor).to(out.dtype)
                lost = self._lost(w, score, a, norms[chosen], wide, other_norms)
                if not lost.any():
                    break
                chosen, g = chosen[lost], g[lost]
            else:
                out[chosen] = self._direct(g, rows[chosen], others)

    def _direct(self, g: Tensor, rows: Tensor, others: Tensor, score: Tensor | None = None) -> Tensor:
        """The sums by differences, as accurate as they come, and slow where rows are wide."""
        if not self.root:
            score = torch.ones_like(g)
        elif score is None:
            score = torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")
        g, rows, others, score = (t.contiguous() for t in (g, rows, others, score))
        sums: Tensor = torch.ops.aten._cdist_backward(g, rows, others, 2.0, score)
        return sums.mul_(self.factor)

    def _narrow(self, grad: Tensor, grad_x: Tensor, grad_bank: Tensor) -> None:
        """All of it by differences: for rows so narrow that this is quicker than to multiply out."""
        for rows in _blocks(self.x.shape[0], _SMALL_BLOCK_BYTES, self.bank.shape[0] * grad.element_size()):
            g, xs, score = grad[rows], self.x[rows], None
            if self.root:
                score = torch.cdist(xs, self.bank, compute_mode="donot_use_mm_for_euclid_dist")
            if grad_x.numel() > 0:
                grad_x[rows] = self._direct(g, xs, self.bank, score)
            if grad_bank.numel() > 0:
                grad_bank.add_(self._direct(g.T, self.bank, xs, None if score is None else score.T))

    def _lost(
        self, g: Tensor, score: Tensor | None, rows: Tensor, norms: Tensor, others: Tensor, other_norms: Tensor
    ) -> Tensor:
        """Whether a row's sum has lost more than a reach of the limit would lose in every pair. The errors of pairs
        add up as squares; of l2, the distance itself has lost as its square did.
        """
        norms, other_norms = norms.to(g.dtype), other_norms.to(g.dtype)
        g = g / torch.linalg.vector_norm(g, torch.inf, -1, keepdim=True).clamp_min_(torch.finfo(g.dtype).tiny)
        limit = _REACH * (1 if g.dtype == self.x.dtype else _WIDER)
        if score is not None:
            reach = (norms.unsqueeze(-1) + other_norms).div_(score)
            loss = torch.linalg.vector_norm(reach.square_().mul_(g), dim=-1)
            return ~(loss <= torch.linalg.vector_norm(g, dim=-1) * (limit * _REACH))
        powers = torch.stack([torch.ones_like(other_norms), other_norms, other_norms.square()], -1)
        sums = g.square_() @ torch.cat([others, powers], -1)  # of the squared weights, and of their moments
        along, (one, first, second) = (sums[:, :-3] * rows).sum(-1), sums[:, -3:].unbind(-1)
        loss = norms * (norms * one + 2 * first) + second  # weights times the reaches, squared
        return ~(loss <= (norms * norms * one - 2 * along + second) * limit**2)  # and times the distances


def _dense(x: Tensor, bank: Tensor) -> Tensor:
    """Distances, multiplied out about the origin: `project` does so about a point of its own."""
    return torch.cdist(x, bank, compute_mode="use_mm_for_euclid_dist")


def _blocks(n: int, most: int, row_bytes: int, least: int = 64) -> Iterator[slice]:
    step = max(least, most // max(row_bytes, 1))
    return (slice(i, min(n, i + step)) for i in range(0, n, step))


@torch.library.impl("vecbank::project_backward", "CompositeExplicitAutograd")
def project_backward(
    grad: Tensor,
    x: Tensor,
    bank: Tensor,
    metric: int,
    need_x: bool = True,
    need_bank: bool = True,
    row_least: Tensor | None = None,
    column_least: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of `project` for x (..., d) and bank (M, d) or (B, M, d); empty where not needed. For distances it
    is quicker with the least of each row and column of the result.
    """
    check_project_backward(grad, x, bank, metric, row_least, column_least)
    if grad.numel() == 0 or x.numel() == 0:
        return x.new_zeros(x.shape if need_x else 0), bank.new_zeros(bank.shape if need_bank else 0)
    work = torch.float64 if bank.dtype == torch.float64 else torch.float32  # 16-bit inputs: sums in float32
    banks = bank.unsqueeze(0) if bank.dim() == 2 else bank
    b, m, d = banks.shape
    flat_x, flat_grad = x.reshape(b, -1, d), grad.reshape(b, -1, m)
    grad_x = torch.empty_like(flat_x) if need_x else x.new_empty(0)
    grad_bank = torch.empty_like(banks) if need_bank else bank.new_empty(0)
    for i in range(b):
        one_grad, one_x, one_bank = flat_grad[i].to(work), flat_x[i].to(work), banks[i].to(work)
        gx = torch.empty_like(one_x) if need_x else one_x.new_empty(0)
        gb = torch.zeros_like(one_bank) if need_bank else one_bank.new_empty(0)
        if metric in (METRICS["l2"], METRICS["sqeuclidean"]):
            least = (None if t is None else t.reshape(b, -1)[i] for t in (row_least, column_least))
            _Distance(one_x, one_bank, metric == METRICS["l2"]).run(one_grad, gx, gb, *least)
        else:
            assert metric in (METRICS["dot"], METRICS["cosine"]), metric  # a new metric needs its own derivative here
            _similarity(one_grad, one_x, one_bank, metric == METRICS["cosine"], gx, gb)
        if b == 1 and gx.dtype == x.dtype and gb.dtype == bank.dtype:
            return gx.view(x.shape) if need_x else gx, gb.view(bank.shape) if need_bank else gb
        if need_x:
            grad_x[i] = gx
        if need_bank:
            grad_bank[i] = gb
    return grad_x.view(x.shape) if need_x else grad_x, grad_bank.view(bank.shape) if need_bank else grad_bank


def residual_quantize_by_stages(
    x: Tensor, books: list[Tensor], packs: list[Tensor], metric: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`residual_quantize` as one `quantize` a stage, for tests."""
    rest, total, codes, losses = x.to(books[0].dtype), None, [], []
    for s, book in enumerate(books):
        row, code = torch.ops.vecbank.quantize(rest, book, packs[s] if packs else None, metric)
        rest = rest - row
        total = row if total is None else total + row
        valid = (code >= 0).unsqueeze(-1)
        squares = torch.where(valid, rest, 0.0).square().sum(dtype=torch.float64)
        codes.append(code)
        losses.append((squares / (valid.sum() * x.shape[-1]).clamp_min(1)).to(rest.dtype))
    assert total is not None
    return total, torch.stack(codes, -1), torch.stack(losses)


def product_quantize_by_parts(x: Tensor, books: Tensor, pack: Tensor | None) -> Tensor:
    """`product_quantize` as one `quantize` for all parts, on a copy that puts them one after the other, for tests."""
    parts = x.reshape(-1, books.shape[0], books.shape[2]).transpose(0, 1).contiguous()
    codes = torch.ops.vecbank.quantize(parts, books, pack, METRICS["sqeuclidean"])[1]
    return codes.T.reshape(*x.shape[:-1], books.shape[0]).contiguous()


def rotated_gradient(grad: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The gradient that reaches `source` when `target` is seen as s R source, R and s held constant.

    With u, q the unit vectors of source and target and w that of u + q: R = I - 2 w w^T + 2 q u^T turns u
    into q, s = |target| / |source|, so the result is s (g - 2 (w.g) w + 2 (q.g) u).
    """
    g, x, t = (v if v.dtype == torch.float64 else v.float() for v in (grad, source, target))
    inverse_x = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(_UNIT_FLOOR).reciprocal()
    norm_t = torch.linalg.vector_norm(t, dim=-1, keepdim=True)
    inverse_t = norm_t.clamp_min(_UNIT_FLOOR).reciprocal()
    bisector = torch.linalg.vector_norm(x * inverse_x + t * inverse_t, dim=-1, keepdim=True)
    inverse_w = bisector.clamp_min(_UNIT_FLOOR).reciprocal()
    along_u = (g * x).sum(-1, keepdim=True) * inverse_x
    along_q = (g * t).sum(-1, keepdim=True) * inverse_t
    along_w = 2 * (along_u + along_q) * inverse_w * inverse_w
    return (g + x * ((2 * along_q - along_w) * inverse_x) - t * (along_w * inverse_t)) * (norm_t * inverse_x)


def quantize_backward_by_torch(grad: Tensor, x: Tensor, quantized: Tensor, scale: Tensor, estimator: int) -> Tensor:
    """`quantize_backward` as a formula, for tests: the estimator of `grad`, plus ``scale (x - quantized)``."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    passed = (x.to(wide) - quantized.to(wide)) * scale.to(wide)
    if estimator == ESTIMATORS["rotation"]:
        passed = passed + rotated_gradient(grad, x, quantized)
    elif estimator == ESTIMATORS["straight"]:
        passed = passed + grad.to(wide)
    return passed.to(x.dtype)
