"""Buffers that follow from a module's arguments: they are on its device, in no state_dict, and survive casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._checks import readable

_Made = TypeVar("_Made", bound=tuple[Tensor, ...])


class Derived(nn.Module):
    """A module with non-persistent buffers that `_derive` can make again.

    A state_dict does not hold them, so they are written again wherever torch may lose them (`to_empty` after a
    construction on the meta device, a state assigned to such a module) or round them (`half()`): a module's levels do
    not depend on the dtype that its weights were cast to. The buffers named in `_cast` do take the module's dtype.
    """

    _cast: tuple[str, ...] = ()

    def _derive(self) -> dict[str, Tensor]:
        """The buffers, from Python numbers alone, on the CPU whatever the default device is."""
        raise NotImplementedError

    def _hold(self) -> None:
        """Registers the buffers, at the end of a constructor, on the default device, as other buffers are."""
        for name, value in self._derive().items():
            self.register_buffer(name, value.to(torch.empty(0).device), persistent=False)

    def _followed(self, source: Tensor, make: Callable[[Tensor], _Made]) -> _Made:
        """`make(source)`, which is kept until the buffer `source` is another one, or is written to.

        What follows from a few numbers takes as long as the same operations on all rows of a small batch.
        """
        if not readable(source) or source.is_inference() or torch.is_inference_mode_enabled():
            return make(source)
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] is not source or kept[1] != source._version:
            made = make(source)
            if not all(type(t) is Tensor for t in made):  # a mode that makes other tensors is on
                return made
            kept = self.__dict__["_kept"] = (source, source._version, made)
        found: _Made = kept[2]
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def _renew(self, device: torch.device | None = None) -> None:
        """Writes the buffers again, on `device` or where each of them is."""
        for name, value in self._derive().items():
            now = self._buffers[name]
            if type(now) is Tensor:  # a subclass was put there by a wrapper of tensors, which sees to its values
                dtype = now.dtype if name in self._cast else value.dtype
                self._buffers[name] = value.to(now.device if device is None else device, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._renew()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if local_metadata.get("assign_to_params_buffers", False):
            loaded = next((t for t in state_dict.values() if isinstance(t, Tensor)), None)
            held = [b for name in self._derive() if (b := self._buffers[name]) is not None]
            if any(b.is_meta for b in held):
                self._renew(torch.device("cpu") if loaded is None else loaded.device)
