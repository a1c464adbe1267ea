"""Grouped residual vector quantisation: the features are cut into slices, each with a cascade of its own.

Source: Yang et al., "HiFi-Codec: Group-residual Vector quantization for High Fidelity Audio Codec", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._layout import check_width
from ._residual import GroupedResidual
from .residual_vq import ResidualVQ


class GroupedResidualVQ(GroupedResidual):
    """Residual VQ on each of G slices. Same arguments and state_dict as
    `vector_quantize_pytorch.GroupedResidualVQ`.

    Args:
        dim: features, a multiple of groups. groups: G. accept_image_fmap: x (b, dim, h, w).
        **kwargs: of ResidualVQ.

    `forward(x, indices=None, return_all_codes=False, sample_codebook_temp=None, freeze_codebook=False,
    mask=None, *, num_stages=None)` to (quantised like x, codes (G, b, ..., S), losses (G, S)), and a tuple
    with each group's vectors on request. With `indices`, one (b, n, S) for each group, to (quantised, sum of
    the cross-entropies).
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
        """Quantises x; see the class."""
        given: Sequence[Tensor | None] = [None] * self.groups
        scored = indices is not None and len(indices) > 0
        if indices is not None and scored:
            given = self._groups_of(indices)
        check_width(x, self.dim, self.split_dim)
        seed = self._seed(x, self.rvqs[0].generator)
        parts = [
            rvq(
                part,
                mask=mask,
                indices=codes,
                return_all_codes=return_all_codes,
                sample_codebook_temp=sample_codebook_temp,
                freeze_codebook=freeze_codebook,
                rand_quantize_dropout_fixed_seed=seed,
                num_stages=num_stages,
            )
            for rvq, part, codes in zip(self.rvqs, self._chunks(x), given, strict=True)
        ]
        if scored:
            quantized, losses = zip(*parts, strict=True)
            return torch.cat(quantized, self.split_dim), torch.stack(losses).sum()
        return self._join(parts)
