"""Buffers that follow from a module's arguments: they are on its device, in no state_dict, and survive casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


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
