"""The steps of VectorQuantize.forward between the rows at the books and what is returned.

`ask` finds codes and lets the books move, `estimate` attaches the gradient, `losses` adds up the terms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._finite import zeroed
from ..functional import quantize, topk
from . import _vq_ops as ops
from ._codebook import unit
from ._draws import normal
from ._estimators import rotate_to, straight_through
from ._layout import mean
from ._moving import not_exported
from ._recall import inside_backward

if TYPE_CHECKING:
    from .vector_quantize import VectorQuantize


class LossBreakdown(NamedTuple):
    """The terms of the loss, unweighted; 0 where a term is off."""

    commitment: Tensor
    codebook_diversity: Tensor
    orthogonal_reg: Tensor
    inplace_optimize: Tensor


class Call(NamedTuple):
    """What one call of forward asks for."""

    mask: Tensor | None  # in the layout of the rows at the books; leaves out rows that are not finite as well
    masked: bool  # the caller gave a mask
    topk: int | None
    temperature: float | Tensor
    frozen: bool
    transform: Callable[[Tensor], Tensor] | None
    scored: bool  # the codes are given, and only their cross-entropy is wanted
    routed: bool  # the gradient of the result goes to the input
    update: dict[str, Any]  # options of Codebook.update


class Found(NamedTuple):
    """What the books answered, in the layout of the rows at the books."""

    rows: Tensor  # what was asked
    quantized: Tensor  # as rows; (..., k, d) with topk
    codes: Tensor
    bank: Tensor  # the codes' vectors as they were then
    loss: Tensor | None = None  # mean squared gap, where it came with the codes
    scores: Tensor | None = None  # (..., K), where a transform gave every row a book of its own
    optimized: Tensor | None = None  # the loss that the in-place optimiser lowered


# ---- codes --------------------------------------------------------------------------------------------------------


def ask(vq: VectorQuantize, rows: Tensor, call: Call) -> Found:
    """Codes for the rows; in training, the books move by them."""
    book = vq._codebook
    if not (vq.training and inside_backward()):
        book.prepare(rows, call.mask)
        return _find(vq, rows, call, may_change=vq.training and not call.frozen)
    repeated = book.recall.find(rows)  # activation checkpointing: this forward has been here before
    if repeated is None:
        return _find(vq, rows, call, may_change=False)
    with repeated.restored(book.state(), vq.generator):
        return _find(vq, rows, call, may_change=False, repeats=True)


def _find(vq: VectorQuantize, rows: Tensor, call: Call, may_change: bool, repeats: bool = False) -> Found:
    book, metric = vq._codebook, vq._codebook.metric
    updates, optimized = may_change and call.topk is None, None
    if updates and vq.in_place_codebook_optimizer is not None:
        optimized, updates = _optimize_in_place(vq, rows, call), False
    seen = book.see(rows, _samples(vq, call) or book.has_dead_code_replacement) if may_change else None
    bank = book.bank(rows.dtype)
    if call.transform is not None:
        return _find_transformed(vq, rows, bank, call, updates)
    codes = _sampled(vq, rows, bank, call)
    if call.topk is not None:
        codes = topk(rows.detach(), bank.detach(), call.topk, metric).indices if codes is None else codes
        return Found(rows, ops.gather_rows(codes, bank).to(rows.dtype), codes, bank)
    if not vq.training:
        plain = quantize(rows.detach(), bank.detach(), metric)
        learns = bank.requires_grad and torch.is_grad_enabled()
        quantized = ops.gather_rows(plain.codes, bank) if learns else plain.quantized
        return Found(rows, quantized.to(rows.dtype), plain.codes, bank)
    step = ops.train(
        rows,
        bank,
        metric,
        mask=call.mask,
        codes=codes,
        estimator="none"
        if not call.routed or vq.directional_reparam
        else "rotation"
        if vq.rotation_trick
        else "straight",
        learn=vq.learnable_codebook and not call.frozen,
        seen=seen,
    )
    softened = vq.straight_through and not call.routed
    looks_back = vq.has_codebook_diversity_loss or vq.commitment_use_cross_entropy_loss or softened
    if (updates or repeats) and (looks_back or call.scored):
        bank = ops.snapshot(bank)  # the book is about to move
    if updates:
        book.update(rows, step.counts, step.sums, call.mask, **call.update)
    if seen is not None:
        seen.finish()
    return Found(rows, step.quantized, step.codes, bank, step.loss, optimized=optimized)


def _sampled(vq: VectorQuantize, rows: Tensor, bank: Tensor, call: Call) -> Tensor | None:
    """Codes drawn by their scores, where codes are drawn."""
    if not _samples(vq, call):
        return None
    metric, generator = vq._codebook.metric, vq.generator
    return ops.sample_codes(rows.detach(), bank.detach(), metric, call.temperature, call.topk, generator)


def _samples(vq: VectorQuantize, call: Call) -> bool:
    return bool(vq.training and vq.stochastic_sample_codes and call.temperature > 0)


def _find_transformed(vq: VectorQuantize, rows: Tensor, bank: Tensor, call: Call, updates: bool) -> Found:
    """Codes from a book (b, n, K, d) of each row's own."""
    assert call.transform is not None
    own = call.transform(bank.unsqueeze(0)).squeeze(0)
    if own.shape != (*rows.shape[:-1], *bank.shape):
        want, got = (1, *rows.shape[:-1], *bank.shape), tuple(own.shape)
        raise ValueError(f"codebook_transform_fn must return (1, b, n, K, d) = {want}, got {(1, *got)}")
    there = rows.to(own.dtype)
    if vq.use_cosine_sim:
        own = unit(own)
        scores = (own @ there.unsqueeze(-1)).squeeze(-1)
    else:
        scores = -torch.cdist(there.unsqueeze(-2), own, compute_mode="donot_use_mm_for_euclid_dist").squeeze(-2)
    chosen = scores.detach()
    if _samples(vq, call):
        chosen = ops.add_gumbel(chosen, call.temperature, vq.generator)
    codes = chosen.argmax(-1, keepdim=True) if call.topk is None else chosen.topk(call.topk, dim=-1).indices
    quantized = own.gather(-2, codes.unsqueeze(-1).expand(*codes.shape, own.shape[-1])).to(rows.dtype)
    if call.topk is None:
        quantized, codes = quantized.squeeze(-2), codes.squeeze(-1)
    if updates:
        vq._codebook.update_indices(rows, codes, call.mask, **call.update)
    return Found(rows, quantized, codes, bank, scores=scores)


def _optimize_in_place(vq: VectorQuantize, rows: Tensor, call: Call) -> Tensor:
    """One step of the book's own optimiser on mean (e_code - x)^2, and the updates that go with a batch."""
    not_exported("the step of in_place_codebook_optimizer", "export the module in evaluation")
    book = vq._codebook
    # A graph of its own, made and used here: hooks around us (of activation checkpointing, say) are not for it.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        bank = book.bank(rows.dtype)
        codes = _sampled(vq, rows, bank, call)
        step = ops.train(rows.detach(), bank, book.metric, mask=call.mask, codes=codes, learn=True)
        step.loss.backward()
    book.update(rows, step.counts, step.sums, call.mask, **call.update)
    if not vq.manual_in_place_optimizer_update:
        vq.update_in_place_optimizer()
    return step.loss.detach()


# ---- gradients ----------------------------------------------------------------------------------------------------


def estimate(vq: VectorQuantize, found: Found, call: Call) -> Tensor:
    """The quantised rows with the gradient that training gives them."""
    quantized = found.quantized
    if not vq.training:
        return quantized
    if call.routed:
        rows = found.rows.unsqueeze(-2).expand_as(quantized) if call.topk is not None else found.rows
        if vq.directional_reparam:
            quantized = _directional(vq, rows, quantized)
        elif call.topk is not None or call.transform is not None:
            quantized = rotate_to(rows, quantized) if vq.rotation_trick else straight_through(rows, quantized)
    elif vq.straight_through and call.temperature > 0 and call.topk is None and call.transform is None:
        soft = ops.soft_rows(found.rows, found.bank, vq._codebook.metric, call.temperature)
        quantized = quantized + (soft - soft.detach()).to(quantized.dtype)
    if vq.sync_update_v > 0:
        quantized = quantized + vq.sync_update_v * (quantized - quantized.detach())
    return quantized


def _directional(vq: VectorQuantize, rows: Tensor, quantized: Tensor) -> Tensor:
    """x + |e - x| v, v the (constant) direction of e - x with noise: the book learns through the length.

    Source: Vali et al., "DiVeQ: Differentiable Vector Quantization Using the Reparameterization Trick", 2025.
    """
    error = quantized - rows
    direction = unit(error.detach() + vq.directional_reparam_variance**0.5 * normal(error, vq.generator))
    return rows + direction * torch.linalg.vector_norm(error, dim=-1, keepdim=True)


# ---- losses -------------------------------------------------------------------------------------------------------


def losses(vq: VectorQuantize, found: Found, call: Call, inputs: Tensor) -> tuple[Tensor, LossBreakdown]:
    """The loss of a call, () or (b, n, k) with topk, and its terms."""
    zero = inputs.new_zeros((), dtype=torch.float32)
    commitment = diversity = orthogonal = zero
    loss = zero
    per_code = call.topk is not None
    if not vq.training:
        if per_code:
            commitment = _gap_per_code(found, call, found.quantized)
            loss = commitment * vq.commitment_weight if vq.has_commitment_loss else commitment
        return loss, LossBreakdown(commitment, zero, zero, zero)
    if vq.has_codebook_diversity_loss:
        diversity = _diversity(vq, found, call, inputs.shape[:2])
        loss = loss + diversity * vq.codebook_diversity_loss_weight
    if vq.has_commitment_loss:
        target = found.quantized if vq.learnable_codebook and not call.frozen else found.quantized.detach()
        commitment = _gap_per_code(found, call, target) if per_code else _commitment(vq, found, call, target, inputs)
        loss = loss + commitment * vq.commitment_weight
    if vq.has_codebook_orthogonal_loss:
        orthogonal = _orthogonality(vq, found, call)
        loss = loss + orthogonal * vq.orthogonal_reg_weight
    if not loss.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # Nothing to learn from, but backward() may still be called.
        loss = loss + torch.zeros((), device=loss.device, requires_grad=True)
    optimized = zero if found.optimized is None else found.optimized
    return loss, LossBreakdown(commitment, diversity, orthogonal, optimized)


def _gap_per_code(found: Found, call: Call, target: Tensor) -> Tensor:
    """Mean squared difference of each row to each of its k codes, (b, n, k); 0 outside the mask."""
    gap = (target - found.rows.unsqueeze(-2)).square().mean(-1)
    return gap if call.mask is None else torch.where(call.mask.unsqueeze(-1), gap, 0.0)


def _commitment(vq: VectorQuantize, found: Found, call: Call, target: Tensor, inputs: Tensor) -> Tensor:
    if vq.commitment_use_cross_entropy_loss:
        codes = found.codes if call.mask is None else torch.where(call.mask, found.codes, -1)
        return score_given_codes(vq, found, codes)
    unprojected = vq.use_cosine_sim and call.masked and vq.heads == 1 and not vq.has_projections
    if found.loss is not None and not unprojected:
        return found.loss
    # vector-quantize-pytorch compares masked cosine codes with the input before it is normalised; so do we.
    gap = (target - (zeroed(inputs, call.mask) if unprojected else found.rows)).square()
    if call.mask is None:
        return mean(gap)
    return (gap * call.mask.unsqueeze(-1)).sum() / (call.mask.sum() * gap.shape[-1]).clamp_min(1)


def score_given_codes(vq: VectorQuantize, found: Found, codes: Tensor) -> Tensor:
    """Mean of -log softmax(score)[code] over codes that are not -1."""
    if found.scores is not None:
        summed = F.cross_entropy(found.scores.flatten(0, -2), codes.flatten(), ignore_index=-1, reduction="sum")
        return summed / (codes >= 0).sum().clamp_min(1)
    return ops.cross_entropy(found.rows, found.bank, vq._codebook.metric, codes)


def _diversity(vq: VectorQuantize, found: Found, call: Call, lead: torch.Size) -> Tensor:
    """Minus the entropy of the codes' mean probabilities, softmax(temperature * score), over the batch."""
    sharpness = vq.codebook_diversity_temperature
    if found.scores is not None:
        p = (found.scores * sharpness).softmax(-1).unsqueeze(0)
        return ops.mean_negative_entropy(p, None if call.mask is None else call.mask.unsqueeze(0))
    bank = found.bank if found.bank.dim() == 3 else found.bank.unsqueeze(0)
    rows = vq._layout.positions(found.rows, lead)
    mask = None if call.mask is None else vq._layout.positions(call.mask.unsqueeze(-1), lead).squeeze(-1)
    return ops.negative_entropy(rows, bank, vq._codebook.metric, sharpness, mask)


def _orthogonality(vq: VectorQuantize, found: Found, call: Call) -> Tensor:
    book, active = vq._codebook, None
    if vq.orthogonal_reg_active_codes_only:
        if book.num_codebooks > 1:
            raise ValueError("orthogonal_reg_active_codes_only does not go with a book per head")
        used = found.codes.new_zeros(book.codebook_size + 1, dtype=torch.bool)
        codes = found.codes if call.mask is None or call.topk is None else found.codes.where(call.mask[..., None], -1)
        active = used.index_fill(0, codes.flatten() + 1, True)[1:]
    moves = book.ema_update or book.has_dead_code_replacement or vq.in_place_codebook_optimizer is not None
    return ops.orthogonality(book.embed, active, vq.orthogonal_reg_max_codes, vq.generator, moves and not call.frozen)
