"""Writing into tensors: whether one was written to since something was derived from it, where, and by whom."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, UntypedStorage


class Snapshot(NamedTuple):
    """A tensor as it was: where its values lay, and how often torch had seen them written to.

    It holds the tensor and its storage, so that nothing else can come to lie at the same address.
    """

    tensor: Tensor
    storage: UntypedStorage
    address: int
    version: int

    @classmethod
    def of(cls, t: Tensor) -> Snapshot:
        """Of a tensor that counts its writes: not one made in inference mode."""
        return cls(t, t.untyped_storage(), t.data_ptr(), t._version)

    def shows(self, t: Tensor | None) -> bool:
        """`t` is that tensor, and nothing that torch counts has been written since."""
        return t is self.tensor and t._version == self.version and t.data_ptr() == self.address


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether the storages of two tensors overlap; numpy and dlpack make another storage of the same memory."""
    one, two = a.untyped_storage(), b.untyped_storage()
    return one.data_ptr() < two.data_ptr() + two.nbytes() and two.data_ptr() < one.data_ptr() + one.nbytes()


def last_of_each(rows: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Each row once, with the last vector that came for it."""
    if rows.numel() <= 1:
        return rows, vectors
    named, place = rows.unique(return_inverse=True)
    if named.numel() == rows.numel():
        return rows, vectors
    order = torch.arange(rows.numel(), device=rows.device)
    last = torch.zeros_like(named).scatter_reduce_(0, place, order, "amax", include_self=False)
    return named, vectors[last.to(vectors.device)]


def foreign(t: Tensor) -> bool:
    """Memory that is not torch's own (an array's, a file's): who else writes there, torch cannot see."""
    return type(t) is Tensor and t.device.type == "cpu" and not t.untyped_storage().resizable()


def own(vectors: Tensor) -> Tensor:
    """A contiguous tensor whose writes torch counts: shared where it is one already."""
    vectors = vectors.detach()
    if vectors.is_inference():
        with torch.inference_mode(False):
            return vectors.clone(memory_format=torch.contiguous_format)
    return vectors.clone(memory_format=torch.contiguous_format) if foreign(vectors) else vectors.contiguous()
