"""What the net over the verbs draws: masks of any strides, and shapes with an empty axis."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

SIZES = {"B": 2, "N": 3, "M": 5, "d": 4, "k": 3}


def empties(names: str) -> Iterator[dict[str, int]]:
    """Every choice of axes that are empty, at least one of them."""
    for empty in product((False, True), repeat=len(names)):
        if any(empty):
            yield {name: 0 if gone else SIZES[name] for name, gone in zip(names, empty, strict=True)}


def any_mask(dice: random.Random, leading: tuple[int, ...], rows: int) -> Tensor:
    """A bool mask that broadcasts to (*leading, rows), lying in memory in any way that a tensor can."""
    shape = [1 if dice.random() < 0.3 else size for size in (*leading, rows)]
    shape = shape[dice.randrange(len(shape)) if dice.random() < 0.3 else 0 :]
    generator = torch.Generator().manual_seed(dice.randrange(1 << 30))
    order = list(range(len(shape)))
    if dice.random() < 0.5:
        dice.shuffle(order)
    steps = [dice.choice((1, 1, 1, 2, 3)) for _ in shape]
    stored = torch.rand([shape[i] * steps[i] + dice.randrange(2) for i in order], generator=generator) < 0.6
    mask = stored.permute([order.index(i) for i in range(len(shape))])
    mask = mask[tuple(slice(0, size * step, step) for size, step in zip(shape, steps, strict=True))]
    if dice.random() < 0.2 and len(shape) > 1:  # windows that overlap
        width = shape[-1]
        flat = torch.rand(sum(shape) + width, generator=generator) < 0.6
        mask = flat.as_strided(shape, [1] * len(shape))
    if dice.random() < 0.3:
        mask = mask.expand(*leading, rows)
    return mask


def any_rows(dice: random.Random, leading: tuple[int, ...], width: int) -> Tensor:
    """Vectors (*leading, width), strided in some way."""
    generator = torch.Generator().manual_seed(dice.randrange(1 << 30))
    order = list(range(len(leading) + 1))
    if dice.random() < 0.5:
        dice.shuffle(order)
    shape = (*leading, width)
    x = torch.randn([shape[i] for i in order], generator=generator)
    return x.permute([order.index(i) for i in range(len(shape))])
