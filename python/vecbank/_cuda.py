"""The CUDA kernels: loaded where torch has CUDA, left out with a warning where that cannot be.

What kernels cannot raise (they may not wait for the host) they leave on the device; `check` looks there.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

LIBRARY = Path(__file__).with_name("_C_cuda.so")
_Report = ctypes.CFUNCTYPE(None, ctypes.c_int)
FUNCTIONS = {  # of the library, by name without their prefix: the arguments
    "state": (ctypes.c_int32, ctypes.POINTER(ctypes.c_int64)),
    "clear": (ctypes.c_int32, ctypes.c_bool, ctypes.c_bool),
    "architectures": (),
    "tensor_cores": (
        ctypes.c_int32,
        ctypes.POINTER(ctypes.c_int32),
        ctypes.POINTER(ctypes.c_float),
        ctypes.POINTER(ctypes.c_char_p),
    ),
    "report_unsound_to": (_Report,),
}
OUTCOMES = ("unchecked", "absent", "sound", "unsound")


class TensorCores(NamedTuple):
    """What is known of a device's tensor cores, and how searches on it are screened.

    `errors` are the worst of integers, of fp16 subnormals (both must be 0), of bf16 and of fp16 sums, in units of 2^-22
    of the magnitudes summed; the last two may be up to `allowed`.
    """

    outcome: str
    errors: tuple[float, float, float, float]
    allowed: float
    path: str | None  # None: VECBANK_CUDA_PATH names none that there is
    problem: str | None = None  # why they could not be checked

    def __str__(self) -> str:
        if self.problem is not None:
            return f"tensor cores could not be checked: {self.problem}"
        if self.outcome == "absent":
            return "no tensor cores for bf16"
        if self.outcome == "unchecked":
            return "tensor cores not checked, as a graph is being captured"
        said = "passed" if self.outcome == "sound" else "FAILED"
        integers, subnormals, bf16, fp16 = self.errors
        exact = "exact" if integers == subnormals == 0 else f"off by {integers:.3g} and {subnormals:.3g}"
        return (
            f"tensor cores {said} the self-check: integers and subnormals {exact}, sums within {bf16:.3g} (bf16) and "
            f"{fp16:.3g} (fp16) of 2^-22 ({self.allowed:.3g} allowed)"
        )


class Library:
    """The ops library: its ops are registered when it is loaded, and these are its functions (module_cuda.cpp)."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if it cannot be loaded, and AttributeError if it is of another version."""
        torch.ops.load_library(str(path))
        self._library = ctypes.CDLL(str(path))
        for name, arguments in FUNCTIONS.items():
            function = getattr(self._library, f"vecbank_cuda_{name}")
            function.argtypes, function.restype = arguments, ctypes.c_char_p
        self._report = _Report(self._warn)  # kept as long as the library may call it
        self._check(self._library.vecbank_cuda_report_unsound_to(self._report))

    def state(self, device: int) -> dict[str, int]:
        """The counters of a device since they were last cleared. Waits for the device."""
        four = (ctypes.c_int64 * 4)()
        self._check(self._library.vecbank_cuda_state(device, four))
        return dict(zip(("queries", "refined", "repeated", "bad_codes"), four, strict=True))

    def clear(self, device: int, counters: bool, flag: bool) -> None:
        self._check(self._library.vecbank_cuda_clear(device, counters, flag))

    def architectures(self) -> str:
        """What the kernels were compiled for."""
        return str(self._library.vecbank_cuda_architectures().decode())

    def tensor_cores(self, device: int) -> TensorCores:
        """Of a device that torch has initialised. Runs the self-check if nothing has, and waits for it."""
        outcome, five, path = ctypes.c_int32(), (ctypes.c_float * 5)(), ctypes.c_char_p()
        error = self._library.vecbank_cuda_tensor_cores(device, outcome, five, path)
        return TensorCores(
            OUTCOMES[outcome.value],
            (five[0], five[1], five[2], five[3]),
            five[4],
            None if path.value is None else path.value.decode(),
            None if error is None else error.decode(),
        )

    def _warn(self, device: int) -> None:
        """Called once by the first search on a device whose tensor cores are not what the screens need."""
        found = self.tensor_cores(device)
        warnings.warn(
            f"vecbank: cuda:{device}: {found}. Searches there use the float32 screen, which gives the same answers.",
            stacklevel=2,
        )

    @staticmethod
    def _check(error: bytes | None) -> None:
        if error is not None:
            raise RuntimeError(f"vecbank: CUDA: {error.decode()}")


module: Library | None = None  # once loaded
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
        reason = None
        if LIBRARY.exists():
            try:
                module = Library(LIBRARY)
                return True
            except (OSError, AttributeError) as error:
                reason = str(error.__cause__ or error)  # torch's own message does not say why
        reason = reason or "this build of vecbank has no CUDA kernels (was nvcc there?)"
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
            count = module.state(index)["bad_codes"]
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
            state = module.state(index)
        for name in total:
            total[name] += state[name]
    return total


def reset_counters(device: torch.device | str | int | None = None) -> None:
    """Starts `counters` from zero; the flag that `check` reads stays."""
    for index in _devices(device):
        assert module is not None
        with torch.cuda.device(index):
            module.clear(index, True, False)


load()
