"""Documents as sparse vectors, and the lists in which a search looks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from . import _checks
from ._numpy import entry_point
from ._ops import ops
from ._written import Snapshot, own

Self = TypeVar("Self", bound="SparseBank")
_WEIGHTS = (torch.float32, torch.float64)


class Inverted(NamedTuple):
    """Of every term the documents that hold it, ascending: term t has the entries starts[t]:starts[t + 1]."""

    starts: Tensor  # (V + 1,) int64
    documents: Tensor  # (nnz,) int32
    order: Tensor  # (nnz,) int64: where each entry came from


class SparseBank(nn.Module):
    """Documents as sparse vectors over a vocabulary, for `sparse.scores` and `sparse.topk`.

    Rows of a CSR matrix: document i holds the terms ids[offsets[i]:offsets[i + 1]], in any order, with as many weights.
    They are turned once into inverted lists (for each term the documents that hold it), which is what a search reads.
    Weights may be written to, in place, by an optimiser or by `load_state_dict`; the next call sees it.

    Args:
        offsets: (M + 1,) integers, ascending from 0 to nnz.
        ids: (nnz,) int32 or int64 (kept as they are), each from 0 to width - 1, none twice in a row.
        weights: (nnz,) float32 or float64. A Parameter stays one, and a tensor with a gradient keeps its own: scores
            are differentiable in it. Other tensors are held as buffers.
        width: V, the number of terms.

    Raises:
        ValueError: offsets that do not ascend from 0 to nnz, an id out of range or twice in a row (the message names
            the row), lengths, devices. TypeError: dtypes.

    It takes 28 bytes for each entry of int32 ids and float32 weights.

    Example:
        >>> import torch, vecbank
        >>> documents = vecbank.sparse.SparseBank(
        ...     offsets=torch.tensor([0, 2, 2, 3]),
        ...     ids=torch.tensor([4, 0, 4]),
        ...     weights=torch.tensor([1.0, 0.5, 3.0]),
        ...     width=5,
        ... )
        >>> documents
        SparseBank(documents=3, width=5, nnz=3, dtype=torch.float32)
        >>> documents.to_dense().tolist()
        [[0.5, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 3.0]]
    """

    offsets: Tensor
    ids: Tensor
    weights: Tensor
    _inverted: tuple[Inverted, Snapshot, Snapshot] | None
    _listed: tuple[Tensor, Snapshot] | None

    @entry_point
    def __init__(self, offsets: Tensor, ids: Tensor, weights: Tensor, width: int) -> None:
        super().__init__()
        offsets = _checks.integers(offsets, "offsets")
        _checks.integral(ids, "ids")
        _checks.floating("weights", weights)
        self.width = _checks.at_least(0, "width", width)
        if offsets.dim() != 1 or offsets.numel() == 0:
            raise ValueError(f"offsets must have shape (M + 1,), got {tuple(offsets.shape)}")
        if ids.dim() != 1 or ids.shape != weights.shape:
            raise ValueError(
                f"ids and weights must have one shape (nnz,), got {tuple(ids.shape)} and {tuple(weights.shape)}"
            )
        if weights.dtype not in _WEIGHTS:
            raise TypeError(f"weights must be float32 or float64, got {weights.dtype}")
        for name, t in (("ids", ids), ("weights", weights)):
            if t.device != offsets.device:
                raise ValueError(f"{name} must be on the device of offsets {offsets.device}, got {t.device}")
        self.register_buffer("offsets", own(offsets))
        self.register_buffer("ids", own(ids if ids.dtype is torch.int32 else _checks.integers(ids, "ids")))
        self._inverted = self._listed = None
        if isinstance(weights, nn.Parameter):
            self.weights = weights
        else:
            self.register_buffer("weights", weights.contiguous() if weights.requires_grad else own(weights))
        self.inverted()

    @classmethod
    def from_dense(cls: type[Self], matrix: Tensor) -> Self:
        """The rows of a matrix (M, V), less their zeros; gradients go back to what is not 0.

        Example:
            >>> import torch, vecbank
            >>> vecbank.sparse.SparseBank.from_dense(torch.tensor([[0.0, 2.0], [1.0, 3.0]])).ids.tolist()
            [1, 0, 1]
        """
        if not isinstance(matrix, Tensor):
            matrix = torch.as_tensor(matrix)
        _checks.shaped("matrix", matrix, ("M", "V"))
        held = matrix.detach() != 0
        rows, ids = held.nonzero().unbind(1)
        offsets = torch.nn.functional.pad(held.sum(1).cumsum(0), (1, 0))
        return cls(offsets, ids.to(torch.int32), matrix[rows, ids], matrix.shape[1])

    @classmethod
    def from_csr(cls: type[Self], matrix: Any) -> Self:
        """The rows of a CSR matrix (M, V): a torch tensor of layout `torch.sparse_csr`, or one of scipy.

        A gradient goes back to the values of a tensor.

        Example:
            >>> import torch, vecbank
            >>> matrix = torch.tensor([[0.0, 2.0], [1.0, 3.0]]).to_sparse_csr()
            >>> vecbank.sparse.SparseBank.from_csr(matrix)
            SparseBank(documents=2, width=2, nnz=3, dtype=torch.float32)
        """
        if isinstance(matrix, Tensor):
            if matrix.layout is not torch.sparse_csr or matrix.dim() != 2:
                raise TypeError(
                    f"matrix must be of two dimensions and of layout torch.sparse_csr (matrix.to_sparse_csr() makes "
                    f"it so), got {tuple(matrix.shape)} of layout {matrix.layout}"
                )
            return cls(matrix.crow_indices(), matrix.col_indices(), matrix.values(), matrix.shape[1])
        if getattr(matrix, "format", None) != "csr" or not hasattr(matrix, "indptr"):
            raise TypeError(
                f"matrix must be a CSR matrix of torch or scipy (matrix.tocsr() makes one), got {type(matrix).__name__}"
            )
        return cls(matrix.indptr, matrix.indices, matrix.data, int(matrix.shape[1]))

    def __len__(self) -> int:
        """The number of documents."""
        return self.offsets.shape[0] - 1

    def to_dense(self) -> Tensor:
        """The documents as a matrix (M, V)."""
        rows = torch.arange(len(self), device=self.ids.device).repeat_interleave(self.offsets.diff())
        return self.weights.new_zeros(len(self), self.width).index_put((rows, self.ids.long()), self.weights)

    def extra_repr(self) -> str:
        return f"documents={len(self)}, width={self.width}, nnz={self.ids.shape[0]}, dtype={self.weights.dtype}"

    # ---- What a search reads, made anew where what it was made from has changed -------------------------------------

    def inverted(self) -> Inverted:
        """Where each term comes: the transposition. It is made once."""
        known = self._inverted
        if known is not None and (
            torch.compiler.is_compiling() or (known[1].shows(self.offsets) and known[2].shows(self.ids))
        ):
            return known[0]
        made = invert(self.offsets, self.ids, self.width)
        if not torch.compiler.is_compiling():
            self._inverted = made, Snapshot.of(self.offsets), Snapshot.of(self.ids)
            self._listed = None
        return made

    def lists(self) -> tuple[Tensor, Tensor, Tensor]:
        """Starts, documents and weights of the inverted lists; the weights are differentiable."""
        starts, documents, order = self.inverted()
        weights = self.weights
        if weights.dtype not in _WEIGHTS:
            raise TypeError(f"the weights of a SparseBank must be float32 or float64, got {weights.dtype}")
        if (
            torch.compiler.is_compiling()
            or weights.is_inference()
            or (weights.requires_grad and torch.is_grad_enabled())
        ):
            return starts, documents, weights.index_select(0, order)
        if self._listed is None or not self._listed[1].shows(weights):
            with torch.no_grad():
                self._listed = weights.index_select(0, order), Snapshot.of(weights)
        return starts, documents, self._listed[0]

    def _forget(self) -> None:
        self._inverted = self._listed = None

    def _apply(self: Self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._forget()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_inverted": None, "_listed": None}


def invert(offsets: Tensor, ids: Tensor, width: int) -> Inverted:
    if offsets.device.type in ("cpu", "meta"):
        return Inverted(*ops.sparse_invert(offsets, ids, width))
    return invert_elsewhere(offsets, ids, width)


def invert_elsewhere(offsets: Tensor, ids: Tensor, width: int) -> Inverted:
    """The same by plain torch, for devices without the kernel. It waits for the device."""
    lengths = offsets.diff()
    if int(offsets[0]) != 0 or int(offsets[-1]) != ids.shape[0] or bool((lengths < 0).any()):
        raise ValueError(f"offsets must ascend from 0 to the number of ids {ids.shape[0]}")
    rows = torch.arange(lengths.shape[0], device=ids.device).repeat_interleave(lengths, output_size=ids.shape[0])
    terms = ids.long()
    outside = (terms < 0) | (terms >= width)
    if bool(outside.any()):
        at = int(outside.byte().argmax())
        raise ValueError(
            f"ids must lie between 0 and width - 1 = {width - 1}, but row {int(rows[at])} has {int(terms[at])}"
        )
    listed, order = torch.sort(terms, stable=True)
    documents = rows[order]
    again = (listed[1:] == listed[:-1]) & (documents[1:] == documents[:-1])
    if bool(again.any()):
        at = int(again.byte().argmax())
        raise ValueError(
            f"ids must name a term once in a row, but row {int(documents[at])} has {int(listed[at])} twice"
        )
    starts = torch.searchsorted(listed, torch.arange(width + 1, device=ids.device))
    return Inverted(starts, documents.to(torch.int32), order)
