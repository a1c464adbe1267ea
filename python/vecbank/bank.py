"""A bank prepared once: the vectors, and the packed copy that the kernels stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks
from ._ops import METRICS, Nearest, Quantized, TopK


class Bank(nn.Module):
    """M vectors of width d, prepared for one metric.

    Preparing makes one more copy of the vectors (packed panels, norms, error bounds; `repr` says how much) and saves
    doing so at every call. The packed copy is derived state: it is in no state_dict, pickle or broadcast, is never
    cast, and is rebuilt by `update_`, `load_state_dict`, `.to()` and unpickling. Only writing into `vectors` directly
    goes unseen: call `repack()` afterwards.

    Args:
        vectors: (M, d), or (B, M, d) for B banks of one shape; float32, float64, bfloat16 or float16. A contiguous
            tensor is shared, as buffers are (`update_` writes into it); a learnable bank makes its own.
        metric: "cosine" (default), "dot", "l2" or "sqeuclidean".
        learnable: hold the vectors as a Parameter (then packed at every call, because it changes) rather than a buffer.
        bias: (M,) in the vectors' dtype, added to dot products by `topk` and `project` (metric "dot" and (M, d) only):
            with it the Bank is an encoder, as of a sparse autoencoder (`sparse_encode` takes it). Held as the vectors
            are, and in the state_dict.

    Updating a Bank while another thread searches it is the caller's race, as with any torch module.
    """

    vectors: Tensor
    bias: Tensor | None
    _pack: Tensor | None

    def __init__(
        self, vectors: Tensor, metric: str = "cosine", learnable: bool = False, *, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        _checks.vectors("vectors", vectors)
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
        self.metric = metric
        self._metric_code = METRICS[metric]
        self.learnable = learnable
        self._biased = bias is not None
        if bias is not None:
            _checks.bias(bias, vectors, metric == "dot")
        if learnable:
            self.vectors = nn.Parameter(vectors.detach().clone())
            self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
        else:
            self.register_buffer("vectors", vectors.detach().contiguous())
            self.register_buffer("bias", None if bias is None else bias.detach().contiguous())
        self.repack()

    def project(self, x: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
        """`vecbank.project` against this bank: (..., d) -> (..., M)."""
        return functional.project(x, self, out_dtype=out_dtype)

    def topk(self, x: Tensor, k: int, mask: Tensor | None = None, *, exact: bool = True) -> TopK:
        """`vecbank.topk` in this bank: (..., d) -> values and indices (..., k)."""
        return functional.topk(x, self, k, mask=mask, exact=exact)

    def nearest(self, x: Tensor, *, exact: bool = True) -> Nearest:
        """`vecbank.nearest` in this bank: (..., d) -> values and indices (...)."""
        return functional.nearest(x, self, exact=exact)

    def quantize(self, x: Tensor) -> Quantized:
        """`vecbank.quantize` by this bank: (..., d) -> quantized (..., d) and codes (...)."""
        return functional.quantize(x, self)

    def lookup(self, codes: Tensor, weights: Tensor | None = None, *, reduce: str = "none") -> Tensor:
        """`vecbank.lookup` in this bank: codes -> rows."""
        return functional.lookup(codes, self, weights, reduce=reduce)

    def update_(self, rows: Tensor, vectors: Tensor) -> Bank:
        """Overwrite rows (int64, (R,)) with vectors (R, d) in place, and prepare them; returns self.

        Raises:
            RuntimeError: the bank is learnable (an optimiser owns it). TypeError, ValueError, IndexError: as named.
        """
        if self.vectors.requires_grad:
            raise RuntimeError("update_ cannot write into a learnable bank: its vectors are a leaf that requires grad")
        if self.vectors.dim() != 2:
            raise ValueError(f"update_ needs a bank (M, d), this one is {tuple(self.vectors.shape)}")
        _checks.codes(rows, "rows")
        _checks.floating("vectors", vectors)
        if rows.dim() != 1 or vectors.shape != (rows.shape[0], self.vectors.shape[1]):
            raise ValueError(
                f"update_ needs rows (R,) and vectors (R, {self.vectors.shape[1]}), "
                f"got {tuple(rows.shape)} and {tuple(vectors.shape)}"
            )
        if vectors.dtype != self.vectors.dtype:
            raise TypeError(f"vectors must be {self.vectors.dtype} like the bank, got {vectors.dtype}")
        if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= self.vectors.shape[0]):
            low, high = int(rows.min()), int(rows.max())
            raise IndexError(
                f"rows must lie between 0 and {self.vectors.shape[0] - 1}, got values from {low} to {high}"
            )
        with torch.no_grad():
            self.vectors.index_copy_(0, rows, vectors.detach())  # bumps the version that autograd checks
        self.repack()
        return self

    def repack(self) -> Bank:
        """Prepare the vectors again, after writing into them directly; returns self."""
        with torch.no_grad():
            packable = not self.learnable and self.vectors.device.type == "cpu"
            self._pack = torch.ops.vecbank.pack(self.vectors, self._metric_code, self.bias) if packable else None
        return self

    def extra_repr(self) -> str:
        shape = " x ".join(str(s) for s in self.vectors.shape)
        own = self.vectors.numel() * self.vectors.element_size()
        pack = "packed per call" if self._pack is None else f"+ {_bytes(self._pack.numel())} packed"
        dtype = str(self.vectors.dtype).removeprefix("torch.")
        biased = ", biased" if self._biased else ""
        return (
            f"{shape}, metric={self.metric!r}, dtype={dtype}, learnable={self.learnable}{biased}, {_bytes(own)} {pack}"
        )

    # The pack follows whatever torch does to the vectors, and is never carried along.

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Bank:
        super()._apply(fn, recurse)
        return self.repack()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.repack()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_pack", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_biased" not in state:  # written before there was a bias
            self._biased = False
            self.register_buffer("bias", None)
        self.repack()


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 1024:.1f} KiB"


from . import functional  # noqa: E402  (functional needs Bank, Bank's methods need functional)
