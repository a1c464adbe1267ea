"""Gradients of `project` by l2 and sqeuclidean: matrix products, and the differences themselves where products cancel.

Small problems on the CPU, and batches of them, are one block each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import add_product, block_rows, blocks, cast, sums_dtype
from .calls import ops
from .names import METRICS

_NARROW = 8  # rows up to this wide: their differences are summed as quickly as products
_FEW = 25  # up to so many rows on both sides torch.cdist sums differences too
_LOSS = 48.0  # last units that a pair may lose in a product: codes with a tenth of noise lose 20 to 40 of sqeuclidean's
_WIDER = 2.0**25  # so many times more in float64 for float32 inputs: at most three of float32's own last units
_FEW_TERMS = 1 << 19  # pairs times width: their differences take a tenth of a millisecond or two
_MANY = 1 / 32  # of a block's pairs: up to here their differences are quicker than products in float64
SMALL_BLOCK_BYTES = 4 << 20  # where a block is read several times


class _Sums(NamedTuple):
    """The bank about the point in one dtype, and its side of the products: its gradient is near * totals + products."""

    near: Tensor
    pack: Tensor | None  # on the CPU
    spread: float  # most of near are no longer than this
    products: Tensor  # (d, M): the order in which BLAS is quickest
    totals: Tensor

    @classmethod
    def of(cls, bank: Tensor, point: Tensor) -> _Sums:
        near = bank.to(point.dtype) - point
        pack, spread = None, 0.0
        if near.device.type == "cpu":
            pack = torch.ops.vecbank.pack(near, METRICS["l2"])
            spread = float(torch.linalg.vector_norm(near, dim=-1).kthvalue((3 * near.shape[0] + 3) // 4).values)
        return cls(near, pack, spread, torch.zeros_like(near.T), near.new_zeros(near.shape[0]))

    def distances(self, a: Tensor, norms: Tensor) -> Tensor:
        """Multiplied out about the point. `project` is quicker, and does so about the median of near or zero: that is
        as good for rows that are not much shorter than most of near.
        """
        if self.pack is None or 2 * float(norms.min()) >= self.spread:
            return torch.ops.vecbank.project(a, self.near, self.pack, METRICS["l2"])
        return torch.cdist(a, self.near, compute_mode="use_mm_for_euclid_dist")


def median(rows: Tensor) -> Tensor:
    """Of each column, without its NaNs; `nanmedian` is not deterministic everywhere."""
    ordered = rows.sort(0).values
    last = ordered.isnan().logical_not().sum(0, keepdim=True) - 1
    return ordered.gather(0, last.clamp_min(0) // 2).squeeze(0)


class _Distance:
    """Gradients of l2 (a distance) or sqeuclidean: sums of w (x - b), by matrix products about a point amid the rows.

    A product rounds at the size of |x - p| and |b - p|: if these are r times |x - b|, the pair has lost r of its last
    units, and r squared of l2, whose distance was multiplied out as well. On the CPU a pair that may have lost more
    than `_LOSS` is close. Close pairs are left out of the products and their differences are summed one by one, so
    that both sides have them right. Where more than `_MANY` of a block of rows are close, the block's products are in
    float64, in which far fewer pairs are close; where that does not help, all of its differences are summed.
    Which pairs are close is told by l2's distances, worked out again here; of sqeuclidean they are worked out only
    for blocks where the least of the forward pass says that there may be some.

    On other devices the products about the point are all, in the inputs' dtype: to ask for more would wait there.
    """

    def __init__(self, x: Tensor, bank: Tensor, root: bool, need_x: bool, need_bank: bool) -> None:
        self.x, self.bank, self.root = x, bank, root
        self.grad_x = torch.empty_like(x) if need_x else None
        self.grad_bank = torch.zeros_like(bank) if need_bank else None
        # The median of some rows of both, so that a few rows far away do not draw the point to them.
        self.point = median(torch.cat([rows[:: max(1, rows.shape[0] // 64)] for rows in (x, bank)]))
        self.factor = 1.0 if root else 2.0  # d sq / d x = 2 (x - b); l2 divides by twice its value
        self.sums: dict[torch.dtype, _Sums] = {}

    def run(self, grad: Tensor, row_least: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        (n, d), m = self.x.shape, self.bank.shape[0]
        on_cpu = grad.device.type == "cpu"
        alone = on_cpu and _sums_differences(n, m, d)
        for rows in blocks(n, block_rows(SMALL_BLOCK_BYTES, (d + m) * self.x.element_size())):
            g = grad[rows].to(self.x.dtype)
            least = None if row_least is None else row_least[rows].to(g.dtype).unsqueeze(-1)
            if alone or not (
                self._products(g, rows, least, on_cpu)
                or (g.dtype != torch.float64 and self._products(g.double(), rows, least, on_cpu))
            ):
                self._differences(g, rows)
        if self.grad_bank is not None:
            for sums in self.sums.values():
                self.grad_bank.add_(sums.products.addcmul_(sums.near.T, sums.totals).mul_(self.factor).T)
        return self.grad_x, self.grad_bank

    def _products(self, g: Tensor, rows: slice, least: Tensor | None, on_cpu: bool) -> bool:
        """Adds a block's sums in the dtype of g; false, and nothing is added, where too many of its pairs are close."""
        point, wider = self.point.to(g.dtype), g.dtype != self.x.dtype
        if g.dtype not in self.sums:
            self.sums[g.dtype] = _Sums.of(self.bank, point)
        sums, a = self.sums[g.dtype], self.x[rows].to(g.dtype) - point
        norms = torch.linalg.vector_norm(a, dim=-1, keepdim=True)
        w, pairs, limit = g, None, norms * _share(self.root, wider)
        if self.root or (on_cpu and not wider and self._may_be_close(rows, least, limit, sums.spread)):
            score = sums.distances(a, norms)
            if not on_cpu:
                score.masked_fill_(score <= 0, torch.inf)
            elif not bool((score.amin(-1, keepdim=True) > limit).all()):
                close = score <= limit
                if int(close.count_nonzero()) > _MANY * close.numel():
                    return False
                pairs = close.nonzero(as_tuple=True)
                score[pairs] = torch.inf
            if self.root:
                w = torch.div(g, score, out=score)
            elif pairs is not None:
                w = g.clone()
                w[pairs] = 0.0
        if self.grad_x is not None:
            if g.dtype == torch.float64:  # BLAS is much quicker in this order if rows are short
                out = torch.mm(sums.near.T, w.T).T
            else:
                out = torch.mm(w, sums.near)
            self.grad_x[rows] = out.neg_().addcmul_(a, w.sum(-1, keepdim=True)).mul_(self.factor)
        if self.grad_bank is not None:
            add_product(sums.products, a.T, w, -1)
            sums.totals.add_(w.sum(0))
        if pairs is not None:
            self._pairs(pairs, g, rows)
        return True

    def _may_be_close(self, rows: slice, least: Tensor | None, limit: Tensor, spread: float) -> bool:
        """Whether a pair may be closer than the limit, seeing that the forward pass multiplied out about the median of
        the bank or zero: no further from p than most of the bank, or than zero.
        """
        if least is None:
            return True
        squares = self.x[rows].square().sum(-1, keepdim=True) + spread * spread
        return not bool((least > limit.square() + 16 * torch.finfo(limit.dtype).eps * squares).all())

    def _pairs(self, pairs: tuple[Tensor, ...], g: Tensor, rows: slice) -> None:
        """Adds the chosen pairs of a block, by differences."""
        grad_x = None if self.grad_x is None else self.grad_x[rows]
        _add_pairs(pairs, g[pairs].to(self.x.dtype), self.x[rows], self.bank, self.root, grad_x, self.grad_bank)

    def _differences(self, g: Tensor, rows: slice) -> None:
        need_x, need_bank = self.grad_x is not None, self.grad_bank is not None
        grad_x, grad_bank = _differences(g, self.x[rows], self.bank, self.root, need_x, need_bank)
        if self.grad_x is not None and grad_x is not None:
            self.grad_x[rows] = grad_x
        if self.grad_bank is not None and grad_bank is not None:
            self.grad_bank.add_(grad_bank)


def _share(root: bool, wider: bool = False) -> float:
    """Of |x - p|: the distance up to which pairs are close. One at |x - p| / k has |b - p| <= (k + 1) / k |x - p|,
    so that r <= 2 k + 1.
    """
    loss = _LOSS * (_WIDER if wider else 1.0)
    return 2 / (math.sqrt(loss) if root else loss)


def _sums_differences(n: int, m: int, d: int) -> bool:
    """Whether the differences of all pairs are summed, whatever the data."""
    return d <= _NARROW or max(n, m) <= _FEW


def _add_pairs(
    pairs: tuple[Tensor, ...],
    grads: Tensor,
    x: Tensor,
    bank: Tensor,
    root: bool,
    grad_x: Tensor | None,
    grad_bank: Tensor | None,
) -> None:
    """Adds the chosen pairs, whose gradients are `grads`, by differences."""
    step = max(1, SMALL_BLOCK_BYTES // (8 * x.shape[1]))
    for i, j, g in zip(*(t.split(step) for t in (*pairs, grads)), strict=True):
        apart = x[i] - bank[j]
        if root:
            norms = torch.linalg.vector_norm(apart, dim=-1)
            w = g.div(norms).masked_fill_(norms == 0, 0.0)
        else:
            w = g * 2.0
        if grad_x is not None:
            grad_x.add_(ops.segment_sum(apart, i, x.shape[0], w))
        if grad_bank is not None:
            grad_bank.sub_(ops.segment_sum(apart, j, bank.shape[0], w))


def _differences(
    grad: Tensor, x: Tensor, bank: Tensor, root: bool, need_x: bool, need_bank: bool
) -> tuple[Tensor | None, Tensor | None]:
    """All pairs of a block, or of a batch, by differences: as accurate as they come, and slow where rows are wide."""
    x, bank, grad = x.contiguous(), bank.contiguous(), grad.contiguous()
    if root:
        score = torch.cdist(x, bank, compute_mode="donot_use_mm_for_euclid_dist")
    else:
        grad, score = grad * 2.0, torch.ones_like(grad)
    backward = torch.ops.aten._cdist_backward.default
    grad_x = backward(grad, x, bank, 2.0, score) if need_x else None
    return grad_x, backward(grad.mT.contiguous(), bank, x, 2.0, score.mT.contiguous()) if need_bank else None


def _dense(
    grad: Tensor, x: Tensor, bank: Tensor, root: bool, need_x: bool, need_bank: bool, least: Tensor | None
) -> tuple[Tensor | None, Tensor | None] | None:
    """As `_Distance` on the CPU, in one block: for a small problem, or a batch of them, about the mean of each bank.

    None where too many pairs are close, or their squares leave the range of the dtype: some rows may be far away.
    """
    add_product = torch.addmm if x.dim() == 2 else torch.baddbmm
    point = bank.mean(-2, keepdim=True)
    a, near = x - point, bank - point
    own, near_own = (torch.linalg.vector_norm(t, dim=-1, keepdim=True).square_() for t in (a, near))
    info = torch.finfo(x.dtype)
    limit = (own * _share(root) ** 2).clamp_min_(info.tiny / info.eps)
    w, pairs, factor = grad, None, 1.0 if root else 2.0
    if root or not _is_far(least, limit, x, near_own):
        squares = add_product(near_own.mT, a, near.mT, alpha=-2.0).add_(own)
        if not bool((squares.amin(-1, keepdim=True) > limit).all()):
            close = (squares > limit).logical_not_()  # NaN is
            if int(close.count_nonzero()) > _MANY * close.numel():
                return None
            pairs = close.nonzero(as_tuple=True)
            squares[pairs] = torch.inf
        if root:
            w = squares.rsqrt_().mul_(grad)
        elif pairs is not None:
            w = grad.clone()
            w[pairs] = 0.0
    grad_x = grad_bank = None
    if need_x:
        grad_x = add_product(a * w.sum(-1, keepdim=True), w, near, beta=factor, alpha=-factor)
    if need_bank:
        grad_bank = add_product(near * w.sum(-2).unsqueeze(-1), w.mT, a, beta=factor, alpha=-factor)
    if pairs is not None:
        grads, (n, d), m = grad[pairs], x.shape[-2:], bank.shape[-2]
        if len(pairs) == 3:  # rows of all problems, one after the other
            pairs = pairs[0] * n + pairs[1], pairs[0] * m + pairs[2]
        flat = [None if t is None else t.reshape(-1, d) for t in (x, bank, grad_x, grad_bank)]
        assert flat[0] is not None and flat[1] is not None
        _add_pairs(pairs, grads, flat[0], flat[1], root, flat[2], flat[3])
    return grad_x, grad_bank


def _is_far(least: Tensor | None, limit: Tensor, x: Tensor, near_own: Tensor) -> bool:
    """Whether no square is below the limit, as the forward pass has them: it multiplied out about the median of the
    bank or zero, which are no further from x and the mean than |x| and the furthest of the bank.
    """
    if least is None:
        return False
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() + near_own.amax(-2, keepdim=True)
    return bool((least.to(x.dtype).unsqueeze(-1) > limit + 16 * torch.finfo(x.dtype).eps * squares).all())


def distance(
    grad: Tensor, x: Tensor, bank: Tensor, root: bool, need_x: bool, need_bank: bool, least: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of l2 or sqeuclidean, of one problem or of a batch of small ones."""
    work = sums_dtype(bank)
    x, bank = cast(x, work), cast(bank, work)
    (n, d), m = x.shape[-2:], bank.shape[-2]
    if x.is_cpu and distance_numbers(n, m, d) * x.element_size() <= SMALL_BLOCK_BYTES:
        g = cast(grad, work)
        if not _sums_differences(n, m, d):
            dense = _dense(g, x, bank, root, need_x, need_bank, least)
            if dense is not None:
                return dense
        if _sums_differences(n, m, d) or n * m * d <= _FEW_TERMS:
            return _differences(g, x, bank, root, need_x, need_bank)
    if x.dim() == 2:
        return _Distance(x, bank, root, need_x, need_bank).run(grad, least)
    grad_x = torch.empty_like(x) if need_x else None
    grad_bank = torch.empty_like(bank) if need_bank else None
    for i in range(x.shape[0]):
        one = _Distance(x[i], bank[i], root, need_x, need_bank).run(grad[i], None if least is None else least[i])
        for out, found in zip((grad_x, grad_bank), one, strict=True):
            if out is not None and found is not None:
                out[i] = found
    return grad_x, grad_bank


def distance_numbers(n: int, m: int, d: int) -> int:
    """Numbers that the block of a distance holds."""
    return n * m + (n + m) * d
