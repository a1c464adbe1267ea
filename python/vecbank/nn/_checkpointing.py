"""Activation checkpointing of a module that changes its own codebooks.

A checkpointed forward runs twice: once for the result, and once inside the backward pass, which makes again what was
not kept. The second run must read the codebooks that the first one read, must not update them again, and must leave
the random state where the first one left it. So a training forward inside a checkpoint leaves a ForwardRecord, which
is owned by the graph of that forward and freed with it; a forward inside a backward pass looks for the record of the
forward that it repeats. Where no graph owns a record (checkpoints of the reentrant kind, inputs that need no
gradient), the last few are held. A forward outside of checkpoints is never repeated, and copies no codebook.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor

_HELD = 16  # records that no graph owns
_HELD_BYTES = 64 << 20  # of the codebooks in such records
_PROBES = 4  # positions along each axis of an input that are compared to recognise it


def inside_backward() -> bool:
    """Whether the caller runs inside a backward pass."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def may_repeat() -> bool:
    """Whether this forward may be inside an activation checkpoint, which repeats it in the backward pass.

    A checkpoint runs it without gradients, or replaces what autograd saves by hooks on saved tensors.
    """
    if torch.compiler.is_compiling():
        return False
    return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _probe(x: Tensor) -> Tensor:
    return x.detach()[tuple(slice(None, None, max(1, size // _PROBES)) for size in x.shape)].nan_to_num()


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


class ForwardRecord:
    """What one training forward read: its input, the codebooks and, if it draws, the random state before and after."""

    def __init__(self, x: Tensor, state: dict[str, Tensor], generator: Generator | None, draws: bool = False) -> None:
        self.shape, self.probe = x.shape, _probe(x)
        self.state = {name: t.detach().clone() for name, t in state.items()}
        self.bytes = sum(t.numel() * t.element_size() for t in self.state.values())
        self.device = x.device
        self.generator_state = None if generator is None else generator.get_state()
        self.random_before = _random_state(self.device) if draws else None
        self.random_after = self.random_before
        self.repeated = False
        self.owned = torch.is_grad_enabled() and x.requires_grad  # by the graph of this forward

    def finish(self, drew: bool = False) -> None:
        """Called when the codebooks have been updated; `drew`: the update took random numbers, if nothing else did."""
        if drew or self.random_before is not None:
            self.random_after = _random_state(self.device)

    def matches(self, x: Tensor) -> bool:
        """Whether this is the record of a forward on `x` that has not been repeated yet."""
        return not self.repeated and self.shape == x.shape and torch.equal(self.probe, _probe(x))

    @contextmanager
    def restored(self, state: dict[str, Tensor], generator: Generator | None) -> Iterator[None]:
        """Puts the codebooks (and the generator) back as they were, for the length of the block.

        The values return afterwards, so what autograd saved of them stays good: the writes go through `.data`.
        """
        self.repeated = True
        now = {name: t.detach().clone() for name, t in state.items()}
        generator_now = None if generator is None else generator.get_state()
        try:
            for name, t in state.items():
                t.data.copy_(self.state[name])
            if generator is not None and self.generator_state is not None:
                generator.set_state(self.generator_state)
            if self.random_before is not None:
                _set_random_state(self.device, self.random_before)
            yield
        finally:
            for name, t in state.items():
                t.data.copy_(now[name])
            if generator is not None and generator_now is not None:
                generator.set_state(generator_now)
            if self.random_after is not None:
                _set_random_state(self.device, self.random_after)


class ForwardRecords:
    """The forwards of one module that may be repeated: weak references, alive as long as the graphs of these."""

    def __init__(self) -> None:
        self._records: list[weakref.ref[ForwardRecord]] = []
        self._held: deque[ForwardRecord] = deque(maxlen=_HELD)

    def add(self, record: ForwardRecord) -> None:
        """Keeps a record; the caller sees to it that the graph owns it, where there is one."""
        if not record.owned:
            self._held.append(record)
            while len(self._held) > 1 and sum(held.bytes for held in self._held) > _HELD_BYTES:
                self._held.popleft()
        self._records = [ref for ref in self._records if (r := ref()) is not None and not r.repeated]
        self._records.append(weakref.ref(record))

    def find(self, x: Tensor) -> ForwardRecord | None:
        """The latest forward on this input (backward passes run from the last to the first)."""
        for ref in reversed(self._records):
            record = ref()
            if record is not None and record.matches(x):
                if record in self._held:
                    self._held.remove(record)
                return record
        return None

    def __getstate__(self) -> dict[str, object]:
        return {}  # copies and pickles start without records: the graphs are not theirs

    def __setstate__(self, state: dict[str, object]) -> None:
        self._records, self._held = [], deque(maxlen=_HELD)
