"""What all residual quantisers share: the cascade of stages, quantise dropout, and groups of cascades.

Stage s quantises what stages 0 .. s-1 left over: r_0 = x, r_{s+1} = r_s - q_s(r_s), and the result is sum
q_s. Sources: Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec", 2021 (cascade and quantise
dropout); Defossez et al., "High Fidelity Neural Audio Compression", 2022 (dropout to a multiple of stages).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from .._finite import finite_rows
from ._arguments import whole
from ._distributed import Ranks, several_ranks
from ._estimators import scale_gradient
from ._layout import check_width

Stage = Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]


class Cascade(NamedTuple):
    quantized: Tensor  # (..., d)
    codes: Tensor  # (..., S), -1 where a stage was left out
    losses: Tensor  # (S,), 0 where a stage was left out
    active: int  # stages that ran


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
        """Stages to run: `num_stages` if given; else drawn from `seed` (or a fresh one) when `dropping`; else
        all.
        """
        if num_stages is not None:
            return whole("num_stages", num_stages, 1, self.total, "num_quantizers")
        if not (dropping and self.enabled):
            return self.total
        if seed is None:
            seed = shared_seed(device, generator)
        last = random.Random(seed).randrange(self.cutoff, self.total)
        return min(-(-(last + 1) // self.multiple) * self.multiple, self.total)


def run_cascade(x: Tensor, stages: Sequence[Stage], active: int, share: float = 0.0) -> Cascade:
    """Runs the first `active` stages on x (..., d) and pads codes and losses to all of them.

    A stage maps a residual to (quantised, codes (...), loss or None). The residual is cut from the graph
    between stages except through x, so that each stage's straight-through gradient is the identity to x.
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
    return Cascade(quantized, torch.stack(codes, -1), torch.stack(losses, -1), active)


def pad_stages(codes: Tensor, total: int, may_be_coarse: bool) -> Tensor:
    """Codes (..., q) of the first q stages, padded with -1 to all of them."""
    if codes.dim() == 0:
        raise ValueError(f"indices must be (..., q) with q <= num_quantizers = {total}, got a scalar")
    given = codes.shape[-1]
    if given > total:
        raise ValueError(f"indices must be (..., q) with q <= num_quantizers = {total}, got {tuple(codes.shape)}")
    if given < total:
        if not may_be_coarse:
            raise ValueError(
                f"indices hold {given} of {total} stages: only quantize_dropout=True allows fewer; "
                f"got shape {tuple(codes.shape)}"
            )
        codes = torch.nn.functional.pad(codes, (0, total - given), value=-1)
    return codes


class GroupedResidual(nn.Module):
    """G cascades side by side, each on its own slice of the features. Subclasses say what a cascade is.

    Args:
        dim: features, a multiple of groups.
        groups: G.
        accept_image_fmap: the features are on axis 1 (b, d, h, w) instead of the last.
        make: builds one cascade for dim / groups features.
    """

    def __init__(self, dim: int, groups: int, accept_image_fmap: bool, make: Callable[[int], nn.Module]) -> None:
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
        """(G, S, M, d / G)."""
        return torch.stack([rvq.codebooks for rvq in self.rvqs])

    def get_codes_from_indices(self, indices: Tensor | Sequence[Tensor]) -> Tensor:
        """Vectors of every stage, (G, S, ..., d / G), for indices (G, ..., S)."""
        parts = zip(self.rvqs, self._groups_of(indices), strict=True)
        return torch.stack([rvq.get_codes_from_indices(part) for rvq, part in parts])

    def get_output_from_indices(self, indices: Tensor | Sequence[Tensor]) -> Tensor:
        """The quantised vectors, features on the last axis, for indices (G, ..., S)."""
        parts = zip(self.rvqs, self._groups_of(indices), strict=True)
        return torch.cat([rvq.get_output_from_indices(part) for rvq, part in parts], -1)

    def _groups_of(self, indices: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
        """Each group's codes."""
        got = "a scalar" if isinstance(indices, Tensor) and indices.dim() == 0 else len(indices)
        if got != self.groups:
            raise ValueError(f"indices must hold one tensor for each of {self.groups} groups, got {got}")
        return list(indices)

    def _chunks(self, x: Tensor) -> tuple[Tensor, ...]:
        """Each group's slice, void where the row is: what makes a row void may lie in one group alone."""
        check_width(x, self.dim, self.split_dim)
        finite = finite_rows(x.movedim(self.split_dim, -1))
        x = x if finite is None else torch.where(finite.unsqueeze(self.split_dim), x, torch.nan)
        return x.chunk(self.groups, self.split_dim)

    def _seed(self, x: Tensor, generator: Generator | None) -> int | None:
        """One seed for all groups, so that they drop the same stages."""
        drops = self.training and self.rvqs[0].quantize_dropout
        return shared_seed(x.device, generator) if drops else None

    def _join(self, parts: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Quantised features side by side; codes (G, ...) and losses (G, S) stacked; lists of all codes as
        they are.
        """
        quantized, *rest = zip(*parts, strict=True)
        joined = [torch.stack(column) for column in rest[: self._stacked]]
        return (torch.cat(quantized, self.split_dim), *joined, *rest[self._stacked :])

    _stacked = 2  # outputs after the first that are stacked over groups: codes, losses
