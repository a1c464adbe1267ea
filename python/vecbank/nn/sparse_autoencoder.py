"""Sparse autoencoders on `vecbank.sparse`: an overcomplete dictionary of which each input uses a few rows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from .. import sparse
from .._finite import at_least_one, finite_rows, kept, voided, zeroed
from ..functional import lookup
from ._arguments import drawn_by, features, maybe_whole, memory_for, numbers, whole
from ._checkpointing import inside_backward
from ._distributed import Ranks
from ._layout import working

ACTIVATIONS = ("topk", "batch_topk", "jumprelu")
_PACE = 0.01  # of running means
_LEAST = 0.25  # of the running variance, that a batch's own counts as at least
_NEAR = 0.01  # of the variance, that the residual counts as at least when the dead latents are trained on it
_SAME = 1e-13  # of the mean square, up to which a variance is rounding


class SparseCode(NamedTuple):
    """What a `SparseAutoencoder` returns."""

    reconstruction: Tensor  # (..., dim)
    values: Tensor  # (..., c), 0 where unused
    indices: Tensor  # (..., c) int64, -1 where unused
    loss: Tensor  # (): the sum of what follows, weighted
    error: Tensor  # (): mean squared error over the variance of the inputs: 0 is perfect, 1 the mean
    penalty: Tensor  # (): of the number of latents (jumprelu), else 0
    auxiliary: Tensor  # (): error of the dead latents at the residual of the others, else 0


torch.utils._pytree._register_namedtuple(SparseCode, serialized_type_name="vecbank.nn.SparseCode")


class SparseAutoencoder(nn.Module):
    """A dictionary of `latents` rows, about `k` of which encode an input.

    Formula: `x ~ bias + sum_t values_t * decoder[indices_t]`, with `values, indices` the code of
    `(x - bias) @ W.T + b`. The activations differ in which latents that code has:

    * "topk": the k largest of `relu((x - bias) @ W.T + b)` per input.
    * "batch_topk": the n * k largest over the n inputs of a batch. In eval mode, every latent over the
      running mean of the smallest value kept in training, so that an input's code does not depend on its
      batch.
    * "jumprelu": every latent over its own learned threshold, with
      `penalty = (mean number of latents / k - 1)^2`.

    A latent that has not fired for `dead_after` inputs is dead. The `aux_k` best of the dead latents
    reconstruct the residual of the others, so that they fire again.
    `loss = error + penalty_weight * penalty + aux_weight * auxiliary`.

    `error` is relative to the variance of the batch (its biased form, the mean over dim), but to no less than
    a quarter of the running variance of training, so that a last batch of one row, or of rows that are much the same,
    has an error in scale. Rows that are all the same before any variance has been seen have an error of 1. A row
    with NaN or inf comes out as NaN without a latent, and counts in nothing.

    Decoder rows have norm 1 at the start. Call `project_decoder_gradient_` before each step of the optimiser and
    `normalize_decoder_` after it, so that they keep it.

    The buffers `silent` (inputs since each latent last fired), `counts` and `inputs` (how often each
    fired, of how many) and `variance` (running, over all ranks with sync; negative before the first batch that has
    one) are kept without waiting for the device.

    Args:
        dim, latents: widths of input and code.
        k: latents per input (on average).
        activation: "topk", "batch_topk" or "jumprelu".
        aux_k: 0 for no auxiliary loss; dim / 2 by default.
        aux_weight: weight of `auxiliary` in `loss`.
        dead_after: number of inputs without firing after which a latent is dead.
        penalty_weight: weight of `penalty` in `loss`; "jumprelu" alone has a penalty.
        threshold: what the thresholds of "jumprelu" start from.
        bandwidth: width of the window in which these thresholds have a gradient. The defaults suit inputs of norm
            about 1.
        max_k: list at most this many latents per input: fixed shapes for "batch_topk" and "jumprelu", as
            `torch.compile` wants them.
        sync: count firing over all ranks of torch.distributed, where there are several.
        generator: draws the dictionary.

    Shapes:
        x (..., dim) float32, float64, or 16-bit (then computed in the parameters' dtype).

    Returns:
        SparseCode(reconstruction, values, indices, loss, error, penalty, auxiliary): reconstruction (..., dim), values
        and int64 indices (..., c), the others ().

    Raises:
        TypeError, ValueError: an argument of another kind, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> sae = vecbank.nn.SparseAutoencoder(dim=16, latents=64, k=4)
        >>> out = sae(torch.randn(8, 16))
        >>> out.reconstruction.shape, out.indices.shape, out.loss.shape
        (torch.Size([8, 16]), torch.Size([8, 4]), torch.Size([]))

    Sources: Gao et al., "Scaling and evaluating sparse autoencoders", 2024 (top-k, auxiliary loss on dead latents,
    tied start); Bussmann et al., "BatchTopK sparse autoencoders", 2024; Rajamanoharan et al., "Jumping ahead: improving
    reconstruction fidelity with JumpReLU sparse autoencoders", 2024 (and its target for the number of latents,
    appendix); Bricken et al., "Towards monosemanticity", 2023 (decoder rows of norm 1, gradients projected).
    """

    silent: Tensor
    counts: Tensor
    inputs: Tensor
    level: Tensor
    variance: Tensor

    def __init__(
        self,
        dim: int,
        latents: int,
        k: int = 32,
        *,
        activation: str = "topk",
        aux_k: int | None = None,
        aux_weight: float = 1 / 32,
        dead_after: int = 1_000_000,
        penalty_weight: float = 1.0,
        threshold: float = 1e-3,
        bandwidth: float = 1e-3,
        max_k: int | None = None,
        sync: bool = True,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        dim, latents = whole("dim", dim), whole("latents", latents)
        k, max_k = whole("k", k, 1, latents, "latents"), maybe_whole("max_k", max_k)
        aux_k, dead_after = maybe_whole("aux_k", aux_k, 0, latents, "latents"), whole("dead_after", dead_after)
        numbers(0, math.inf, True, threshold=threshold, bandwidth=bandwidth)
        numbers(aux_weight=aux_weight, penalty_weight=penalty_weight)
        generator = drawn_by(generator)
        self.dim, self.latents, self.k, self.activation = dim, latents, k, activation
        self.aux_k = min(latents, max(1, dim // 2)) if aux_k is None else aux_k
        self.aux_weight, self.dead_after, self.penalty_weight = aux_weight, dead_after, penalty_weight
        self.bandwidth, self.max_k, self.sync = bandwidth, max_k, sync
        with memory_for(f"a dictionary of {latents} x {dim} numbers, twice"):
            decoder, encoder = torch.randn(latents, dim, generator=generator), torch.empty(latents, dim)
        decoder /= torch.linalg.vector_norm(decoder, dim=1, keepdim=True)
        self.decoder = nn.Parameter(decoder)
        self.encoder = nn.Parameter(encoder.copy_(decoder))  # a latent starts by detecting what it adds
        self.encoder_bias = nn.Parameter(torch.zeros(latents))
        self.bias = nn.Parameter(torch.zeros(dim))
        if activation == "jumprelu":
            self.log_threshold = nn.Parameter(torch.full((latents,), math.log(threshold)))
        self.register_buffer("silent", torch.zeros(latents, dtype=torch.int64))
        self.register_buffer("counts", torch.zeros(latents, dtype=torch.int64))
        self.register_buffer("inputs", torch.zeros((), dtype=torch.int64))
        # of batch_topk in eval mode; negative: never trained
        self.register_buffer("level", torch.tensor(-1.0))
        self.register_buffer("variance", torch.tensor(-1.0))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(f"{prefix}variance", torch.tensor(-1.0))  # states from before there was one
        super()._load_from_state_dict(state_dict, prefix, *args)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values and indices (..., c) of the code of x (..., dim)."""
        features("x", x, self.dim)
        return self._encode(x)[:2]

    def decode(self, values: Tensor, indices: Tensor) -> Tensor:
        """The inputs (..., dim) that codes stand for. To edit a code, change its lists."""
        return sparse.decode(values, indices, self.decoder, self.bias)

    def _encode(self, x: Tensor, rows: int | Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Values, indices, and the penalty, a mean over `rows` inputs (all by default)."""
        centred, none = x - self.bias, self.bias.new_zeros(())
        if self.activation == "topk":
            return *sparse.encode(centred, self.encoder, self.encoder_bias, self.k), none
        if self.activation == "jumprelu":
            fired = sparse.encode_threshold(
                centred,
                self.encoder,
                self.encoder_bias,
                self.log_threshold.exp(),
                bandwidth=self.bandwidth if self.training else 0.0,
                max_k=self.max_k,
            )
            if not fired.active.numel():
                return fired.values, fired.indices, fired.active.sum()
            average = fired.active.mean() if rows is None else fired.active.sum() / at_least_one(rows)
            return fired.values, fired.indices, (average / self.k - 1).square()
        if self.training:
            code = sparse.encode_batch(centred, self.encoder, self.encoder_bias, self.k, max_k=self.max_k)
            return *code, none
        level = self.level.clamp_min(0).expand(self.latents)
        fired = sparse.encode_threshold(centred, self.encoder, self.encoder_bias, level, max_k=self.max_k)
        return fired.values, fired.indices, none

    def forward(self, x: Tensor) -> SparseCode:
        features("x", x, self.dim)
        finite = finite_rows(x)
        x = voided(x, finite)  # no latent is chosen for it, whatever its other numbers are
        count = kept(finite, x.shape[:-1])
        elements = at_least_one(count * self.dim)
        values, indices, penalty = self._encode(x, count)
        reconstruction = self.decode(values, indices)
        residual = zeroed(working(x - reconstruction), finite)
        reconstruction = voided(reconstruction, finite)
        missed = residual.square().sum() / elements
        with torch.no_grad():
            rows = zeroed(x, finite).to(residual.dtype).reshape(-1, self.dim)
            apart = rows - rows.sum(0) / at_least_one(count)
            apart = zeroed(apart, None if finite is None else finite.flatten())
            squares = apart.square().sum()
            noise = _SAME * rows.square().sum()
            if self.training and not inside_backward():  # a checkpoint's repeated forward has been counted
                self._count(values, indices, count, torch.where(squares > noise, squares, 0.0))
            least = self.variance.to(residual.dtype).clamp_min(0) * _LEAST
            variance = (squares / elements).maximum(least)
            variance = torch.where(variance > noise / elements, variance, missed.detach()).clamp_min(1e-12)
        error = missed / variance
        auxiliary = torch.zeros_like(error)
        if self.training and self.aux_k:
            auxiliary = self._auxiliary(x, residual.detach(), _NEAR * variance * (count * self.dim))
        loss = error + self.penalty_weight * penalty + self.aux_weight * auxiliary
        return SparseCode(reconstruction, values, indices, loss, error, penalty, auxiliary)

    @torch.no_grad()
    def _count(self, values: Tensor, indices: Tensor, count: int | Tensor, squares: Tensor) -> None:
        """What `count` inputs, with `squares` about their mean over all of dim, have fired."""
        ranks = Ranks(self.sync)
        fired = ranks.total(sparse.firing_counts(indices, self.latents, values))
        own = torch.zeros_like(self.inputs) + count
        inputs = ranks.total(own.clone())
        self.counts += fired
        self.inputs += inputs
        self.silent.copy_(torch.where(fired > 0, 0, self.silent + inputs))
        spread = ranks.total(torch.stack((squares.double(), (own - 1).clamp_min(0).double() * self.dim)))
        now = spread[0] / spread[1].clamp_min(1)
        self._follow(self.variance, torch.where(now > 0, now, self.variance.double()))
        if self.activation == "batch_topk":
            smallest = self.level.clamp_min(0)  # of a batch in which nothing fired
            if values.numel():
                found = values.masked_fill(values <= 0, torch.inf).min().to(smallest.dtype)
                smallest = torch.where(torch.isfinite(found), found, smallest)
            self._follow(self.level, ranks.mean(smallest))

    @staticmethod
    def _follow(running: Tensor, now: Tensor) -> None:
        """Moves a running mean, which is negative before it has started."""
        now = now.to(running.dtype)
        running.copy_(torch.where(running < 0, now, running.lerp(now, _PACE)))

    def _auxiliary(self, x: Tensor, residual: Tensor, least: Tensor | float = 0.0) -> Tensor:
        """Squares of what the dead latents leave of the residual, over its own (or over `least`, if that is more)."""
        dead = self.silent >= self.dead_after
        encoder: Tensor = self.encoder
        bias: Tensor = self.encoder_bias
        decoder: Tensor = self.decoder
        mask, k = dead, self.aux_k
        # their number can be read here without waiting: only their rows are searched
        if not torch.compiler.is_compiling() and x.device.type == "cpu":
            rows = dead.nonzero().squeeze(1)
            if not rows.numel():
                return residual.new_zeros(())
            encoder, decoder = lookup(rows, encoder), lookup(rows, decoder)
            bias = lookup(rows, bias.unsqueeze(1)).squeeze(1)
            mask, k = torch.ones_like(rows, dtype=torch.bool), min(k, rows.numel())
        values, indices = sparse.encode(x - self.bias, encoder, bias, k, allowed=mask)
        wrong = (working(sparse.decode(values, indices, decoder)) - residual).square().sum()
        return torch.where(dead.any(), wrong / residual.square().sum().clamp_min(least).clamp_min(1e-12), 0.0)

    @torch.no_grad()
    def project_decoder_gradient_(self) -> None:
        """Removes the part of the decoder's gradient along its rows, which would only change their norms. Call before
        the optimiser's step.
        """
        grad = self.decoder.grad
        if grad is not None:
            unit = self.decoder / torch.linalg.vector_norm(self.decoder, dim=1, keepdim=True).clamp_min(1e-8)
            grad -= unit * (grad * unit).sum(1, keepdim=True)

    @torch.no_grad()
    def normalize_decoder_(self) -> None:
        """Makes the decoder's rows unit vectors again. Call after the optimiser's step."""
        self.decoder.div_(torch.linalg.vector_norm(self.decoder, dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def start_(self, samples: Tensor) -> SparseAutoencoder:
        """Sets the bias to the mean of samples (N, dim): a better start than 0 where the mean is far off."""
        features("samples", samples, self.dim)
        self.bias.copy_(samples.reshape(-1, self.dim).to(self.bias.dtype).mean(0))
        return self

    @property
    def dead(self) -> Tensor:
        """(latents,) bool: has not fired for `dead_after` inputs of training."""
        return self.silent >= self.dead_after

    @property
    def frequency(self) -> Tensor:
        """(latents,) float: share of training inputs each latent fired for, since `reset_counts_`."""
        return self.counts / self.inputs.clamp_min(1)

    def reset_counts_(self) -> None:
        """Starts counting frequencies anew."""
        self.counts.zero_()
        self.inputs.zero_()

    def extra_repr(self) -> str:
        return f"dim={self.dim}, latents={self.latents}, k={self.k}, activation={self.activation!r}"
