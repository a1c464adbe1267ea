"""Grouped residual vector quantisation: the features are cut into slices, each with a cascade of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._residual import GroupedResidual
from .residual_vq import ResidualVQ


class GroupedResidualVQ(GroupedResidual):
    """`ResidualVQ` on each of G slices, with the arguments and state_dict of
    `vector_quantize_pytorch.GroupedResidualVQ`.

    Args:
        dim: features, a multiple of groups.
        groups: G.
        accept_image_fmap: x is (b, dim, h, w).
        **kwargs: further arguments of `ResidualVQ`, for every group.

    Shapes:
        x (b, ..., dim), or (b, dim, h, w); codes int64 (G, b, ..., S); losses float32 (G, S).

    Example:
        >>> import torch
        >>> from vecbank.nn import GroupedResidualVQ
        >>> module = GroupedResidualVQ(dim=8, groups=2, num_quantizers=3, codebook_size=16).eval()
        >>> quantized, codes, losses = module(torch.randn(2, 5, 8))
        >>> quantized.shape, codes.shape, losses.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 2, 5, 3]), torch.Size([2, 3]))

    Source: Yang et al., "HiFi-Codec: Group-residual Vector quantization for High Fidelity Audio Codec", 2023.
    """

    def __init__(self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs: Any) -> None:
        options = {"accept_image_fmap": accept_image_fmap, **kwargs}
        super().__init__(dim, groups, accept_image_fmap, lambda width: ResidualVQ(dim=width, **options))

    def forward(
        self,
        x: Tensor,
        indices: Tensor | Sequence[Tensor] | None = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool = False,
        mask: Tensor | None = None,
        *,
        num_stages: int | None = None,
    ) -> tuple[Any, ...]:
        """Quantises x.

        Args:
            x: (b, ..., dim), or (b, dim, h, w) with accept_image_fmap.
            indices: codes to be scored instead, one (b, n, S) for each group.
            return_all_codes, sample_codebook_temp, freeze_codebook, mask, num_stages: as in `ResidualVQ.forward`.

        Returns:
            (quantised like x, codes (G, b, ..., S), losses (G, S)), and on request a tuple with each group's vectors.
            With `indices`, (quantised, sum of the cross-entropies).
        """
        scored = indices is not None and len(indices) > 0
        parts = self._run_groups(
            x,
            self.rvqs[0].generator,
            self._groups_of(indices) if indices is not None and scored else None,
            return_all_codes=return_all_codes,
            sample_codebook_temp=sample_codebook_temp,
            freeze_codebook=freeze_codebook,
            mask=mask,
            num_stages=num_stages,
        )
        if scored:
            quantized, losses = zip(*parts, strict=True)
            return torch.cat(quantized, self.split_dim), torch.stack(losses).sum()
        return self._join(parts)
