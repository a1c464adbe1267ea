"""A bank prepared once: the vectors, and the packed copy that the kernels stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import _checks, _interrupt
from ._deprecated import warn_of_change
from ._numpy import entry_point
from ._ops import METRICS, Nearest, Quantized, TopK
from ._written import Snapshot


class _Pack(NamedTuple):
    """A pack, and what it was made of."""

    pack: Tensor
    vectors: Snapshot
    bias: Snapshot | None

    def is_of(self, vectors: Tensor, bias: Tensor | None) -> bool:
        return self.vectors.shows(vectors) and (bias is None if self.bias is None else self.bias.shows(bias))


class Bank(nn.Module):
    """M vectors of width d, prepared for one metric.

    Preparing makes one more copy of the vectors (packed panels, norms, error bounds; `repr` says how much) and saves
    doing so at every call. The packed copy is derived state: it is in no state_dict, pickle, exported program or
    broadcast, and is never cast. It belongs to one tensor, its storage and its version: whatever changes the vectors
    (writing into them, `load_state_dict`, `.to()`, another tensor in their place, a second Bank on the same tensor),
    the next call prepares them again. A compiled program notices too, and then packs at every call until a call outside
    of it, or `repack()`, has prepared the bank again. torch does not notice writes through an alias made by ``.data``
    (of the bank's vectors, or of the tensor that the bank was made of), by ``numpy()`` or dlpack, nor what collectives
    of `torch.distributed` (DistributedDataParallel's own excepted) or other processes write: call `repack()` after
    those.

    Args:
        vectors: (M, d), or (B, M, d) for B banks of one shape; float32, float64, bfloat16 or float16; a tensor or a
            numpy array (the Bank holds a tensor, and is searched with either kind). A contiguous tensor is shared, as
            buffers are (`update_` writes into it). It is copied where torch cannot see who else writes into it: memory
            that came from numpy or a file, and tensors made in inference mode. A learnable bank makes a copy of its
            own.
        metric: "cosine", "dot", "l2", "sqeuclidean" or "l1" (which needs no copy). With None (default) each verb uses
            its own default: "cosine" for `project`, "dot" for `topk`, "l2" for `nearest` and `quantize`. Then the
            vectors are prepared when a verb first asks, once for each metric that is asked for. Name the metric where
            the first to ask is a compiled program, which would pack at every call.
        learnable: hold the vectors as a Parameter (then packed at every call, because it changes) rather than a buffer.
        bias: (M,) in the vectors' dtype, added to dot products by `topk` and `project` (metric "dot" and (M, d) only):
            with it the Bank is an encoder, as of a sparse autoencoder (`sparse_encode` takes it). Held as the vectors
            are, and in the state_dict.

    Raises:
        TypeError: vectors or bias that are no floating-point tensors. ValueError: their shapes, an unknown metric, or a
            bias with another metric than "dot".

    Updating a Bank while another thread searches it is the caller's race, as with any torch module.
    """

    vectors: Tensor
    bias: Tensor | None
    _packs: dict[int, _Pack]

    @entry_point
    def __init__(
        self, vectors: Tensor, metric: str | None = None, learnable: bool = False, *, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        _checks.vectors("vectors", vectors)
        if metric is not None and (not isinstance(metric, str) or metric not in METRICS):
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
        if metric is None and bias is not None:
            metric = "dot"  # the only metric that goes with a bias
        self._metric = metric
        self.learnable = learnable
        self._biased = bias is not None
        self._packs, self._warned = {}, False
        if bias is not None:
            _checks.bias(bias, vectors, METRICS[metric or "dot"])
        if learnable:
            self.vectors = nn.Parameter(vectors.detach().clone())
            self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
        else:
            self.register_buffer("vectors", _own(vectors))
            self.register_buffer("bias", None if bias is None else _own(bias))
        self.repack()

    @property
    def metric(self) -> str | None:
        """The metric that the Bank was made for; None leaves each verb its own. Read-only."""
        return self._metric

    @metric.setter
    def metric(self, value: object) -> None:
        raise AttributeError(
            f"the metric of a Bank is fixed at {self._metric!r}: make another one, Bank(bank.vectors, {value!r})"
        )

    def project(self, x: Tensor, *, out_dtype: torch.dtype | None = None, metric: str | None = None) -> Tensor:
        """`vecbank.project` against this bank: (..., d) -> (..., M)."""
        return functional.project(x, self, metric, out_dtype=out_dtype)

    def topk(
        self,
        x: Tensor,
        k: int,
        mask: Tensor | None = None,
        *,
        exact: bool | None = None,
        metric: str | None = None,
        pad: bool = False,
    ) -> TopK:
        """`vecbank.topk` in this bank: (..., d) -> values and indices (..., k)."""
        return functional.topk(x, self, k, metric, mask, exact=exact, pad=pad)

    def nearest(self, x: Tensor, *, exact: bool | None = None, metric: str | None = None) -> Nearest:
        """`vecbank.nearest` in this bank: (..., d) -> values and indices (...)."""
        return functional.nearest(x, self, metric, exact=exact)

    def quantize(self, x: Tensor, *, metric: str | None = None) -> Quantized:
        """`vecbank.quantize` by this bank: (..., d) -> quantized (..., d) and codes (...)."""
        return functional.quantize(x, self, metric)

    def lookup(self, codes: Tensor, weights: Tensor | None = None, *, reduce: str = "none") -> Tensor:
        """`vecbank.lookup` in this bank: codes -> rows."""
        return functional.lookup(codes, self, weights, reduce=reduce)

    @entry_point
    def update_(self, rows: Tensor, vectors: Tensor) -> Bank:
        """Overwrite rows (integers, (R,)) with vectors (R, d) in place, and prepare them; returns self.

        The cost follows R, not M: of the packed copy, only the blocks of 16 rows that hold one of them are written.
        After M rows in all, and for R > M / 16, everything is prepared again.

        A row that is named more than once keeps the last of its vectors, as assignment in numpy does.

        Raises:
            RuntimeError: the bank is learnable (an optimiser owns it). TypeError: rows that are not integers, or
                vectors of another dtype than the bank's. ValueError: shapes. IndexError: rows outside 0..M-1.
        """
        held, bias = self.vectors, self.bias
        if held.requires_grad:
            raise RuntimeError("update_ cannot write into a learnable bank: its vectors are a leaf that requires grad")
        if held.dim() != 2:
            raise ValueError(f"update_ needs a bank (M, d), this one is {tuple(held.shape)}")
        rows = _checks.integers(rows, "rows")
        _checks.floating("vectors", vectors)
        if rows.dim() != 1 or vectors.shape != (rows.shape[0], held.shape[1]):
            raise ValueError(
                f"update_ needs rows (R,) and vectors (R, {held.shape[1]}), "
                f"got {tuple(rows.shape)} and {tuple(vectors.shape)}"
            )
        if vectors.dtype != held.dtype:
            raise TypeError(f"vectors must be {held.dtype} like the bank, got {vectors.dtype}")
        if rows.numel():
            low, high = (int(end) for end in rows.aminmax())
            if low < 0 or high >= held.shape[0]:
                raise IndexError(f"rows must lie between 0 and {held.shape[0] - 1}, got values from {low} to {high}")
        rows, vectors = _last_of_each(rows, vectors.detach())
        if vectors.untyped_storage().data_ptr() == held.untyped_storage().data_ptr():
            vectors = vectors.clone()  # rows of the bank itself, perhaps
        current = {code: made for code, made in self._packs.items() if made.is_of(held, bias)}
        with torch.no_grad():
            held.index_copy_(0, rows, vectors)  # bumps the version that autograd checks
            if not current or torch.compiler.is_compiling():
                return self.repack()
            self._packs.clear()  # an error leaves none that is half written
            made_of = Snapshot.of(held), None if bias is None else Snapshot.of(bias)
            for code, made in current.items():
                _interrupt.ops.repack_(made.pack, held, code, rows, bias, True)
                self._packs[code] = _Pack(made.pack, *made_of)
        return self

    @entry_point
    def repack(self) -> Bank:
        """Prepare the vectors again; returns self. Needed only after writes that torch does not count (see above)."""
        codes = set(self._packs) if self._metric is None else {_shared(METRICS[self._metric])}
        self._packs = {}
        for code in codes:
            self._prepare(code, self.vectors, self.bias)
        return self

    def _prepare(self, code: int, vectors: Tensor, bias: Tensor | None) -> Tensor | None:
        """Packs the vectors for a metric, if the pack can be held to what it was made of."""
        if self.learnable or not _packable(vectors) or (bias is not None and not _packable(bias)):
            return None
        # before packing: a write in between makes the pack stale
        made_of = Snapshot.of(vectors), None if bias is None else Snapshot.of(bias)
        with torch.no_grad():
            pack: Tensor = _interrupt.ops.pack(vectors, code, bias, True)
        if _checks.concrete(pack):  # a tracer's own tensor is for that tracer alone
            self._packs[code] = _Pack(pack, *made_of)
        return pack

    def _packed(self, vectors: Tensor, code: int) -> Tensor | None:
        """The pack for a metric, current; None where the op has to pack for itself."""
        code = _shared(code)
        held = self._packs.get(code)
        if torch.compiler.is_compiling():
            # The op itself holds the stamp in the pack against the vectors. An exported program keeps no pack.
            return None if held is None or torch.compiler.is_exporting() else held.pack
        bias = self._buffers.get("bias") if self._biased else None
        if held is not None and held.is_of(vectors, bias):
            return held.pack
        wanted = self._metric is None or code == _shared(METRICS[self._metric])
        return self._prepare(code, vectors, bias) if wanted and self._buffers.get("vectors") is vectors else None

    def _code_for(self, verb: str, default: str) -> int:
        """The metric of a call that names none."""
        if self._metric is not None:
            return METRICS[self._metric]
        if default != "cosine" and not self._warned:
            if not torch.compiler.is_compiling():
                self._warned = True
            warn_of_change(
                f'{verb} scores by "{default}" with this Bank, because Bank(vectors) no longer means '
                f'Bank(vectors, "cosine"): name the metric, in Bank or in {verb}'
            )
        return METRICS[default]

    def extra_repr(self) -> str:
        shape = " x ".join(str(s) for s in self.vectors.shape)
        own = self.vectors.numel() * self.vectors.element_size()
        packed = sum(held.pack.numel() for held in self._packs.values())
        later = "packed per call" if self._metric or self.learnable else "packed at first use"
        pack = f"+ {_bytes(packed)} packed" if self._packs else later
        dtype = str(self.vectors.dtype).removeprefix("torch.")
        biased = ", biased" if self._biased else ""
        return (
            f"{shape}, metric={self._metric!r}, dtype={dtype}, learnable={self.learnable}{biased}, {_bytes(own)} {pack}"
        )

    # The pack follows whatever torch does to the vectors, and is never carried along.

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Bank:
        super()._apply(fn, recurse)
        return self._own_all().repack()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._own_all().repack()

    def _own_all(self) -> Bank:
        """Copies what torch may have put into the buffers and would not count the writes of."""
        for name, held in self._buffers.items():
            if held is not None and (held.is_inference() or _foreign(held)):
                self._buffers[name] = _own(held)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("vectors", "bias") and "_packs" in self.__dict__:
            self._packs = {}  # of another tensor; a compiled program could take an alias of it for the same

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.update(_packs={}, _warned=False)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_metric" not in state:  # written before the metric was read-only
            state.update(_metric=state.pop("metric"), _packs={}, _warned=False)
        super().__setstate__(state)
        if "_biased" not in state:  # written before there was a bias
            self._biased = False
            self.register_buffer("bias", None)
        self.repack()


def _last_of_each(rows: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Each row once, with the last vector that came for it."""
    if rows.numel() <= 1:
        return rows, vectors
    named, place = rows.unique(return_inverse=True)
    if named.numel() == rows.numel():
        return rows, vectors
    order = torch.arange(rows.numel(), device=rows.device)
    last = torch.zeros_like(named).scatter_reduce_(0, place, order, "amax", include_self=False)
    return named, vectors[last]


def _shared(code: int) -> int:
    """The metric whose pack serves this one: `l2` and `sqeuclidean` have one pack."""
    return METRICS["l2"] if code == METRICS["sqeuclidean"] else code


def _foreign(t: Tensor) -> bool:
    """Memory that is not torch's own (an array's, a file's): who else writes there, torch cannot see."""
    return type(t) is Tensor and t.device.type == "cpu" and not t.untyped_storage().resizable()


def _own(vectors: Tensor) -> Tensor:
    """A contiguous tensor whose writes torch counts: shared where it is one already."""
    vectors = vectors.detach()
    if vectors.is_inference():
        with torch.inference_mode(False):
            return vectors.clone(memory_format=torch.contiguous_format)
    return vectors.clone(memory_format=torch.contiguous_format) if _foreign(vectors) else vectors.contiguous()


def _packable(t: Tensor) -> bool:
    """A tensor whose content can be held to its version: on the CPU, plain, its own, without a gradient."""
    on_cpu = t.device.type == "cpu" and _checks.concrete(t)
    return on_cpu and not t.requires_grad and not t.is_inference() and not _foreign(t)


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 1024:.1f} KiB"


from . import functional  # noqa: E402  (functional needs Bank, Bank's methods need functional)
