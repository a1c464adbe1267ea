"""Relative representations: describe a vector by its similarities to a fixed list of anchors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._checks import pair
from ..bank import Bank
from ..functional import project
from ..metrics import Metric
from ._arguments import floats, tensor


def _check_anchors(anchors: object) -> Tensor:
    floats("anchors", anchors)
    assert isinstance(anchors, Tensor)
    if anchors.dim() < 2:
        raise ValueError(f"anchors must have shape (..., A, d), got {tuple(anchors.shape)}")
    return anchors


class RelativeProjection(nn.Module):
    """A module that maps x to its similarities to A anchors: `R[..., j] = sim(x, anchors[j])`.

    With `metric="cosine"` the result does not change when the latent space is rotated, reflected or scaled:
    `R(x; a) = R(c * x @ Q; c * a @ Q)` for orthogonal Q and c > 0. Two encoders that differ by about such a
    map therefore give about the same relative rows, provided that their anchors are the encodings of the
    same samples in the same order, and a head trained on one works on the other ("zero-shot stitching").

    Gradients flow to x, to learnable anchors, and to anchors given to `forward`: re-encode the
    anchor samples at every step and pass them there to train the encoder through them.

    The anchors are the entry `bank.vectors` of a state_dict, whether learnable or not.

    Args:
        anchors: (A, d), or (B, A, d) for one anchor list per batch entry; float32, float64, bfloat16
            or float16. A detached copy is kept. `vecbank.anchors` has functions that choose samples.
        metric: "cosine" (the published choice), or any other that `project` takes.
        learnable: keep the anchors as a `Parameter` instead of a buffer.

    Shapes:
        x (..., d), or x (B, N, d) for batched anchors.

    Returns:
        (..., A), or (B, N, A), in x's dtype.

    Raises:
        TypeError: `anchors` is not a floating point tensor.
        ValueError: `anchors` has fewer than two dimensions, or the metric is unknown.

    Example:
        >>> import torch, vecbank
        >>> x = torch.randn(100, 16)
        >>> relative = vecbank.nn.RelativeProjection(x[vecbank.anchors.random(x, 8, generator=0)])
        >>> turned = vecbank.nn.RelativeProjection(-2 * relative.anchors)
        >>> relative(x).shape, torch.allclose(relative(x), turned(-2 * x), atol=1e-6)
        (torch.Size([100, 8]), True)

    Source: Moschella et al., "Relative representations enable zero-shot latent space communication", ICLR 2023.
    """

    bank: Bank

    def __init__(self, anchors: Tensor, metric: str | Metric = "cosine", learnable: bool = False) -> None:
        super().__init__()
        # A copy: update_anchors_ writes in place, and the caller's tensor is not ours to write to.
        self.bank = Bank(_check_anchors(anchors).detach().clone(), metric=metric, learnable=learnable)

    @property
    def anchors(self) -> Tensor:
        """The anchors in use, (A, d) or (B, A, d). `update_anchors_` changes them."""
        return self.bank.vectors

    @property
    def metric(self) -> str | Metric:
        """Name of the similarity."""
        return self.bank.metric or "cosine"

    def forward(self, x: Tensor, anchors: Tensor | None = None) -> Tensor:
        """Relative rows (..., A) of x (..., d).

        Args:
            x: (..., d).
            anchors: take the place of the stored ones for this call only; gradient flows to them.
        """
        tensor("x", x)
        if anchors is None:
            if x.dim() == 0 or x.shape[-1] != self.anchors.shape[-1]:
                pair(x, self.anchors, "anchors")
            return self.bank.project(x)
        return project(x, _check_anchors(anchors), self.metric)

    @torch.no_grad()
    def update_anchors_(self, anchors: Tensor) -> RelativeProjection:
        """Stores re-encoded anchors in place (no gradient is recorded) and returns the module.

        Args:
            anchors: the same shape as the stored anchors; cast to their dtype and device.

        Raises:
            TypeError: not a floating point tensor.
            ValueError: another shape. The number of anchors is the width of whatever reads the output, so it
                cannot change in place.
        """
        stored = self.bank.vectors
        if _check_anchors(anchors).shape != stored.shape:
            raise ValueError(f"anchors must have shape {tuple(stored.shape)}, got {tuple(anchors.shape)}")
        stored.copy_(anchors)
        self.bank.repack()
        return self

    def extra_repr(self) -> str:
        *batch, count, width = self.anchors.shape
        lead = f"batch={tuple(batch)}, " if batch else ""
        learnable = isinstance(self.anchors, nn.Parameter)
        return f"{lead}anchors={count}, width={width}, metric={self.metric!r}, learnable={learnable}"
