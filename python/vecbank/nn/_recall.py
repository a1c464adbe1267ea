"""Activation checkpointing of a module that changes its own books.

A checkpointed forward runs twice: once for the result, once more inside the backward pass to rebuild what was not
kept. The second run must see the books that the first saw, must not update them again, and must leave the random
state where the first left it. So a training forward inside a checkpoint leaves behind what it saw, owned by the graph
it built (and freed with it); a forward that finds itself inside a backward pass looks for the one that it repeats.
Where no graph owns it (checkpoints of the reentrant kind, inputs that need no gradient), the last few are held. A
forward outside of checkpoints is never repeated, and copies no book.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor

_HELD = 16  # forwards without a graph that can still be repeated, as long as their books take no more than
_HELD_BYTES = 64 << 20  # so much memory
_PROBES = 4  # positions along each axis of the input that are compared to recognise it


def inside_backward() -> bool:
    """Whether the autograd engine is what called us."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def may_repeat() -> bool:
    """Whether this forward may be one of an activation checkpoint, and so come again in the backward pass.

    Such a checkpoint either runs it without gradients or replaces what autograd saves, by hooks on saved tensors.
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


class Seen:
    """What one training forward saw: its input, the books, and, if it draws, the random state before and after."""

    def __init__(self, x: Tensor, books: dict[str, Tensor], generator: Generator | None, draws: bool = False) -> None:
        self.shape, self.probe = x.shape, _probe(x)
        self.books = {name: book.detach().clone() for name, book in books.items()}
        self.bytes = sum(book.numel() * book.element_size() for book in self.books.values())
        self.device = x.device
        self.generator_state = None if generator is None else generator.get_state()
        self.state_before = _random_state(self.device) if draws else None
        self.state_after = self.state_before
        self.repeated = False
        self.owned = torch.is_grad_enabled() and x.requires_grad  # by the graph of this forward

    def finish(self, drew: bool = False) -> None:
        """Called when the books have been updated; `drew`: that took random numbers, if the rest did not."""
        if drew or self.state_before is not None:
            self.state_after = _random_state(self.device)

    def matches(self, x: Tensor) -> bool:
        return not self.repeated and self.shape == x.shape and torch.equal(self.probe, _probe(x))

    @contextmanager
    def restored(self, books: dict[str, Tensor], generator: Generator | None) -> Iterator[None]:
        """Puts the books (and the generator) back as they were, for the length of the block.

        Written through `.data`: the values come back, so what autograd saved of them stays good.
        """
        self.repeated = True
        now = {name: book.detach().clone() for name, book in books.items()}
        state = None if generator is None else generator.get_state()
        try:
            for name, book in books.items():
                book.data.copy_(self.books[name])
            if generator is not None and self.generator_state is not None:
                generator.set_state(self.generator_state)
            if self.state_before is not None:
                _set_random_state(self.device, self.state_before)
            yield
        finally:
            for name, book in books.items():
                book.data.copy_(now[name])
            if generator is not None and state is not None:
                generator.set_state(state)
            if self.state_after is not None:
                _set_random_state(self.device, self.state_after)


class Recall:
    """The forwards of one module that may yet be repeated: weak references, alive as long as their graphs."""

    def __init__(self) -> None:
        self._seen: list[weakref.ref[Seen]] = []
        self._held: deque[Seen] = deque(maxlen=_HELD)

    def note(self, seen: Seen) -> None:
        if not seen.owned:
            self._held.append(seen)
            while len(self._held) > 1 and sum(held.bytes for held in self._held) > _HELD_BYTES:
                self._held.popleft()
        self._seen = [ref for ref in self._seen if (s := ref()) is not None and not s.repeated]
        self._seen.append(weakref.ref(seen))

    def find(self, x: Tensor) -> Seen | None:
        """The latest forward on this input (backward passes run from the last to the first)."""
        for ref in reversed(self._seen):
            seen = ref()
            if seen is not None and seen.matches(x):
                if seen in self._held:
                    self._held.remove(seen)
                return seen
        return None

    def __getstate__(self) -> dict[str, object]:
        return {}  # copies and pickles start afresh: their graphs are not ours

    def __setstate__(self, state: dict[str, object]) -> None:
        self._seen, self._held = [], deque(maxlen=_HELD)
