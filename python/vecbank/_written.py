"""Whether a tensor was written to since something was derived from it."""

from __future__ import annotations

from typing import NamedTuple

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
