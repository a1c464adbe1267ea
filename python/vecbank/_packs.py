"""A pack that a Bank keeps: which one it is, and what it was made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _C, _head, _head_choice
from ._ops.pack import USES
from ._written import Snapshot


class Made(NamedTuple):
    """The CUDA stream that a pack is written on, and the event that it is written by."""

    stream: torch.cuda.Stream
    event: torch.cuda.Event


class Kind(NamedTuple):
    """Which pack: the metric's family, and whether its panels are codes, which serve searches alone."""

    family: int
    int8: bool


class Pack(NamedTuple):
    """A pack, and what it was made of."""

    pack: Tensor
    vectors: Snapshot
    bias: Snapshot | None
    made: Made | None = None  # on CUDA
    head: _head.Head | None = None  # of a pack of codes; None: nothing was chosen yet
    chooser: _head_choice.Chooser | None = None  # where one may be, or another one

    @property
    def width(self) -> int:
        """How many coordinates searches look at first."""
        return self.vectors.tensor.shape[-1] if self.head is None else self.head.width

    def is_of(self, vectors: Tensor, bias: Tensor | None) -> bool:
        return self.vectors.shows(vectors) and (bias is None if self.bias is None else self.bias.shows(bias))

    def for_current_stream(self) -> Tensor:
        """The pack, which work of any stream may read from here on: no caller can know when it was written."""
        if self.made is not None:
            stream = torch.cuda.current_stream(self.pack.device)
            if stream != self.made.stream:
                stream.wait_event(self.made.event)
                self.pack.record_stream(stream)  # its memory is not given to others before that work is done
        return self.pack


def use_of(screen: object) -> int:
    """The code of a screen, which this processor must have."""
    if not isinstance(screen, str) or screen not in USES[1:]:
        raise ValueError(f"screen must be one of {', '.join(USES[1:])}, got {screen!r}")
    if screen == "int16" and not _C.has_int16():
        raise ValueError(f'screen "int16" needs a processor with AVX2 or AVX-512, this one runs {_C.isa()!r}')
    return USES.index(screen)
