"""The CUDA kernels: loaded where torch has CUDA, left out with a warning where that cannot be.

What kernels cannot raise (they may not wait for the host) they leave on the device; `check` looks there.
"""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType
from typing import Any

import torch

module: ModuleType | None = None  # vecbank._C_cuda, once loaded
reason: str | None = None  # why it is not


def load() -> bool:
    """Registers the kernels if torch has CUDA; True if they are there. Called once, on import."""
    global module, reason
    if module is not None:
        return True
    if os.environ.get("VECBANK_CUDA", "1") == "0":
        reason = "VECBANK_CUDA=0"
    elif torch.version.cuda is None:
        reason = "torch is a build without CUDA"
    else:
        try:
            module = importlib.import_module("vecbank._C_cuda")
            return True
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == "vecbank._C_cuda"
            reason = "this build of vecbank has no CUDA kernels (was nvcc there?)" if missing else str(error)
            if torch.cuda.is_available():
                warnings.warn(f"vecbank: CUDA tensors are not supported here: {reason}", stacklevel=3)
    return False


def _devices(device: torch.device | str | int | None) -> list[int]:
    if module is None or not torch.cuda.is_initialized():
        return []
    if device is None:
        return list(range(torch.cuda.device_count()))
    if isinstance(device, int):
        return [device]
    index = torch.device(device).index
    return [torch.cuda.current_device() if index is None else index]


def check(device: torch.device | str | int | None = None) -> None:
    """Raises IndexError if a kernel on `device` (default: all) met a code out of range since the last call.

    On the CPU such a code raises at once. A CUDA kernel may not wait for the host, so it never reads the row,
    returns NaN in its place (or leaves it out of a sum) and sets a flag, which this reads and clears. Waits
    for the device.

    Example:
        >>> import vecbank
        >>> vecbank.check()  # nothing on a machine without a GPU
    """
    bad: dict[int, int] = {}
    for index in _devices(device):
        assert module is not None
        with torch.cuda.device(index):
            count = int(module.state(index)["bad_codes"])
            if count:
                module.clear(index, False, True)
                bad[index] = count
    if bad:
        where = ", ".join(f"cuda:{index} ({count})" for index, count in bad.items())
        raise IndexError(f"codes out of range, or a pack of another bank, reached CUDA kernels on {where}")


def counters(device: torch.device | str | int | None = None) -> dict[str, int]:
    """What searches did, as `vecbank._C.counters()`: queries, refined, repeated. Waits for the device."""
    total = {"queries": 0, "refined": 0, "repeated": 0}
    for index in _devices(device):
        assert module is not None
        with torch.cuda.device(index):
            state: dict[str, Any] = module.state(index)
        for name in total:
            total[name] += int(state[name])
    return total


def reset_counters(device: torch.device | str | int | None = None) -> None:
    """Starts `counters` from zero; the flag that `check` reads stays."""
    for index in _devices(device):
        assert module is not None
        with torch.cuda.device(index):
            module.clear(index, True, False)


load()
