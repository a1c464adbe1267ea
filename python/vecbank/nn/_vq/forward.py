"""The steps of VectorQuantize.forward from rows to what is returned, given a Codebook, Settings and a Call.

`search_codes` finds codes and updates the codebook, `attach_gradient` gives the result its gradient, `losses` adds up
the terms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.optim import Optimizer

from ..._finite import zeroed
from ...functional import topk
from .._checkpointing import inside_backward, may_repeat
from .._draws import normal
from .._estimators import rotate_to, straight_through
from .._layout import mean
from .._state_updates import refuse_export
from . import ops, score_terms
from .codebook import Codebook
from .in_place import take_step
from .layout import Layout
from .ops import unit


class LossBreakdown(NamedTuple):
    """The terms of the loss, unweighted; 0 where a term is off."""

    commitment: Tensor
    codebook_diversity: Tensor
    orthogonal_reg: Tensor
    inplace_optimize: Tensor


class Settings(NamedTuple):
    """What the module sets for one forward: its layout, and its attributes of these names as they are at the call."""

    layout: Layout
    training: bool
    has_projections: bool
    use_cosine_sim: bool
    learnable_codebook: bool
    rotation_trick: bool
    straight_through: bool
    directional_reparam: bool
    directional_reparam_variance: float
    sync_update_v: float
    stochastic_sample_codes: bool
    has_commitment_loss: bool
    commitment_weight: float
    commitment_use_cross_entropy_loss: bool
    has_codebook_orthogonal_loss: bool
    orthogonal_reg_weight: float
    orthogonal_reg_active_codes_only: bool
    orthogonal_reg_max_codes: int | None
    has_codebook_diversity_loss: bool
    codebook_diversity_loss_weight: float
    codebook_diversity_temperature: float
    in_place_codebook_optimizer: Optimizer | None
    manual_in_place_optimizer_update: bool
    generator: Generator | None


class Call(NamedTuple):
    """What one call of forward asks for."""

    mask: Tensor | None  # in the layout of the rows; leaves out rows that are not finite as well
    masked: bool  # the caller gave a mask
    topk: int | None
    temperature: float | Tensor
    frozen: bool
    transform: Callable[[Tensor], Tensor] | None
    scored: bool  # the codes are given, and only their cross-entropy is computed
    routed: bool  # the gradient of the result goes to the input
    update: dict[str, Any]  # options of Codebook.update


class Found(NamedTuple):
    """The result of a search, in the layout of the rows."""

    rows: Tensor
    quantized: Tensor  # as rows; (..., k, d) with topk
    codes: Tensor
    bank: Tensor  # the code vectors that the rows were compared with
    metric: str
    loss: Tensor | None = None  # mean squared difference of rows and code vectors, where the search computed it
    scores: Tensor | None = None  # (..., K), where a transform gave every row a codebook of its own
    optimized: Tensor | None = None  # the loss that the in-place optimiser lowered


# ---- Codes --------------------------------------------------------------------------------------------------------


def search_codes(codebook: Codebook, settings: Settings, call: Call, rows: Tensor) -> Found:
    """Codes for the rows; in training, the codebook is updated by them."""
    if not (settings.training and inside_backward()):
        if codebook.needs_preparation:
            codebook.prepare(rows, call.mask)
        return _search(codebook, settings, call, rows, may_change=settings.training and not call.frozen)
    record = codebook.forward_records.find(rows)  # activation checkpointing: this call repeats an earlier forward
    if record is None:
        return _search(codebook, settings, call, rows, may_change=False)
    with record.restored(codebook.state(), settings.generator):
        return _search(codebook, settings, call, rows, may_change=False, repeats=True)


def _search(
    codebook: Codebook, settings: Settings, call: Call, rows: Tensor, may_change: bool, repeats: bool = False
) -> Found:
    metric, updates, optimized = codebook.metric, may_change and call.topk is None, None
    if updates and settings.in_place_codebook_optimizer is not None:
        optimized, updates = _optimize_in_place(codebook, settings, call, rows), False
    record = None
    if may_change and may_repeat():
        draws = _samples(settings, call) or codebook.has_dead_code_replacement
        record = codebook.record_forward(rows, draws)
    bank = codebook.bank(rows.dtype)
    if call.transform is not None:
        return _search_transformed(codebook, settings, call, rows, bank, updates)
    codes = _sampled(settings, call, rows, bank, metric)
    if call.topk is not None:
        codes = topk(rows.detach(), bank.detach(), call.topk, metric).indices if codes is None else codes
        return Found(rows, ops.gather_rows(codes, bank).to(rows.dtype), codes, bank, metric)
    if not settings.training:
        quantized, codes = ops.quantize(rows, bank, metric)
        if bank.requires_grad and torch.is_grad_enabled():
            quantized = ops.gather_rows(codes, bank)
        return Found(rows, quantized.to(rows.dtype), codes, bank, metric)
    estimator = "rotation" if settings.rotation_trick else "straight"
    step = ops.train(
        rows,
        bank,
        metric,
        mask=call.mask,
        codes=codes,
        estimator="none" if not call.routed or settings.directional_reparam else estimator,
        learn=settings.learnable_codebook and not call.frozen,
        record=record,
    )
    softened = settings.straight_through and not call.routed
    reads_bank = settings.has_codebook_diversity_loss or settings.commitment_use_cross_entropy_loss or softened
    if (updates or repeats) and (reads_bank or call.scored):
        bank = ops.snapshot(bank)  # the update writes to it
    if updates:
        _update(codebook, call, rows, step)
    if record is not None:
        record.finish()
    return Found(rows, step.quantized, step.codes, bank, metric, step.loss, optimized=optimized)


def _update(codebook: Codebook, call: Call, rows: Tensor, step: ops.TrainingStep) -> None:
    """The update of the codebook that goes with a batch."""
    if codebook.update(step.counts, step.sums, **call.update) and codebook.has_dead_code_replacement:
        codebook.expire_codes_(rows, call.mask)


def _sampled(settings: Settings, call: Call, rows: Tensor, bank: Tensor, metric: str) -> Tensor | None:
    """Codes drawn by their scores; None where codes are not drawn."""
    if not _samples(settings, call):
        return None
    return score_terms.sample_codes(
        rows.detach(), bank.detach(), metric, call.temperature, call.topk, settings.generator
    )


def _samples(settings: Settings, call: Call) -> bool:
    return bool(settings.training and settings.stochastic_sample_codes and call.temperature > 0)


def _search_transformed(
    codebook: Codebook, settings: Settings, call: Call, rows: Tensor, bank: Tensor, updates: bool
) -> Found:
    """Codes from codebooks (b, n, K, d), one for each row."""
    assert call.transform is not None
    own = call.transform(bank.unsqueeze(0)).squeeze(0)
    if own.shape != (*rows.shape[:-1], *bank.shape):
        want, got = (1, *rows.shape[:-1], *bank.shape), tuple(own.shape)
        raise ValueError(f"codebook_transform_fn must return (1, b, n, K, d) = {want}, got {(1, *got)}")
    typed = rows.to(own.dtype)
    if settings.use_cosine_sim:
        own = unit(own)
        scores = (own @ typed.unsqueeze(-1)).squeeze(-1)
    else:
        scores = -torch.cdist(typed.unsqueeze(-2), own, compute_mode="donot_use_mm_for_euclid_dist").squeeze(-2)
    if _samples(settings, call):
        codes = score_terms.draw(scores.detach().clone(), call.temperature, call.topk, settings.generator)
        codes = codes.unsqueeze(-1) if call.topk is None else codes
    elif call.topk is None:
        codes = scores.detach().argmax(-1, keepdim=True)
    else:
        codes = scores.detach().topk(call.topk, dim=-1).indices
    quantized = own.gather(-2, codes.unsqueeze(-1).expand(*codes.shape, own.shape[-1])).to(rows.dtype)
    if call.topk is None:
        quantized, codes = quantized.squeeze(-2), codes.squeeze(-1)
    if updates:
        codebook.update_indices(rows, codes, call.mask, **call.update)
    return Found(rows, quantized, codes, bank, codebook.metric, scores=scores)


def _optimize_in_place(codebook: Codebook, settings: Settings, call: Call, rows: Tensor) -> Tensor:
    """One step of the codebook's own optimiser on mean (e_code - x)^2, and the update that goes with a batch."""
    refuse_export("the step of in_place_codebook_optimizer", "export the module in evaluation")
    # The graph is made and used here alone: hooks of the caller (of activation checkpointing, say) do not apply to it.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        bank = codebook.bank(rows.dtype)
        codes = _sampled(settings, call, rows, bank, codebook.metric)
        step = ops.train(rows.detach(), bank, codebook.metric, mask=call.mask, codes=codes, learn=True)
        step.loss.backward()
    _update(codebook, call, rows, step)
    if settings.in_place_codebook_optimizer is not None and not settings.manual_in_place_optimizer_update:
        take_step(settings.in_place_codebook_optimizer, codebook)
    return step.loss.detach()


# ---- Gradients ----------------------------------------------------------------------------------------------------


def attach_gradient(settings: Settings, call: Call, found: Found) -> Tensor:
    """The quantised rows with the gradient that training gives them."""
    quantized = found.quantized
    if not settings.training:
        return quantized
    if call.routed:
        rows = found.rows.unsqueeze(-2).expand_as(quantized) if call.topk is not None else found.rows
        if settings.directional_reparam:
            quantized = _directional(settings, rows, quantized)
        elif call.topk is not None or call.transform is not None:
            quantized = rotate_to(rows, quantized) if settings.rotation_trick else straight_through(rows, quantized)
    elif settings.straight_through and call.temperature > 0 and call.topk is None and call.transform is None:
        soft = score_terms.soft_rows(found.rows, found.bank, found.metric, call.temperature)
        quantized = quantized + (soft - soft.detach()).to(quantized.dtype)
    if settings.sync_update_v > 0:
        quantized = quantized + settings.sync_update_v * (quantized - quantized.detach())
    return quantized


def _directional(settings: Settings, rows: Tensor, quantized: Tensor) -> Tensor:
    """x + |e - x| * v, v the (constant) direction of e - x with noise; the codes learn through the length.

    Source: Vali et al., "DiVeQ: Differentiable Vector Quantization Using the Reparameterization Trick", 2025.
    """
    error = quantized - rows
    direction = unit(error.detach() + settings.directional_reparam_variance**0.5 * normal(error, settings.generator))
    return rows + direction * torch.linalg.vector_norm(error, dim=-1, keepdim=True)


# ---- Losses -------------------------------------------------------------------------------------------------------


def losses(
    codebook: Codebook, settings: Settings, call: Call, found: Found, inputs: Tensor
) -> tuple[Tensor, LossBreakdown]:
    """The loss of a call, () or (b, n, k) with topk, and its terms; `inputs` (b, n, c) are the rows as they came."""
    zero = inputs.new_zeros((), dtype=torch.float32)
    commitment = diversity = orthogonal = zero
    loss = zero
    per_code = call.topk is not None
    if not settings.training:
        if per_code:
            commitment = _gap_per_code(call, found, found.quantized)
            loss = commitment * settings.commitment_weight if settings.has_commitment_loss else commitment
        return loss, LossBreakdown(commitment, zero, zero, zero)
    of_scores: Tensor | None = None
    if settings.has_codebook_diversity_loss:
        diversity, of_scores = _diversity(settings, call, found, inputs.shape[:2])
        loss = loss + diversity * settings.codebook_diversity_loss_weight
    if settings.has_commitment_loss:
        target = found.quantized if settings.learnable_codebook and not call.frozen else found.quantized.detach()
        if per_code:
            commitment = _gap_per_code(call, found, target)
        else:
            commitment = _commitment(settings, call, found, target, inputs) if of_scores is None else of_scores
        loss = loss + commitment * settings.commitment_weight
    if settings.has_codebook_orthogonal_loss:
        orthogonal = _orthogonality(codebook, settings, call, found)
        loss = loss + orthogonal * settings.orthogonal_reg_weight
    if not loss.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # No term has a gradient, but backward() may still be called.
        loss = loss + torch.zeros((), device=loss.device, requires_grad=True)
    optimized = zero if found.optimized is None else found.optimized
    return loss, LossBreakdown(commitment, diversity, orthogonal, optimized)


def _gap_per_code(call: Call, found: Found, target: Tensor) -> Tensor:
    """Mean squared difference of each row to each of its k codes, (b, n, k); 0 outside the mask."""
    gap = (target - found.rows.unsqueeze(-2)).square().mean(-1)
    return gap if call.mask is None else torch.where(call.mask.unsqueeze(-1), gap, 0.0)


def _commitment(settings: Settings, call: Call, found: Found, target: Tensor, inputs: Tensor) -> Tensor:
    if settings.commitment_use_cross_entropy_loss:
        return score_given_codes(found, _counted_codes(call, found))
    unprojected = (
        settings.use_cosine_sim and call.masked and settings.layout.heads == 1 and not settings.has_projections
    )
    if found.loss is not None and not unprojected:
        return found.loss
    # vector-quantize-pytorch compares masked cosine codes with the input before it is normalised, and so it is here.
    gap = (target - (zeroed(inputs, call.mask) if unprojected else found.rows)).square()
    if call.mask is None:
        return mean(gap)
    return (gap * call.mask.unsqueeze(-1)).sum() / (call.mask.sum() * gap.shape[-1]).clamp_min(1)


def _counted_codes(call: Call, found: Found) -> Tensor:
    """The codes, -1 outside the mask."""
    return found.codes if call.mask is None else torch.where(call.mask, found.codes, -1)


def score_given_codes(found: Found, codes: Tensor) -> Tensor:
    """Mean of -log softmax(score)[code] over codes that are not -1."""
    if found.scores is not None:
        summed = F.cross_entropy(found.scores.flatten(0, -2), codes.flatten(), ignore_index=-1, reduction="sum")
        return summed / (codes >= 0).sum().clamp_min(1)
    return score_terms.cross_entropy(found.rows, found.bank, found.metric, codes)


def _diversity(settings: Settings, call: Call, found: Found, lead: torch.Size) -> tuple[Tensor, Tensor | None]:
    """Minus the entropy of the codes' mean probabilities, softmax(temperature * score), over the batch.

    Beside it comes the cross-entropy that is the commitment loss, where it is: the same scores serve both.
    """
    sharpness = settings.codebook_diversity_temperature
    if found.scores is not None:
        p = (found.scores * sharpness).softmax(-1).unsqueeze(0)
        return score_terms.mean_negative_entropy(p, None if call.mask is None else call.mask.unsqueeze(0)), None
    bank = found.bank if found.bank.dim() == 3 else found.bank.unsqueeze(0)
    positions = settings.layout.positions
    rows = positions(found.rows, lead)
    mask = None if call.mask is None else positions(call.mask.unsqueeze(-1), lead).squeeze(-1)
    coded = settings.has_commitment_loss and settings.commitment_use_cross_entropy_loss and call.topk is None
    if not coded:
        return score_terms.negative_entropy(rows, bank, found.metric, sharpness, mask), None
    codes = positions(_counted_codes(call, found).unsqueeze(-1), lead).squeeze(-1)
    return score_terms.negative_and_cross_entropy(rows, bank, found.metric, sharpness, mask, codes)


def _orthogonality(codebook: Codebook, settings: Settings, call: Call, found: Found) -> Tensor:
    active = None
    if settings.orthogonal_reg_active_codes_only:
        if codebook.num_codebooks > 1:
            raise ValueError("orthogonal_reg_active_codes_only does not go with a codebook per head")
        used = found.codes.new_zeros(codebook.codebook_size + 1, dtype=torch.bool)
        codes = found.codes if call.mask is None or call.topk is None else found.codes.where(call.mask[..., None], -1)
        active = used.index_fill(0, codes.flatten() + 1, True)[1:]
    updated = codebook.ema_update or codebook.has_dead_code_replacement
    updated = (updated or settings.in_place_codebook_optimizer is not None) and not call.frozen
    return ops.orthogonality(codebook.embed, active, settings.orthogonal_reg_max_codes, settings.generator, updated)
