"""How far apart the code of VectorQuantize.forward lies: the files that the rows pass through in one call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

import vecbank
from vecbank.nn import VectorQuantize

DIM, CODES = 32, 100  # a codebook has another number of elements than x, so that only rows look like x
MOST = 15


def visits(call: Callable[[], Any], elements: int) -> list[str]:
    """The file of every function of the package that is handed the rows, in the order of the calls.

    Rows are floating-point tensors with as many elements as x, as arguments or within tuples.
    """
    package, files = str(Path(vecbank.__file__).parent), []

    def holds(value: object) -> bool:
        if isinstance(value, tuple):
            return any(holds(part) for part in value)
        return isinstance(value, Tensor) and value.is_floating_point() and value.numel() == elements

    def look(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(package) and any(holds(value) for value in frame.f_locals.values()):
            files.append(name.removeprefix(package))

    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(None)
    return files


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("options", "shape"),
    [({}, (2, 64, DIM)), ({"channel_last": False}, (2, DIM, 64)), ({"accept_image_fmap": True}, (2, DIM, 8, 8))],
    ids=["plain", "channels first", "image"],
)
def test_rows_pass_through_few_files(options: dict[str, Any], shape: tuple[int, ...], training: bool) -> None:
    """A step is a call of a function in another file than that of the call before it; the first call is none."""
    module = VectorQuantize(DIM, CODES, **options).train(training)
    x = torch.randn(shape, requires_grad=training)
    for _ in range(3):
        module(x)
    files = visits(lambda: module(x), x.numel())
    steps = [file for before, file in zip(files, files[1:], strict=False) if file != before]
    assert files[0].endswith("vector_quantize.py") and len(set(files)) > 5  # the calls were seen
    assert len(steps) <= MOST, " -> ".join(steps)
