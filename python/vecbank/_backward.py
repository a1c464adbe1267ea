"""Backward passes in plain torch, on blocks of rows so that no N x M or N x d copy is made; and second
opinions for tests of ops that have kernels.

`project`: three matrix products, and no kernel of ours on any device. Rotation trick: Fifty et al., "Restructuring
Vector Quantization with the Rotation Trick", ICLR 2025.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._codes import ESTIMATORS, METRICS
from ._fakes import check_project_backward

_NORM_FLOOR = 1e-8
_UNIT_FLOOR = 1e-6  # the rotation trick's: norms below this count as this
BLOCK_BYTES = 16 << 20  # temporaries of one block; small enough to stay near the cache, large enough for BLAS


def inverse_norms(rows: Tensor) -> tuple[Tensor, Tensor]:
    """1 / max(|row|, floor), and a factor that is 0 where the floor stands in for the norm (it has no gradient)."""
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return norms.clamp_min(_NORM_FLOOR).reciprocal_(), (norms >= _NORM_FLOOR).to(rows.dtype)


def _one(grad: Tensor, x: Tensor, bank: Tensor, metric: int, need_x: bool, need_bank: bool) -> tuple[Tensor, Tensor]:
    """Gradients for x (N, d) and bank (M, d), all in one working dtype."""
    n, d = x.shape
    m = bank.shape[0]
    assert metric in (0, 1, 2, 3), metric  # a new metric needs its own derivative here
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    grad_bank = torch.zeros_like(bank) if need_bank else bank.new_empty(0)
    cosine, distance = metric == 1, metric >= 2
    if cosine:
        bank_inverse, bank_alive = inverse_norms(bank)
        unit_bank = bank * bank_inverse
    # Only l2 needs an (n, M) temporary, for its scores: smaller blocks there.
    per_row = (d + (m if metric == 2 else 0)) * x.element_size()
    block = max(64, BLOCK_BYTES // max(per_row, 1))
    columns = bank.new_zeros(m, 1)
    if distance:  # only differences matter, and they survive far from the origin if both sides are shifted first
        shift = bank.mean(0)
        bank = bank - shift
    for start in range(0, n, block):
        rows = slice(start, min(n, start + block))
        g, xs = grad[rows], x[rows]
        if cosine:
            inverse, alive = inverse_norms(xs)
            unit = xs * inverse
            if need_x:
                along = torch.mm(g, unit_bank, out=grad_x[rows])
                along.sub_(unit * ((along * unit).sum(-1, keepdim=True) * alive)).mul_(inverse)
            if need_bank:
                grad_bank.addmm_(g.T, unit)
            continue
        if distance:
            xs = xs - shift
        if metric == 2:
            score = torch.ops.vecbank.project(xs, bank, None, metric)
            g = torch.where(score > 0, g / score, 0.0)
        if distance:  # d sq / d x = 2 (x - b); l2 divides by twice its value
            factor = 1.0 if metric == 2 else 2.0
            if need_x:
                torch.mm(g, bank, out=grad_x[rows])
                grad_x[rows].neg_().addcmul_(xs, g.sum(-1, keepdim=True)).mul_(factor)
            if need_bank:
                grad_bank.addmm_(g.T, xs, alpha=-factor)
                columns.add_(g.sum(0).unsqueeze(-1), alpha=factor)
            continue
        if need_x:
            torch.mm(g, bank, out=grad_x[rows])
        if need_bank:
            grad_bank.addmm_(g.T, xs)
    if need_bank and distance:
        grad_bank.addcmul_(bank, columns)
    if need_bank and cosine:
        along = (grad_bank * unit_bank).sum(-1, keepdim=True) * bank_alive
        grad_bank.sub_(unit_bank * along).mul_(bank_inverse)
    return grad_x, grad_bank


@torch.library.impl("vecbank::project_backward", "CompositeExplicitAutograd")
def project_backward(
    grad: Tensor, x: Tensor, bank: Tensor, metric: int, need_x: bool = True, need_bank: bool = True
) -> tuple[Tensor, Tensor]:
    """Gradients of `project` for x (..., d) and bank (M, d) or (B, M, d); empty where not needed."""
    check_project_backward(grad, x, bank, metric)
    work = torch.float64 if bank.dtype == torch.float64 else torch.float32  # 16-bit inputs: sums in float32
    banks = bank.unsqueeze(0) if bank.dim() == 2 else bank
    b, m, d = banks.shape
    flat_x, flat_grad = x.reshape(b, -1, d), grad.reshape(b, -1, m)
    grad_x = torch.empty_like(flat_x) if need_x else x.new_empty(0)
    grad_bank = torch.empty_like(banks) if need_bank else bank.new_empty(0)
    for i in range(b):
        gx, gb = _one(flat_grad[i].to(work), flat_x[i].to(work), banks[i].to(work), metric, need_x, need_bank)
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
