"""What all residual quantisers share: the cascade of stages, quantise dropout, decoding, and groups of cascades.

Formula: r_0 = x; stage s quantises r_s to q_s; r_{s+1} = r_s - q_s; the result is sum_s q_s.

Sources: Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec", 2021 (cascade and quantise dropout);
Defossez et al., "High Fidelity Neural Audio Compression", 2022 (dropout to a multiple of stages).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .. import _checks
from .._finite import finite_rows
from .._ops import METRICS, ops
from ._arguments import integers, whole
from ._distributed import Ranks, several_ranks
from ._estimators import scale_gradient
from ._layout import Projected, check_width, no_autocast, working

Stage = Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]


class Cascade(NamedTuple):
    """What the stages of a cascade return together."""

    quantized: Tensor  # (..., d)
    codes: Tensor  # (..., S), -1 for a stage that did not run
    losses: Tensor  # (S,), 0 for a stage that did not run


# ---- Quantise dropout ------------------------------------------------------------------------------------------------


def shared_seed(device: torch.device, generator: Generator | None = None) -> int:
    """A small random number that is the same on every rank."""
    source = generator.device if generator is not None else torch.device("cpu")
    seed = torch.randint(0, 10_000, (), generator=generator, device=source)
    return int(Ranks(True).first(seed.to(device)) if several_ranks() else seed)


class StageDropout:
    """How many stages of a cascade run in a training step: all, or a random number of them.

    One of the last `total - cutoff` stages is drawn as the last to run; `multiple` rounds their number up.
    """

    def __init__(self, total: int, enabled: bool, cutoff: int, multiple: int) -> None:
        total = whole("num_quantizers", total)
        cutoff = whole("quantize_dropout_cutoff_index", cutoff, 0)
        multiple = whole("quantize_dropout_multiple_of", multiple)
        self.enabled = enabled and total > 1
        if self.enabled and cutoff >= total:
            raise ValueError(
                f"quantize_dropout_cutoff_index must lie between 0 and num_quantizers - 1 = {total - 1}, got {cutoff}"
            )
        self.total, self.cutoff, self.multiple = total, cutoff, multiple

    def active(
        self,
        dropping: bool,
        num_stages: int | None,
        seed: int | None,
        device: torch.device,
        generator: Generator | None,
    ) -> int:
        """How many stages run: `num_stages`, or a number drawn from `seed` (or a new one) if `dropping`, or all."""
        if num_stages is not None:
            return whole("num_stages", num_stages, 1, self.total, "num_quantizers")
        if not (dropping and self.enabled):
            return self.total
        if seed is None:
            seed = shared_seed(device, generator)
        last = random.Random(seed).randrange(self.cutoff, self.total)
        return min(-(-(last + 1) // self.multiple) * self.multiple, self.total)


# ---- Cascade ---------------------------------------------------------------------------------------------------------


def run_cascade(x: Tensor, stages: Sequence[Stage], active: int, share: float = 0.0) -> Cascade:
    """Runs the first `active` stages on x (..., d), and pads codes and losses to all of them.

    A stage maps a residual to (quantised, codes (...), loss or None). `share` of the gradient of a residual passes to
    the vectors of the stages before it; with 0 each stage's straight-through gradient is the identity to x.
    """
    total, residual = len(stages), x
    quantized: Tensor | None = None
    codes, losses = [], []
    for stage in stages[:active]:
        part, code, loss = stage(residual)
        residual = residual - scale_gradient(part, share)
        quantized = part if quantized is None else quantized + part
        codes.append(code)
        losses.append(x.new_zeros((), dtype=torch.float32) if loss is None else loss)
    assert quantized is not None
    if active < total:
        codes += [torch.full_like(codes[0], -1)] * (total - active)
        losses += [torch.zeros_like(losses[0])] * (total - active)
    return Cascade(quantized, torch.stack(codes, -1), torch.stack(losses, -1))


@torch.no_grad()
def encode_stages(x: Tensor, codebooks: Sequence[Tensor], total: int, metric: str = "l2") -> Cascade:
    """The cascade in one call, for stages that only look codes up: x (..., d) by codebooks (M_s, d) of the stages that
    run, of `total`.

    16-bit numbers are read as float32.
    """
    codebooks = [working(codebook.detach()) for codebook in codebooks]
    found = Cascade(*ops.residual_quantize(working(x), codebooks, [], METRICS[metric]))
    return pad_cascade(found, total - len(codebooks))


def pad_cascade(done: Cascade, missing: int) -> Cascade:
    """`done` with codes -1 and losses 0 for the `missing` stages that did not run."""
    if missing == 0:
        return done
    return Cascade(done.quantized, F.pad(done.codes, (0, missing), value=-1), F.pad(done.losses, (0, missing)))


class ResidualQuantizer(Projected):
    """S stages in a row: each quantises the residual of the stages before it.

    A subclass makes the stages, `layers`; its `forward` gives `_on_rows` a function that runs them; `_stage_vectors`
    decodes their codes.

    Args:
        dim: features of the input.
        width: features of the codes; a linear map goes in front and behind where it differs from dim.
        num_quantizers: stages S.
        dropout: quantize_dropout, quantize_dropout_cutoff_index and quantize_dropout_multiple_of.
    """

    layers: Any  # nn.ModuleList
    _decodes_last = False  # whether decoded features are on the last axis in every layout, and not as in forward

    def __init__(self, dim: int, width: int, num_quantizers: int, dropout: tuple[bool, int, int]) -> None:
        super().__init__()
        self._dropout = StageDropout(num_quantizers, *dropout)
        self.num_quantizers = self._dropout.total
        self.quantize_dropout = self._dropout.enabled
        self._project(dim, width)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "has_projections" not in state:  # pickled by an earlier release, in which not all had them
            self.has_projections, self.project_in, self.project_out = False, nn.Identity(), nn.Identity()

    @property
    def codebook_size(self) -> int:
        """Codes of the first stage."""
        size: int = self.layers[0].codebook_size
        return size

    @property
    def codebooks(self) -> Any:
        """The codes of every stage as vectors, (S, codebook_size, d)."""
        return torch.stack([layer.codebook for layer in self.layers])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The vectors of every stage.

        Args:
            indices: codes (b, ..., q) as `forward` returns them, of any integer dtype. q < S only with
                quantize_dropout. The vector of -1 is zero.

        Returns:
            (S, b, ..., d), features on the last axis.
        """
        return self._vectors(self._all_stages(indices))

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """The quantised features of codes as `forward` returns them, in the layout of `forward`."""
        total = self._vectors(self._all_stages(indices)).sum(0)
        return self._decoded(total, not self._decodes_last and self._features_first(indices))

    def _features_first(self, like: Tensor) -> bool:
        """Whether the features are on axis 1, for an input, or the codes of one, of as many axes as `like`."""
        raise NotImplementedError

    def _all_stages(self, indices: Tensor) -> Tensor:
        """Codes (..., q) of the first q stages as int64 codes (..., S), -1 for the others."""
        codes, total = integers(indices, "indices"), self.num_quantizers
        given = codes.shape[-1] if codes.dim() else None
        if given is None or given > total:
            got = "a scalar" if given is None else tuple(codes.shape)
            raise ValueError(f"indices must be (..., q) with q <= num_quantizers = {total}, got {got}")
        if given == total:
            return codes
        if not self.quantize_dropout:
            raise ValueError(
                f"indices hold {given} of {total} stages: only quantize_dropout=True allows fewer; "
                f"got shape {tuple(codes.shape)}"
            )
        return F.pad(codes, (0, total - given), value=-1)

    def _vectors(self, codes: Tensor) -> Tensor:
        """The vectors (S, ..., d) of codes (..., S)."""
        size = self.codebook_size
        checked = _checks.in_range(codes, size, "indices")
        vectors = torch.stack(self._stage_vectors(codes.unbind(-1)))
        return vectors if checked else _checks.only_rows(vectors, codes.movedim(-1, 0), size)

    def _stage_vectors(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """The vectors (..., d) of every stage for its codes (...), which are row numbers."""
        raise NotImplementedError

    def _on_rows(self, x: Tensor, run: Callable[[Tensor], Cascade]) -> Cascade:
        """`run` on the rows of x, (b, n, width): projected, and in float32 or wider, as a residual needs more digits
        than a 16-bit input has. The vectors come back in x's layout and dtype, with codes (b, ..., S).
        """
        first = self._features_first(x)
        inputs = self._enter(x, first)
        with no_autocast(inputs):
            shape = inputs.shape
            rows = inputs if len(shape) == 3 else inputs.reshape(shape[0], math.prod(shape[1:-1]), shape[-1])
            quantized, codes, losses = run(working(rows))
            quantized = quantized.to(inputs.dtype).reshape(shape)
            codes = codes.reshape(*shape[:-1], codes.shape[-1])  # a stage may keep an axis of one codebook
        return Cascade(self._leave(quantized, first), codes, losses)


# ---- Groups ----------------------------------------------------------------------------------------------------------


def on_axis(option: str, first: bool, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a group's cascade, with `option`: whether the features, which groups cut, are on axis 1."""
    if arguments.get(option) not in (None, first):
        raise ValueError(f"{option} must be accept_image_fmap = {first}: groups are cut along one axis")
    return {**arguments, option: first}


class GroupedResidual(nn.Module):
    """G cascades side by side, each on its own slice of the features. Subclasses say what a cascade is.

    Args:
        dim: features, a multiple of groups.
        groups: G.
        accept_image_fmap: the features are on axis 1, (b, d, h, w), instead of the last.
        make: builds one cascade for dim / groups features.
    """

    _stacked = 2  # outputs after the first that are stacked over groups: codes, losses

    def __init__(
        self, dim: int, groups: int, accept_image_fmap: bool, make: Callable[[int], ResidualQuantizer]
    ) -> None:
        super().__init__()
        dim, groups = whole("dim", dim), whole("groups", groups)
        if dim % groups:
            raise ValueError(f"dim must be a multiple of groups, got dim={dim} and groups={groups}")
        self.dim, self.groups, self.accept_image_fmap = dim, groups, accept_image_fmap
        self.rvqs: Any = nn.ModuleList(make(dim // groups) for _ in range(groups))

    @property
    def split_dim(self) -> int:
        """The axis that is cut into groups."""
        return 1 if self.accept_image_fmap else -1

    @property
    def codebooks(self) -> Tensor:
        """The codes of every group's stages as vectors, (G, S, M, d / G)."""
        return torch.stack([rvq.codebooks for rvq in self.rvqs])

    def get_codes_from_indices(self, indices: Tensor | Sequence[Tensor]) -> Tensor:
        """The vectors of every stage, (G, S, ..., d / G), for codes (G, ..., S)."""
        parts = zip(self.rvqs, self._groups_of(indices), strict=True)
        return torch.stack([rvq.get_codes_from_indices(part) for rvq, part in parts])

    def get_output_from_indices(self, indices: Tensor | Sequence[Tensor]) -> Tensor:
        """The quantised features of codes (G, ...) as `forward` returns them, laid out as one cascade decodes them."""
        parts = zip(self.rvqs, self._groups_of(indices), strict=True)
        axis = -1 if self.rvqs[0]._decodes_last else self.split_dim
        return torch.cat([rvq.get_output_from_indices(part) for rvq, part in parts], axis)

    def _groups_of(self, indices: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
        """Each group's codes."""
        got = "a scalar" if isinstance(indices, Tensor) and indices.dim() == 0 else len(indices)
        if got != self.groups:
            raise ValueError(f"indices must hold one tensor for each of {self.groups} groups, got {got}")
        return list(indices)

    def _chunks(self, x: Tensor) -> tuple[Tensor, ...]:
        """Each group's slice; a row with NaN or inf in one group is NaN in all of them."""
        check_width(x, self.dim, self.split_dim)
        finite = finite_rows(x.movedim(self.split_dim, -1))
        x = x if finite is None else torch.where(finite.unsqueeze(self.split_dim), x, torch.nan)
        return x.chunk(self.groups, self.split_dim)

    def _run_groups(
        self, x: Tensor, generator: Generator | None, indices: Sequence[Tensor] | None = None, /, **options: Any
    ) -> list[tuple[Any, ...]]:
        """What each cascade returns for its slice; the groups share a seed, so that they drop the same stages."""
        chunks = self._chunks(x)
        drops = self.training and self.rvqs[0].quantize_dropout
        options["rand_quantize_dropout_fixed_seed"] = shared_seed(x.device, generator) if drops else None
        if indices is None:
            return [rvq(part, **options) for rvq, part in zip(self.rvqs, chunks, strict=True)]
        parts = zip(self.rvqs, chunks, indices, strict=True)
        return [rvq(part, indices=codes, **options) for rvq, part, codes in parts]

    def _join(self, parts: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Quantised features side by side; codes (G, ...) and losses (G, S) stacked; and, on request, a tuple of each
        group's vectors.
        """
        quantized, *others = zip(*parts, strict=True)
        joined = [torch.stack(column) for column in others[: self._stacked]]
        return (torch.cat(quantized, self.split_dim), *joined, *others[self._stacked :])
