"""Residual vector quantisation: every stage codes the residual of the stages before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from .._checks import in_range
from .._finite import both, counted, finite_rows, uncoded, voided, zeroed
from ..functional import lookup
from ._arguments import integers, maybe_whole, numbers, tensor, whole, wholes
from ._checkpointing import ForwardRecord, ForwardRecords, inside_backward, may_repeat
from ._derived import Derived
from ._draws import normal
from ._estimators import keep_alive, scale_gradient
from ._implicit_codebook import CodeMLP
from ._layout import channel_last, working
from ._residual import Cascade, ResidualQuantizer, Stage, encode_stages, pad_cascade, run_cascade
from ._state_updates import state_update
from .vector_quantize import VectorQuantize

_DIVEQ_VARIANCE = 5e-3


class _Call(NamedTuple):
    """What one call of forward asks of the stages."""

    mask: Tensor | None  # (b, n)
    finite: Tensor | None  # (b, n), None for all: the other rows are NaN
    active: int  # stages that run
    update: bool  # whether the codebooks may be updated
    options: dict[str, Any]  # for the stages' own forward


class ResidualVQ(ResidualQuantizer, Derived):
    """A cascade of `VectorQuantize` stages, with the arguments and state_dict of `vector_quantize_pytorch.ResidualVQ`.

    In evaluation the cascade is one call. Residuals of 16-bit inputs are kept in float32. A row with NaN or inf
    becomes NaN with codes -1; it does not change the codebooks, and its gradient is zero.

    Formula: r_0 = x; k_s = the code nearest to r_s, q_s its vector, r_{s+1} = r_s - q_s; the result is sum_s q_s.
    Beam search keeps the B sequences of codes with the smallest weighted sum of losses instead of one.

    Args:
        dim: features of the input.
        num_quantizers: stages S; may be left out where codebook_size is a tuple of sizes.
        codebook_size: codes per stage, or a tuple with one size for each stage.
        codebook_dim: features of the codes; a linear map goes in front and behind where it differs from dim.
        shared_codebook: one codebook for all stages, updated once per step.
        diveq: the codes learn through noise on the direction of the error, not by moving averages.
        heads: only 1 is supported.
        quantize_dropout: train with a random number of stages; codes of the others are -1.
        quantize_dropout_cutoff_index: at least this number of stages plus one run.
        quantize_dropout_multiple_of: their number is rounded up to a multiple of this one.
        accept_image_fmap: x is (b, dim, h, w).
        implicit_neural_codebook: every stage's codes go through a network that takes what was decoded so far.
        mlp_kwargs: arguments of these networks (dim_hidden, depth, l2norm_output).
        beam_size: number B of sequences that a search keeps in training.
        eval_beam_size: B in evaluation; beam_size by default.
        beam_score_quantizer_weights: S numbers, each stage's weight in the sum of losses; 1 by default.
        quant_grad_frac: share of the gradient that passes from a stage to the codes of those before it.
        return_zeros_for_masked_padding: rows outside the mask come back as zeros, and not as they were.
        **vq_kwargs: further arguments of `VectorQuantize`; `accept_3d_fmap` and `channel_last=False` say that the
            features are on axis 1.

    Shapes:
        x (b, ..., dim), or (b, dim, ...) with features on axis 1; codes int64 (b, ..., S); losses float32 (S,).

    Raises:
        ValueError, TypeError: arguments out of range, or that exclude each other, by name.

    Example:
        >>> import torch
        >>> from vecbank.nn import ResidualVQ
        >>> module = ResidualVQ(dim=8, num_quantizers=3, codebook_size=16).eval()
        >>> quantized, codes, losses = module(torch.randn(2, 5, 8))
        >>> quantized.shape, codes.shape, losses.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 5, 3]), torch.Size([3]))
        >>> torch.allclose(module.get_output_from_indices(codes), quantized)
        True

    Sources: Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec", 2021; structured dropout: Defossez et
    al., "High Fidelity Neural Audio Compression", 2022; implicit codebooks: Huijben et al., "Residual Quantization with
    Implicit Neural Codebooks", ICML 2024; directional reparametrisation: Vali et al., "DiVeQ", 2025.
    """

    beam_score_weights: Tensor
    _decodes_last = True

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int | None = None,
        codebook_size: int | tuple[int, ...],
        codebook_dim: int | None = None,
        shared_codebook: bool = False,
        diveq: bool = False,
        heads: int = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        accept_image_fmap: bool = False,
        implicit_neural_codebook: bool = False,
        mlp_kwargs: dict[str, Any] | None = None,
        beam_size: int | None = None,
        eval_beam_size: int | None = None,
        beam_score_quantizer_weights: Sequence[float] | None = None,
        quant_grad_frac: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        **vq_kwargs: Any,
    ) -> None:
        if heads != 1:
            raise ValueError(f"ResidualVQ: heads={heads} is not supported: a stage has one code")
        dim, codebook_dim = whole("dim", dim), maybe_whole("codebook_dim", codebook_dim)
        beam_size, eval_beam_size = maybe_whole("beam_size", beam_size), maybe_whole("eval_beam_size", eval_beam_size)
        numbers(0, 1, quant_grad_frac=quant_grad_frac)
        sizes = _sizes(codebook_size, num_quantizers)
        if shared_codebook and len(set(sizes)) > 1:
            raise ValueError(f"shared_codebook needs one codebook_size, got {codebook_size}")
        if eval_beam_size is not None and beam_size is None:
            raise ValueError(f"eval_beam_size={eval_beam_size} needs beam_size")
        if implicit_neural_codebook and max(beam_size or 1, eval_beam_size or 1) > 1:
            raise ValueError("beam_size does not go with implicit_neural_codebook: each beam would need own codebooks")
        dropout = quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        super().__init__(dim, dim if codebook_dim is None else codebook_dim, len(sizes), dropout)

        self.codebook_dim = dim if codebook_dim is None else codebook_dim
        self.accept_image_fmap = accept_image_fmap
        spatial, last = vq_kwargs.pop("accept_3d_fmap", False), vq_kwargs.pop("channel_last", True)
        self._channel_first = accept_image_fmap or spatial or not last
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.implicit_neural_codebook = implicit_neural_codebook
        self.diveq = diveq
        self.shared_codebook = shared_codebook
        self.codebook_sizes = sizes
        self.uniform_codebook_size = len(set(sizes)) == 1
        self.quant_grad_frac = 1.0 if diveq else quant_grad_frac
        self.beam_size = beam_size
        self.eval_beam_size = beam_size if eval_beam_size is None else eval_beam_size
        self._beam_weights = _beam_weights(beam_score_quantizer_weights, len(sizes))
        self._hold()

        if implicit_neural_codebook:
            vq_kwargs |= {"learnable_codebook": True, "ema_update": False}
        if shared_codebook:
            vq_kwargs |= {"manual_ema_update": True, "manual_in_place_optimizer_update": True}
        if diveq:
            vq_kwargs |= {"learnable_codebook": True, "ema_update": False}
            vq_kwargs |= {"route_gradients_to_input": False, "commitment_weight": 0.0}
        self.layers = nn.ModuleList(
            VectorQuantize(self.codebook_dim, size, self.codebook_dim, **vq_kwargs) for size in sizes
        )
        self._recall = ForwardRecords()
        self.generator: Generator | None = vq_kwargs.get("generator")
        self.vq_is_ema_updating = bool(self.layers[0].ema_update)
        self.mlps: Any = (None,) * (len(sizes) - 1)
        if implicit_neural_codebook:
            options = {"l2norm_output": self.layers[0].use_cosine_sim, **(mlp_kwargs or {})}
            self.mlps = nn.ModuleList(CodeMLP(self.codebook_dim, **options) for _ in range(len(sizes) - 1))
        if shared_codebook:
            for layer in self.layers[1:]:
                layer._codebook = self.layers[0]._codebook

    def _derive(self) -> dict[str, Tensor]:
        return {"beam_score_weights": torch.tensor(self._beam_weights, dtype=torch.float32, device="cpu")}

    # ---- Codes -------------------------------------------------------------------------------------------------------

    @property
    def codebooks(self) -> Tensor | tuple[Tensor, ...]:
        """The codebook of every stage: (S, K, d), or a tuple of (K_s, d) where the sizes differ."""
        codebooks = tuple(layer._codebook.embed.squeeze(0) for layer in self.layers)
        return torch.stack(codebooks) if self.uniform_codebook_size else codebooks

    def _features_first(self, like: Tensor) -> bool:
        return self._channel_first

    def _vectors(self, codes: Tensor) -> Tensor:
        """As evaluation finds them; an implicit codebook depends on the vectors of the stages before it."""
        parts: list[Tensor] = []
        for layer, code, mlp in zip(self.layers, codes.unbind(-1), (None, *self.mlps), strict=True):
            in_range(code, layer.codebook_size, "indices")
            rows = layer._codebook.decode(code)
            dtype = rows.dtype
            if mlp is not None:
                rows = mlp(working(rows), torch.stack(parts).sum(0)) * (code >= 0).unsqueeze(-1)
            parts.append(working(rows) if self.implicit_neural_codebook else rows)
        return torch.stack(parts).to(dtype)

    # ---- Forward -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        indices: Tensor | Sequence[Tensor] | None = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool = False,
        beam_size: int | None = None,
        rand_quantize_dropout_fixed_seed: int | None = None,
        *,
        num_stages: int | None = None,
    ) -> tuple[Tensor, ...]:
        """Quantises x.

        Args:
            x: (b, ..., dim), or (b, dim, ...) with features on axis 1.
            mask: bool (b, n) for x (b, n, dim), True = counts.
            indices: codes (b, ..., S) to be scored instead, or a sequence of S tensors (b, ...).
            return_all_codes: return the vectors of every stage too.
            sample_codebook_temp: temperature of sampled codes; overrides that of the stages.
            freeze_codebook: do not update the codebooks.
            beam_size: overrides the module's.
            rand_quantize_dropout_fixed_seed: seed of the number of stages that quantize_dropout draws.
            num_stages: run only so many stages.

        Returns:
            (quantised like x, codes (b, ..., S), losses (S,)), and on request the vectors (S, b, ..., codebook_dim).
            With `indices`, (quantised, sum of the cross-entropies of these codes).
        """
        beam_size = maybe_whole("beam_size", beam_size)
        beams = beam_size if beam_size is not None else self.beam_size if self.training else self.eval_beam_size
        searched = indices is None and beams is not None and beams > 1
        options = {
            "sample_codebook_temp": sample_codebook_temp,
            "freeze_codebook": True if freeze_codebook else None,  # False leaves it to the stages' own setting
        }

        def run(rows: Tensor) -> Cascade:
            if mask is not None:
                self._check_mask(mask, x, rows)
            finite = finite_rows(rows)
            rows = voided(rows, finite)

            def stages(update: bool) -> Cascade:
                dropping, seed = self.training and indices is None, rand_quantize_dropout_fixed_seed
                active = self._dropout.active(dropping, num_stages, seed, x.device, self.generator)
                call = _Call(mask, finite, active, update, options)
                if indices is not None:
                    return self._score(rows, self._given(indices, x, rows, active), call)
                if searched:
                    assert beams is not None
                    done = self._search(rows, beams, call)
                else:
                    done = self._encode(rows, call) if self._learns_nothing() else self._cascade(rows, call)
                if self.diveq and self.training:
                    ends = zeroed(rows, finite), zeroed(done.quantized, finite)
                    done = done._replace(quantized=_directional(*ends, self.generator))
                return done

            done = self._repeatable(rows, stages, searched)
            return done._replace(quantized=voided(done.quantized, finite))

        out, codes, losses = self._on_rows(x, run)
        if mask is not None:
            fill = torch.zeros_like(out) if self.return_zeros_for_masked_padding else x.to(out.dtype)
            out = torch.where(mask.unsqueeze(1 if self._channel_first else -1), out, fill)
        if indices is not None:
            return out, losses.sum()
        result = (out, codes, losses)
        return (*result, self.get_codes_from_indices(codes)) if return_all_codes else result

    def _check_mask(self, mask: Tensor, x: Tensor, rows: Tensor) -> None:
        tensor("mask", mask)
        if x.dim() != 3 or mask.shape != rows.shape[:2] or mask.dtype != torch.bool:
            shape = tuple(channel_last(x).shape if self._channel_first else x.shape)
            raise ValueError(
                f"mask must be bool (b, n) for x (b, n, dim), got {mask.dtype} {tuple(mask.shape)} for x {shape}"
            )

    def _given(self, indices: Tensor | Sequence[Tensor], x: Tensor, rows: Tensor, active: int) -> Tensor:
        """The codes (b, n, q) that are to be scored, for at least the stages that run."""
        listed = isinstance(indices, (list, tuple))
        given = integers(torch.stack(list(indices)) if listed else indices, "indices")
        lead = (channel_last(x) if self._channel_first else x).shape[:-1]
        if given.shape[:-1] != lead or not active <= given.shape[-1] <= self.num_quantizers:
            want = f"{(*lead, active)} for x {tuple(x.shape)}"
            raise ValueError(f"indices must be (b, ..., {active}) = {want}, got {tuple(given.shape)}")
        return given.reshape(*rows.shape[:2], given.shape[-1])

    def _repeatable(self, x: Tensor, run: Callable[[bool], Cascade], searched: bool) -> Cascade:
        """`run(update)`, with the same result when activation checkpointing repeats it, but without a second update.

        Stages see to that for what they do themselves. This method sees to it for what the cascade does: a shared
        codebook and a search update codebooks here, and the module's own generator draws.
        """
        draws_own = self.generator is not None and (self.quantize_dropout or self.diveq)
        watched = self.training and (searched or self.shared_codebook or draws_own)
        if not watched or torch.compiler.is_compiling():
            return run(True)
        states = [layer._codebook.state() for layer in self.layers]
        codebooks = {f"{i}.{name}": t for i, state in enumerate(states) for name, t in state.items()}
        if inside_backward():
            repeated = self._recall.find(x)
            if repeated is None:
                return run(False)
            with repeated.restored(codebooks, self.generator):
                return run(False)
        if not may_repeat():
            return run(True)
        seen = ForwardRecord(x, codebooks, self.generator, draws=self.layers[0]._codebook.has_dead_code_replacement)
        self._recall.add(seen)
        done = run(True)
        seen.finish()
        return done._replace(quantized=keep_alive(done.quantized, seen))

    def _cascade(self, x: Tensor, call: _Call) -> Cascade:
        """Stage by stage; each updates its codebook from its residuals."""
        residuals: list[Tensor] = []  # of every stage, for a shared codebook
        decoded: list[Tensor] = []  # the sum up to every stage, for implicit codebooks

        def make(layer: VectorQuantize, mlp: CodeMLP | None) -> Stage:
            def stage(residual: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
                transform = None if mlp is None else _conditioned(mlp, decoded[-1])
                quantized, codes, loss = layer(
                    residual, mask=call.mask, codebook_transform_fn=transform, **call.options
                )
                if self.training and self.shared_codebook:
                    residuals.append(residual.detach())
                if self.implicit_neural_codebook:
                    part = zeroed(quantized, call.finite)
                    decoded.append(decoded[-1] + part if decoded else part)
                return quantized, codes, loss

            return stage

        stages = [make(layer, mlp) for layer, mlp in zip(self.layers, (None, *self.mlps), strict=True)]
        done = run_cascade(x, stages, call.active, self.quant_grad_frac)
        if call.update:
            self._update_shared(residuals, call.mask, call.options)
        return done

    def _update_shared(self, residuals: list[Tensor], mask: Tensor | None, options: dict[str, Any]) -> None:
        """Updates the codebook of all stages, once per step, from the residuals of all of them."""
        layer = self.layers[0]
        frozen = layer.freeze_codebook if options["freeze_codebook"] is None else True
        if not residuals or frozen:
            return
        if self.vq_is_ema_updating:
            layer._codebook.update_ema()
        layer.update_in_place_optimizer()
        rows = torch.cat([residual.flatten(0, 1) for residual in residuals])
        if layer.use_cosine_sim:
            rows = torch.nn.functional.normalize(rows, dim=-1, eps=1e-6)
        keep = both(None if mask is None else mask.flatten().repeat(len(residuals)), finite_rows(rows))
        layer._codebook.expire_codes_(zeroed(rows, keep), keep)

    def _learns_nothing(self) -> bool:
        """Whether the stages only look codes up, so that one call can run all of them."""
        if self.training or self.implicit_neural_codebook:
            return False
        codebooks = [layer._codebook for layer in self.layers]
        if any(codebook.affine_param or not codebook._started for codebook in codebooks):
            return False
        return not (torch.is_grad_enabled() and any(p.requires_grad for c in codebooks for p in c.parameters()))

    def _encode(self, x: Tensor, call: _Call) -> Cascade:
        """The cascade where nothing learns."""
        codebooks = [layer._codebook.bank(x.dtype) for layer in self.layers[: call.active]]
        dtype = torch.promote_types(x.dtype, codebooks[0].dtype)
        codebooks, metric = [codebook.to(dtype) for codebook in codebooks], self.layers[0]._codebook.metric
        done = encode_stages(x.detach().to(dtype), codebooks, self.num_quantizers, metric)
        losses = torch.zeros(self.num_quantizers, device=x.device)
        return Cascade(done.quantized.to(x.dtype), uncoded(done.codes, call.mask), losses)

    def _score(self, x: Tensor, codes: Tensor, call: _Call) -> Cascade:
        """Cross-entropies of given codes along the cascade."""
        if not torch.compiler.is_compiling() and bool((codes == -1).any()):
            raise ValueError("indices hold -1, a stage left out: take them in evaluation, without dropout")
        decoded = torch.zeros_like(x)
        residual, losses = x, []
        for layer, mlp, code in zip(self.layers, (None, *self.mlps), codes.unbind(-1)[: call.active], strict=False):
            transform = None if mlp is None else _conditioned(mlp, decoded)
            part, loss = layer(residual, mask=call.mask, indices=code, codebook_transform_fn=transform, **call.options)
            residual = residual - scale_gradient(part, self.quant_grad_frac)
            decoded = decoded + zeroed(part, call.finite)
            losses.append(loss)
        return Cascade(decoded, codes, torch.stack(losses))

    def _search(self, x: Tensor, beams: int, call: _Call) -> Cascade:
        """Beam search over sequences (b, n, B, ...), which are ranked by the weighted sum of their losses so far."""
        b, n, width = x.shape
        residual, quantized = x.unsqueeze(2), torch.zeros_like(x).unsqueeze(2)
        score = x.new_zeros(b, n, 1)
        codes: Tensor = torch.empty(b, n, 1, 0, dtype=torch.int64, device=x.device)
        losses = x.new_zeros(b, n, 1, 0)
        for i, layer in enumerate(self.layers[: call.active]):
            j = residual.shape[2]
            mask = None if call.mask is None else call.mask.repeat_interleave(j, 1)
            most = min(beams, layer.codebook_size)
            part, code, loss = layer(residual.reshape(b, n * j, width), mask=mask, topk=most, **call.options)
            k, loss = code.shape[-1], loss.expand(code.shape)  # a scalar where no term depends on the rows
            total = score.unsqueeze(-1) - (loss.detach() * self.beam_score_weights[i]).reshape(b, n, j, k)
            score, pick = total.flatten(2).topk(min(beams if i + 1 < call.active else 1, j * k), dim=-1)
            parent = pick // k
            part = _take(part.reshape(b, n, j * k, width), pick)
            residual = _take(residual, parent) - scale_gradient(part, self.quant_grad_frac)
            quantized = _take(quantized, parent) + part
            codes = torch.cat((_take(codes, parent), code.reshape(b, n, j * k).gather(2, pick).unsqueeze(-1)), -1)
            losses = torch.cat((_take(losses, parent), loss.reshape(b, n, j * k).gather(2, pick).unsqueeze(-1)), -1)
        keep = both(call.mask, call.finite)
        mean = zeroed(losses[:, :, 0], keep).sum((0, 1)) / counted(keep, x.shape[:2])
        best = Cascade(quantized[:, :, 0], codes[:, :, 0], mean)
        if self.training and call.update:
            self._update_by_codes(x.detach(), best.codes, call.mask, call.options)
        return pad_cascade(best, self.num_quantizers - call.active)

    @state_update
    def _update_by_codes(self, x: Tensor, codes: Tensor, mask: Tensor | None, options: dict[str, Any]) -> None:
        """Updates the codebooks by the codes that a search chose; the residuals are computed again from these codes."""
        frozen = self.layers[0].freeze_codebook if options["freeze_codebook"] is None else True
        if frozen:
            return
        parts = [
            lookup(code, layer._codebook.bank(x.dtype).to(x.dtype))
            for layer, code in zip(self.layers, codes.unbind(-1), strict=False)
        ]
        residual, residuals = x, []
        for layer, code, part in zip(self.layers, codes.unbind(-1), parts, strict=False):
            residuals.append(residual)
            layer.update_indices(residual, code, mask=mask)
            residual = residual - part
        if self.shared_codebook:
            self._update_shared(residuals, mask, options)


def _sizes(codebook_size: int | tuple[int, ...], num_quantizers: int | None) -> tuple[int, ...]:
    """Codes of every stage."""
    if isinstance(codebook_size, (tuple, list)):
        if num_quantizers is not None and num_quantizers != len(codebook_size):
            raise ValueError(f"codebook_size {codebook_size} and num_quantizers = {num_quantizers} do not agree")
        return tuple(wholes("codebook_size", codebook_size))
    if num_quantizers is None:
        raise ValueError("num_quantizers must be given where codebook_size is one number")
    return (whole("codebook_size", codebook_size),) * whole("num_quantizers", num_quantizers)


def _beam_weights(given: Sequence[float] | None, stages: int) -> list[float]:
    """beam_score_quantizer_weights, checked."""
    if given is not None and (isinstance(given, str) or not isinstance(given, Iterable)):
        raise TypeError(f"beam_score_quantizer_weights must be a sequence of numbers, got {given!r}")
    weights = [1.0] * stages if given is None else list(given)
    numbers(-math.inf, **{f"beam_score_quantizer_weights[{i}]": weight for i, weight in enumerate(weights)})
    if len(weights) != stages:
        raise ValueError(f"beam_score_quantizer_weights must have {stages} entries, got {len(weights)}")
    return weights


def _conditioned(mlp: CodeMLP, decoded: Tensor) -> Callable[[Tensor], Tensor]:
    """The map from a codebook to one codebook per position."""

    def transform(codebook: Tensor) -> Tensor:
        moved: Tensor = mlp(codebook, decoded)
        return moved

    return transform


def _take(beams: Tensor, pick: Tensor) -> Tensor:
    """beams (b, n, j, w) by number, pick (b, n, k), to (b, n, k, w)."""
    return beams.gather(2, pick.unsqueeze(-1).expand(*pick.shape, beams.shape[-1]))


def _directional(x: Tensor, target: Tensor, generator: Generator | None) -> Tensor:
    """x moved as far as target is away, in that direction with noise; the gradient is that of the distance."""
    apart = target - x
    noisy = apart.detach() + _DIVEQ_VARIANCE**0.5 * normal(x, generator)
    direction = torch.nn.functional.normalize(noisy, dim=-1, eps=1e-6)
    return x + direction * torch.linalg.vector_norm(apart, dim=-1, keepdim=True)
