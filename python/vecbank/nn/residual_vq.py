"""Residual vector quantisation: every stage codes what the stages before it left over.

Formula: r_0 = x; k_s = the code nearest to r_s, q_s its vector, r_{s+1} = r_s - q_s; the result is sum_s q_s.
Beam search keeps the B sequences of codes with the smallest weighted sum of losses instead of one.

Sources: Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec", 2021; structured dropout: Defossez
et al., "High Fidelity Neural Audio Compression", 2022; implicit codebooks: Huijben et al., "Residual
Quantization with Implicit Neural Codebooks", ICML 2024; directional reparametrisation: Vali et al., "DiVeQ",
2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from .._checks import in_range
from .._finite import both, counted, finite_rows, voided, zeroed
from ..functional import lookup
from ._arguments import integers, maybe_whole, numbers, tensor, whole, wholes
from ._checkpointing import ForwardRecord, ForwardRecords, inside_backward, may_repeat
from ._derived import Derived
from ._draws import normal
from ._estimators import keep_alive, scale_gradient
from ._layout import channel_first, channel_last, check_width, like_weights, no_autocast, projection, working
from ._neural_book import CodeMLP
from ._passes import encode_stages
from ._residual import Cascade, Stage, StageDropout, pad_stages, run_cascade
from ._state_updates import state_update
from .vector_quantize import VectorQuantize

_DIVEQ_VARIANCE = 5e-3


class _Call(NamedTuple):
    """What one call of forward asks of the stages."""

    mask: Tensor | None  # (b, n)
    finite: Tensor | None  # (b, n), None for all: the other rows are NaN
    active: int  # stages that run
    move: bool  # books may move
    options: dict[str, Any]  # for the stages' own forward


class ResidualVQ(Derived):
    """A cascade of VectorQuantize stages. Same arguments and state_dict as
    `vector_quantize_pytorch.ResidualVQ`.

    Args:
        dim: features of the input; codebook_dim: of the codes, with a linear map in front and behind where
            they differ.
        num_quantizers: stages S; may be left out where codebook_size is a tuple of sizes.
        codebook_size: codes per stage, or a tuple with one size for each.
        shared_codebook: one book for all stages, moved once per step. heads: only 1.
        diveq: the codes learn through noise on the direction of the error, not by averages.
        quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of: train with a random
            number of stages, at least cutoff + 1, rounded up to a multiple; codes of the others are -1.
        accept_image_fmap: x (b, dim, h, w). So with accept_3d_fmap and channel_last=False among the rest.
        implicit_neural_codebook, mlp_kwargs: every stage's codes go through a network that sees what was
            decoded so far.
        beam_size, eval_beam_size, beam_score_quantizer_weights: B in training and in evaluation, and every
            stage's weight in the score.
        quant_grad_frac: share of the gradient that passes from a stage to the codes of those before it.
        return_zeros_for_masked_padding: rows outside the mask come back as zeros, else as they were.
        **vq_kwargs: of VectorQuantize.

    `forward(x, mask=None, indices=None, return_all_codes=False, sample_codebook_temp=None,
    freeze_codebook=False, beam_size=None, rand_quantize_dropout_fixed_seed=None, *, num_stages=None)`: x (b,
    ..., dim) to (quantised like x, codes (b, ..., S), losses (S,)), and all stages' vectors (S, b, ...,
    codebook_dim) on request. mask (b, n), True = counts. With `indices` (b, n, S), to (quantised, sum of the
    cross-entropies of these codes). `num_stages` runs only so many stages. In evaluation the cascade is one
    call; residuals of 16-bit inputs are kept in float32. A row with NaN or inf becomes NaN with codes -1; it
    moves nothing, and its gradient is zero.
    """

    beam_score_weights: Tensor

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
        super().__init__()
        if heads != 1:
            raise ValueError(f"ResidualVQ: heads={heads} is not supported: a stage has one code")
        dim, codebook_dim = whole("dim", dim), maybe_whole("codebook_dim", codebook_dim)
        beam_size, eval_beam_size = maybe_whole("beam_size", beam_size), maybe_whole("eval_beam_size", eval_beam_size)
        numbers(0, 1, quant_grad_frac=quant_grad_frac)
        sizes = _sizes(codebook_size, num_quantizers)
        num_quantizers = len(sizes)
        if shared_codebook and len(set(sizes)) > 1:
            raise ValueError(f"shared_codebook needs one codebook_size, got {codebook_size}")
        if eval_beam_size is not None and beam_size is None:
            raise ValueError(f"eval_beam_size={eval_beam_size} needs beam_size")
        if implicit_neural_codebook and max(beam_size or 1, eval_beam_size or 1) > 1:
            raise ValueError("beam_size does not go with implicit_neural_codebook: every beam would need its own books")
        given = beam_score_quantizer_weights
        if given is not None and (isinstance(given, str) or not isinstance(given, Iterable)):
            raise TypeError(f"beam_score_quantizer_weights must be a sequence of numbers, got {given!r}")
        weights = [1.0] * num_quantizers if given is None else list(given)
        numbers(-math.inf, **{f"beam_score_quantizer_weights[{i}]": weight for i, weight in enumerate(weights)})
        if len(weights) != num_quantizers:
            raise ValueError(f"beam_score_quantizer_weights must have {num_quantizers} entries, got {len(weights)}")
        self._beam_weights = weights

        self.dim = dim
        self.codebook_dim = dim if codebook_dim is None else codebook_dim
        self.has_projections = self.codebook_dim != dim
        self.project_in = projection(dim, self.codebook_dim, self.has_projections)
        self.project_out = projection(self.codebook_dim, dim, self.has_projections)
        self.accept_image_fmap = accept_image_fmap
        spatial, last = vq_kwargs.pop("accept_3d_fmap", False), vq_kwargs.pop("channel_last", True)
        self._channel_first = accept_image_fmap or spatial or not last
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.implicit_neural_codebook = implicit_neural_codebook
        self.diveq = diveq
        self.shared_codebook = shared_codebook
        self.num_quantizers = num_quantizers
        self.codebook_sizes = sizes
        self.uniform_codebook_size = len(set(sizes)) == 1
        self.quant_grad_frac = 1.0 if diveq else quant_grad_frac
        self.beam_size = beam_size
        self.eval_beam_size = beam_size if eval_beam_size is None else eval_beam_size
        self._hold()

        if implicit_neural_codebook:
            vq_kwargs |= {"learnable_codebook": True, "ema_update": False}
        if shared_codebook:
            vq_kwargs |= {"manual_ema_update": True, "manual_in_place_optimizer_update": True}
        if diveq:
            vq_kwargs |= {"learnable_codebook": True, "ema_update": False}
            vq_kwargs |= {"route_gradients_to_input": False, "commitment_weight": 0.0}
        self.layers: Any = nn.ModuleList(
            VectorQuantize(self.codebook_dim, size, self.codebook_dim, **vq_kwargs) for size in sizes
        )
        self._recall = ForwardRecords()
        self.generator: Generator | None = vq_kwargs.get("generator")
        self.vq_is_ema_updating = bool(self.layers[0].ema_update)
        self._dropout = StageDropout(
            num_quantizers, quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of
        )
        self.quantize_dropout = self._dropout.enabled
        self.mlps: Any = (None,) * (num_quantizers - 1)
        if implicit_neural_codebook:
            options = {"l2norm_output": self.layers[0].use_cosine_sim, **(mlp_kwargs or {})}
            self.mlps = nn.ModuleList(CodeMLP(self.codebook_dim, **options) for _ in range(num_quantizers - 1))
        if shared_codebook:
            for layer in self.layers[1:]:
                layer._codebook = self.layers[0]._codebook

    def _derive(self) -> dict[str, Tensor]:
        return {"beam_score_weights": torch.tensor(self._beam_weights, dtype=torch.float32, device="cpu")}

    # ---- Codes
    # ----------------------------------------------------------------------------------------------------

    @property
    def codebook_size(self) -> int:
        """Codes of the first stage."""
        size: int = self.layers[0].codebook_size
        return size

    @property
    def codebooks(self) -> Tensor | tuple[Tensor, ...]:
        """Every stage's book: (S, K, d), or a tuple of (K_s, d) where the sizes differ."""
        books = tuple(layer._codebook.embed.squeeze(0) for layer in self.layers)
        return torch.stack(books) if self.uniform_codebook_size else books

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Vectors of every stage as evaluation finds them, (S, b, ..., d), for codes (b, ..., q) of any integer
        dtype: q < S with quantize_dropout; -1 is zeros.
        """
        indices = pad_stages(integers(indices, "indices"), self.num_quantizers, self.quantize_dropout)
        parts: list[Tensor] = []
        for layer, code, mlp in zip(self.layers, indices.unbind(-1), (None, *self.mlps), strict=True):
            in_range(code, layer.codebook_size, "indices")
            rows = layer._codebook.decode(code)
            dtype = rows.dtype
            if mlp is not None:
                rows = mlp(working(rows), torch.stack(parts).sum(0)) * (code >= 0).unsqueeze(-1)
            parts.append(working(rows) if self.implicit_neural_codebook else rows)
        return torch.stack(parts).to(dtype)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Codes (b, ..., q) to quantised features (b, ..., dim), on the last axis."""
        out: Tensor = self.project_out(like_weights(self.get_codes_from_indices(indices).sum(0), self.project_out))
        return out

    # ---- Forward
    # --------------------------------------------------------------------------------------------------

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
        """Quantises x; see the class."""
        first = self._channel_first
        check_width(x, self.dim, 1 if first else -1)
        inputs = channel_last(x) if first else x
        if mask is not None:
            tensor("mask", mask)
        if mask is not None and (inputs.dim() != 3 or mask.shape != inputs.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"mask must be bool (b, n) for x (b, n, dim), got {mask.dtype} {tuple(mask.shape)} "
                f"for x {tuple(inputs.shape)}"
            )
        beam_size = maybe_whole("beam_size", beam_size)
        beams = beam_size if beam_size is not None else self.beam_size if self.training else self.eval_beam_size
        searched = indices is None and beams is not None and beams > 1
        options = {
            "sample_codebook_temp": sample_codebook_temp,
            "freeze_codebook": True if freeze_codebook else None,  # False leaves it to the stages' own setting
        }
        finite = finite_rows(inputs)
        projected = inputs
        if self.has_projections:
            projected = self.project_in(zeroed(inputs, finite))
            finite = both(finite, finite_rows(projected))
        lead = projected.shape[:-1]
        valid = None if finite is None else finite.reshape(lead[0], math.prod(lead[1:]))
        with no_autocast(projected):
            rows = working(voided(projected, finite)).reshape(lead[0], math.prod(lead[1:]), self.codebook_dim)

            def passes(move: bool) -> Cascade:
                dropping, seed = self.training and indices is None, rand_quantize_dropout_fixed_seed
                active = self._dropout.active(dropping, num_stages, seed, x.device, self.generator)
                call = _Call(mask, valid, active, move, options)
                if indices is not None:
                    listed = isinstance(indices, (list, tuple))
                    given = integers(torch.stack(list(indices)) if listed else indices, "indices")
                    if given.shape[:-1] != lead or not active <= given.shape[-1] <= self.num_quantizers:
                        want = f"{(*lead, active)} for x {tuple(x.shape)}"
                        raise ValueError(f"indices must be (b, ..., {active}) = {want}, got {tuple(given.shape)}")
                    return self._score(rows, given.reshape(*rows.shape[:2], given.shape[-1]), call)
                if searched:
                    assert beams is not None
                    done = self._search(rows, beams, call)
                else:
                    done = self._encode(rows, call) if self._learns_nothing() else self._cascade(rows, call)
                if self.diveq and self.training:
                    ends = zeroed(rows, valid), zeroed(done.quantized, valid)
                    done = done._replace(quantized=_directional(*ends, self.generator))
                return done

            done = self._repeatable(rows, passes, searched)
            quantized = done.quantized
        quantized = quantized.to(projected.dtype).reshape(projected.shape)
        if self.has_projections:
            quantized = self.project_out(zeroed(quantized, finite))
        out = voided(quantized, finite)
        if mask is not None:
            fill = torch.zeros_like(out) if self.return_zeros_for_masked_padding else inputs.to(out.dtype)
            out = torch.where(mask.unsqueeze(-1), out, fill)
        out = channel_first(out) if first else out
        if indices is not None:
            return out, done.losses.sum()
        codes = done.codes.reshape(*lead, self.num_quantizers)
        result = (out, codes, done.losses)
        return (*result, self.get_codes_from_indices(codes)) if return_all_codes else result

    def _repeatable(self, x: Tensor, run: Callable[[bool], Cascade], searched: bool) -> Cascade:
        """`run(move)`, the same when activation checkpointing repeats it, when books do not move a second time.

        Stages see to that for what they do themselves. From here, a shared book and a search move books, and draws
        are made by the module's own generator.
        """
        draws_own = self.generator is not None and (self.quantize_dropout or self.diveq)
        watched = self.training and (searched or self.shared_codebook or draws_own)
        if not watched or torch.compiler.is_compiling():
            return run(True)
        states = [layer._codebook.state() for layer in self.layers]
        books = {f"{i}.{name}": t for i, state in enumerate(states) for name, t in state.items()}
        if inside_backward():
            repeated = self._recall.find(x)
            if repeated is None:
                return run(False)
            with repeated.restored(books, self.generator):
                return run(False)
        if not may_repeat():
            return run(True)
        seen = ForwardRecord(x, books, self.generator, draws=self.layers[0]._codebook.has_dead_code_replacement)
        self._recall.add(seen)
        done = run(True)
        seen.finish()
        return done._replace(quantized=keep_alive(done.quantized, seen))

    def _cascade(self, x: Tensor, call: _Call) -> Cascade:
        """Stage by stage, each learning from what it sees."""
        seen: list[Tensor] = []  # what the stages saw, for a shared book
        said: list[Tensor] = []  # what they decoded, for implicit books

        def make(layer: VectorQuantize, mlp: CodeMLP | None) -> Stage:
            def stage(residual: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
                transform = None if mlp is None else _conditioned(mlp, said[-1])
                quantized, codes, loss = layer(
                    residual, mask=call.mask, codebook_transform_fn=transform, **call.options
                )
                if self.training and self.shared_codebook:
                    seen.append(residual.detach())
                if self.implicit_neural_codebook:
                    part = zeroed(quantized, call.finite)
                    said.append(said[-1] + part if said else part)
                return quantized, codes, loss

            return stage

        stages = [make(layer, mlp) for layer, mlp in zip(self.layers, (None, *self.mlps), strict=True)]
        done = run_cascade(x, stages, call.active, self.quant_grad_frac)
        if call.move:
            self._move_shared(seen, call.mask, call.options)
        return done

    def _move_shared(self, seen: list[Tensor], mask: Tensor | None, options: dict[str, Any]) -> None:
        """Once per step: the book of all stages follows what they all saw."""
        layer = self.layers[0]
        frozen = layer.freeze_codebook if options["freeze_codebook"] is None else True
        if not seen or frozen:
            return
        if self.vq_is_ema_updating:
            layer._codebook.update_ema()
        layer.update_in_place_optimizer()
        rows = torch.cat([s.flatten(0, 1) for s in seen])
        if layer.use_cosine_sim:
            rows = torch.nn.functional.normalize(rows, dim=-1, eps=1e-6)
        keep = both(None if mask is None else mask.flatten().repeat(len(seen)), finite_rows(rows))
        layer._codebook.expire_codes_(zeroed(rows, keep), keep)

    def _learns_nothing(self) -> bool:
        """Whether the stages only look codes up: then all of them are one call."""
        if self.training or self.implicit_neural_codebook:
            return False
        books = [layer._codebook for layer in self.layers]
        if any(book.affine_param or not book._started for book in books):
            return False
        return not (torch.is_grad_enabled() and any(p.requires_grad for book in books for p in book.parameters()))

    def _encode(self, x: Tensor, call: _Call) -> Cascade:
        """The cascade where nothing learns."""
        books = [layer._codebook.bank(x.dtype) for layer in self.layers[: call.active]]
        both = torch.promote_types(x.dtype, books[0].dtype)
        done = encode_stages(x.detach().to(both), [book.to(both) for book in books], self.layers[0]._codebook.metric)
        codes = done.codes if call.mask is None else done.codes.masked_fill(~call.mask.unsqueeze(-1), -1)
        codes = torch.nn.functional.pad(codes, (0, self.num_quantizers - call.active), value=-1)
        losses = torch.zeros(self.num_quantizers, device=x.device)
        return Cascade(done.quantized.to(x.dtype), codes, losses, call.active)

    def _score(self, x: Tensor, codes: Tensor, call: _Call) -> Cascade:
        """Cross-entropies of given codes along the cascade."""
        if not torch.compiler.is_compiling() and bool((codes == -1).any()):
            raise ValueError("indices hold -1, a stage left out: take them in evaluation, without dropout")
        said = torch.zeros_like(x)
        residual, losses = x, []
        for layer, mlp, code in zip(self.layers, (None, *self.mlps), codes.unbind(-1)[: call.active], strict=False):
            transform = None if mlp is None else _conditioned(mlp, said)
            part, loss = layer(residual, mask=call.mask, indices=code, codebook_transform_fn=transform, **call.options)
            residual = residual - scale_gradient(part, self.quant_grad_frac)
            said = said + zeroed(part, call.finite)
            losses.append(loss)
        return Cascade(said, codes, torch.stack(losses), call.active)

    def _search(self, x: Tensor, beams: int, call: _Call) -> Cascade:
        """Beam search: B sequences (b, n, B, ...) are carried along, by the weighted sum of their losses so far."""
        b, n, width = x.shape
        residual, quantized = x.unsqueeze(2), torch.zeros_like(x).unsqueeze(2)
        score = x.new_zeros(b, n, 1)
        codes: Tensor = torch.empty(b, n, 1, 0, dtype=torch.int64, device=x.device)
        losses = x.new_zeros(b, n, 1, 0)
        for i, layer in enumerate(self.layers[: call.active]):
            j = residual.shape[2]
            spread = None if call.mask is None else call.mask.repeat_interleave(j, 1)
            most = min(beams, layer.codebook_size)
            part, code, loss = layer(residual.reshape(b, n * j, width), mask=spread, topk=most, **call.options)
            k, loss = code.shape[-1], loss.expand(code.shape)  # a scalar where no term looks at rows
            total = score.unsqueeze(-1) - (loss.detach() * self.beam_score_weights[i]).reshape(b, n, j, k)
            score, pick = total.flatten(2).topk(min(beams if i + 1 < call.active else 1, j * k), dim=-1)
            parent = pick // k
            part = _take(part.reshape(b, n, j * k, width), pick)
            residual = _take(residual, parent) - scale_gradient(part, self.quant_grad_frac)
            quantized = _take(quantized, parent) + part
            codes = torch.cat((_take(codes, parent), code.reshape(b, n, j * k).gather(2, pick).unsqueeze(-1)), -1)
            losses = torch.cat((_take(losses, parent), loss.reshape(b, n, j * k).gather(2, pick).unsqueeze(-1)), -1)
        best, chosen, each = quantized[:, :, 0], codes[:, :, 0], losses[:, :, 0]
        keep = both(call.mask, call.finite)
        mean = zeroed(each, keep).sum((0, 1)) / counted(keep, x.shape[:2])
        if self.training and call.move:
            self._learn_from(x.detach(), chosen, call.mask, call.options)
        rest = (0, self.num_quantizers - call.active)
        chosen = torch.nn.functional.pad(chosen, rest, value=-1)
        return Cascade(best, chosen, torch.nn.functional.pad(mean, rest), call.active)

    @state_update
    def _learn_from(self, x: Tensor, codes: Tensor, mask: Tensor | None, options: dict[str, Any]) -> None:
        """Moves the books by the codes that a search chose: the residuals are worked out again from them."""
        frozen = self.layers[0].freeze_codebook if options["freeze_codebook"] is None else True
        if frozen:
            return
        parts = [
            lookup(code, layer._codebook.bank(x.dtype).to(x.dtype))
            for layer, code in zip(self.layers, codes.unbind(-1), strict=False)
        ]
        residual, seen = x, []
        for layer, code, part in zip(self.layers, codes.unbind(-1), parts, strict=False):
            seen.append(residual)
            layer.update_indices(residual, code, mask=mask)
            residual = residual - part
        if self.shared_codebook:
            self._move_shared(seen, mask, options)


def _sizes(codebook_size: int | tuple[int, ...], num_quantizers: int | None) -> tuple[int, ...]:
    """Codes of every stage."""
    if isinstance(codebook_size, (tuple, list)):
        if num_quantizers is not None and num_quantizers != len(codebook_size):
            raise ValueError(f"codebook_size {codebook_size} and num_quantizers = {num_quantizers} do not agree")
        return tuple(wholes("codebook_size", codebook_size))
    if num_quantizers is None:
        raise ValueError("num_quantizers must be given where codebook_size is one number")
    return (whole("codebook_size", codebook_size),) * whole("num_quantizers", num_quantizers)


def _conditioned(mlp: CodeMLP, said: Tensor) -> Callable[[Tensor], Tensor]:
    """The map from a book to one book per position."""

    def transform(book: Tensor) -> Tensor:
        bent: Tensor = mlp(book, said)
        return bent

    return transform


def _take(beams: Tensor, pick: Tensor) -> Tensor:
    """beams (b, n, j, w) by number, pick (b, n, k), to (b, n, k, w)."""
    return beams.gather(2, pick.unsqueeze(-1).expand(*pick.shape, beams.shape[-1]))


def _directional(x: Tensor, target: Tensor, generator: Generator | None) -> Tensor:
    """x moved by as much as target is away, in that direction with noise; the gradient is that of the
    distance.
    """
    apart = target - x
    noisy = apart.detach() + _DIVEQ_VARIANCE**0.5 * normal(x, generator)
    direction = torch.nn.functional.normalize(noisy, dim=-1, eps=1e-6)
    return x + direction * torch.linalg.vector_norm(apart, dim=-1, keepdim=True)
