"""Backward pass of `project` in plain torch, on blocks of rows so that no N x M or N x d copy is made.

Matrix products; for distances the differences themselves where products cancel, on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .fakes import check, check_pair, same_device
from .names import METRICS

_NORM_FLOOR = 1e-8
_NARROW = 8  # rows up to this wide: their differences are summed as quickly as products
_FEW = 25  # up to so many rows on both sides torch.cdist sums differences too
_LOSS = 48.0  # last units that a pair may lose in a product: codes with a tenth of noise lose 20 to 40 of sqeuclidean's
_WIDER = 2.0**25  # so many times more in float64 for float32 inputs: at most three of float32's own last units
_MANY = 1 / 32  # of a block's pairs: up to here their differences are quicker than products in float64
_SMALL_BLOCK_BYTES = 4 << 20  # where a block is read several times
BLOCK_BYTES = 16 << 20  # temporaries of one block; small enough to stay near the cache, large enough for BLAS


def inverse_norms(rows: Tensor) -> tuple[Tensor, Tensor]:
    """1 / max(|row|, floor), and a factor that is 0 where the floor stands in for the norm (it has no gradient)."""
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return norms.clamp_min(_NORM_FLOOR).reciprocal_(), (norms >= _NORM_FLOOR).to(rows.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor, alpha: int = 1) -> None:
    """Adds alpha a b to the total, in place.

    On CUDA addmm_ takes a total of one row for a bias, and so goes by cublasLt, which refuses a first factor of one row
    (torch 2.11: CUBLAS_STATUS_INVALID_VALUE). mm never goes there, and its result is one row or column here.
    """
    if total.device.type != "cpu" and min(total.shape) == 1:
        total.add_(torch.mm(a, b), alpha=alpha)
    else:
        total.addmm_(a, b, alpha=alpha)


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
            _add_product(grad_bank, g.T, xs)
    if need_bank and cosine:
        along = (grad_bank * bank).sum(-1, keepdim=True) * bank_alive
        grad_bank.sub_(bank * along).mul_(bank_inverse)


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

    def __init__(self, x: Tensor, bank: Tensor, root: bool, grad_x: Tensor, grad_bank: Tensor) -> None:
        self.x, self.bank, self.root, self.grad_x, self.grad_bank = x, bank, root, grad_x, grad_bank
        self.need_x, self.need_bank = grad_x.numel() > 0, grad_bank.numel() > 0
        # The median of some rows of both, so that a few rows far away do not draw the point to them.
        self.point = median(torch.cat([rows[:: max(1, rows.shape[0] // 64)] for rows in (x, bank)]))
        self.factor = 1.0 if root else 2.0  # d sq / d x = 2 (x - b); l2 divides by twice its value
        self.sums: dict[torch.dtype, _Sums] = {}

    def run(self, grad: Tensor, row_least: Tensor | None) -> None:
        (n, d), m = self.x.shape, self.bank.shape[0]
        on_cpu = grad.device.type == "cpu"
        alone = on_cpu and (d <= _NARROW or max(n, m) <= _FEW)
        for rows in _blocks(n, _SMALL_BLOCK_BYTES, (d + m) * grad.element_size()):
            g, least = grad[rows], None if row_least is None else row_least[rows].to(grad.dtype).unsqueeze(-1)
            if alone or not (
                self._products(g, rows, least, on_cpu)
                or (g.dtype != torch.float64 and self._products(g.double(), rows, least, on_cpu))
            ):
                self._differences(g, rows)
        if self.need_bank:
            for sums in self.sums.values():
                self.grad_bank.add_(sums.products.addcmul_(sums.near.T, sums.totals).mul_(self.factor).T)

    def _products(self, g: Tensor, rows: slice, least: Tensor | None, on_cpu: bool) -> bool:
        """Adds a block's sums in the dtype of g; false, and nothing is added, where too many of its pairs are close."""
        point, wider = self.point.to(g.dtype), g.dtype != self.x.dtype
        if g.dtype not in self.sums:
            self.sums[g.dtype] = _Sums.of(self.bank, point)
        sums, a = self.sums[g.dtype], self.x[rows].to(g.dtype) - point
        norms = torch.linalg.vector_norm(a, dim=-1, keepdim=True)
        w, pairs, limit = g, None, norms * self._share(wider)
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
        if self.need_x:
            if g.dtype == torch.float64:  # BLAS is much quicker in this order if rows are short
                out = torch.mm(sums.near.T, w.T).T
            else:
                out = torch.mm(w, sums.near)
            self.grad_x[rows] = out.neg_().addcmul_(a, w.sum(-1, keepdim=True)).mul_(self.factor)
        if self.need_bank:
            _add_product(sums.products, a.T, w, -1)
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

    def _share(self, wider: bool) -> float:
        """Of |x - p|: the distance up to which pairs are close. One at |x - p| / k has |b - p| <= (k + 1) / k |x - p|,
        so that r <= 2 k + 1.
        """
        loss = _LOSS * (_WIDER if wider else 1.0)
        return 2 / (math.sqrt(loss) if self.root else loss)

    def _pairs(self, pairs: tuple[Tensor, ...], g: Tensor, rows: slice) -> None:
        """Adds the chosen pairs of a block, by differences."""
        step = max(1, _SMALL_BLOCK_BYTES // (8 * self.x.shape[1]))
        x, grad_x = self.x[rows], self.grad_x[rows] if self.need_x else self.grad_x
        for i, j in zip(*(t.split(step) for t in pairs), strict=True):
            apart, w = x[i] - self.bank[j], g[i, j].to(x.dtype) * self.factor
            if self.root:
                norms = torch.linalg.vector_norm(apart, dim=-1)
                w = w.div_(norms).masked_fill_(norms == 0, 0.0)
            if self.need_x:
                grad_x.add_(torch.ops.vecbank.segment_sum(apart, i, x.shape[0], w))
            if self.need_bank:
                self.grad_bank.sub_(torch.ops.vecbank.segment_sum(apart, j, self.bank.shape[0], w))

    def _differences(self, g: Tensor, rows: slice) -> None:
        """All of a block by differences: as accurate as they come, and slow where rows are wide."""
        x, bank, score = self.x[rows].contiguous(), self.bank.contiguous(), torch.ones_like(g)
        if self.root:
            score = torch.cdist(x, bank, compute_mode="donot_use_mm_for_euclid_dist")
        backward = torch.ops.aten._cdist_backward
        if self.need_x:
            self.grad_x[rows] = backward(g.contiguous(), x, bank, 2.0, score).mul_(self.factor)
        if self.need_bank:
            self.grad_bank.add_(backward(g.T.contiguous(), bank, x, 2.0, score.T.contiguous()), alpha=self.factor)


_ABSOLUTE_TERMS = 1 << 26  # differences to a block, a tenth of a second


def _absolute(grad: Tensor, x: Tensor, bank: Tensor, grad_x: Tensor, grad_bank: Tensor) -> None:
    """Gradients of l1: sums of sign(x - b), which is 0 where they are equal."""
    x, bank = x.contiguous(), bank.contiguous()
    for out, grads, rows, others in ((grad_x, grad, x, bank), (grad_bank, grad.T, bank, x)):
        if out.numel() == 0:
            continue
        for block in _blocks(rows.shape[0], _ABSOLUTE_TERMS, others.numel(), least=1):  # Ctrl-C is seen between two
            g = grads[block].contiguous()
            out[block] = torch.ops.aten._cdist_backward(g, rows[block], others, 1.0, g)  # reads no distances


def _blocks(n: int, most: int, row_size: int, least: int = 64) -> Iterator[slice]:
    step = max(least, most // max(row_size, 1))
    return (slice(i, min(n, i + step)) for i in range(0, n, step))


def check_project_backward(
    grad: Tensor,
    x: Tensor,
    bank: Tensor,
    metric: int,
    row_least: Tensor | None = None,
) -> None:
    """What the kernel and its fake refuse."""
    check_pair(x, bank, metric)
    same_device(x, grad, row_least)
    check(
        row_least is None or row_least.shape == x.shape[:-1],
        f"row_least must have shape {tuple(x.shape[:-1])}, got {None if row_least is None else tuple(row_least.shape)}",
    )
    shape = (*x.shape[:-1], bank.shape[-2])
    check(tuple(grad.shape) == shape, f"grad must have shape {shape}, got {tuple(grad.shape)}")


@torch.library.impl("vecbank::project_backward", "CompositeExplicitAutograd")
def project_backward(
    grad: Tensor,
    x: Tensor,
    bank: Tensor,
    metric: int,
    need_x: bool = True,
    need_bank: bool = True,
    row_least: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of `project` for x (..., d) and bank (M, d) or (B, M, d); empty where not needed. For
    sqeuclidean it is quicker with the least of each row of the result.
    """
    check_project_backward(grad, x, bank, metric, row_least)
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
            least = None if row_least is None else row_least.reshape(b, -1)[i]
            _Distance(one_x, one_bank, metric == METRICS["l2"], gx, gb).run(one_grad, least)
        elif metric == METRICS["l1"]:
            _absolute(one_grad, one_x, one_bank, gx, gb)
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
