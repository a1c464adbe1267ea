"""Random-projection quantiser: frozen targets for self-supervised training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._arguments import memory_for, whole
from ._layout import check_width, no_autocast
from .vector_quantize import VectorQuantize


class RandomProjectionQuantizer(nn.Module):
    """Codes of random projections; replaces `vector_quantize_pytorch.RandomProjectionQuantizer`.

    Arguments and state_dict are those of that class. The same input always gets the same codes: nothing here learns.

    Formula: code_h = argmax_k cos(norm(x) @ P_h, C_hk), with a frozen random projection P_h and a frozen codebook C_h
    for each head h.

    Args:
        dim: features of the input.
        codebook_size: number of codes of each codebook.
        codebook_dim: width of a projection.
        num_codebooks: heads H, each with a projection and a codebook of its own.
        norm: take each vector to mean 0 and variance 1 first.
        **kwargs: further arguments for the VectorQuantize inside, which is always in evaluation mode.

    Shapes:
        x (b, n, dim) floating-point. `forward(x)` returns codes (b, n) int64, or (b, n, H) for several codebooks;
        `forward(x, indices)` returns the cross-entropy () of these codes under the scores.

    Raises:
        TypeError, ValueError: an argument of another kind or out of range, an x that does not fit; by name.

    Example:
        >>> import torch, vecbank
        >>> options = {"codebook_size": 256, "codebook_dim": 16, "num_codebooks": 4}
        >>> quantizer = vecbank.nn.RandomProjectionQuantizer(dim=80, **options)
        >>> targets = quantizer(torch.randn(2, 100, 80))
        >>> tuple(targets.shape), targets.dtype
        ((2, 100, 4), torch.int64)

    Source: Chiu et al., "Self-supervised Learning with Random-projection Quantizer for Speech Recognition", ICML 2022.
    """

    rand_projs: Tensor

    def __init__(
        self,
        *,
        dim: int,
        codebook_size: int,
        codebook_dim: int,
        num_codebooks: int = 1,
        norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        dim, codebook_dim = whole("dim", dim), whole("codebook_dim", codebook_dim)
        num_codebooks = whole("num_codebooks", num_codebooks)
        self.dim = dim
        self.num_codebooks = num_codebooks
        with memory_for(f"{num_codebooks} linear maps from {dim} to {codebook_dim} features"):
            self.register_buffer("rand_projs", nn.init.xavier_normal_(torch.empty(num_codebooks, dim, codebook_dim)))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False) if norm else nn.Identity()
        self.vq = VectorQuantize(
            dim=codebook_dim * num_codebooks,
            heads=num_codebooks,
            codebook_size=codebook_size,
            use_cosine_sim=True,
            separate_codebook_per_head=True,
            **kwargs,
        )

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        """Codes of x, or the cross-entropy of `indices`; see the class."""
        check_width(x, self.dim)
        with no_autocast(x):
            projected = torch.einsum("bnd,hde->bnhe", self.norm(x).to(self.rand_projs.dtype), self.rand_projs)
        self.vq.eval()
        out = self.vq(projected.flatten(2), indices=indices)
        result: Tensor = out[1]
        return result
