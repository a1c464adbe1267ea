"""Shapes that nobody chose, for `bench/sweep.py --random N`: sizes, types, metrics, banks and verbs are drawn.

The other shapes of the sweep are those that somebody thought of, and so were mended. Sizes are drawn with even
logarithms, from a single row or coordinate up, so that most shapes take less than a millisecond.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import partial

from bench.sweep_verbs import Search, Shape, nearest_calls, project_calls, quantize_calls, topk_calls

_MOST = {"n": 100_000, "m": 200_000, "d": 4096}
_PRODUCTS, _NUMBERS = 3e9, 3e7  # of a shape: n m d, and each of the matrices
_RANKS = (1, 2, 3, 5, 10, 10, 30, 100, 1000)


def shapes(count: int, seed: int) -> Iterator[Shape]:
    rng = random.Random(seed)
    while count > 0:
        n, m, d = (round(math.exp(rng.uniform(0, math.log(most)))) for most in _MOST.values())
        if n * m * d > _PRODUCTS or max(n * d, m * d, n * m) > _NUMBERS:
            continue
        dtype = rng.choice(["", "", "", "", "bf16", "float64"])
        search = Search(n, m, d, rng.choice(["dot", "cosine", "l2"]), dtype, tensor=rng.random() < 0.4)
        verb = rng.choice(["topk", "nearest", "quantize", "project"])
        k = min(m, rng.choice(_RANKS))
        name = f"{verb} {search.text}" + (f" k {k:,}" if verb == "topk" else "")
        make = {
            "topk": partial(topk_calls, search, k, None),
            "nearest": partial(nearest_calls, search),
            "quantize": partial(quantize_calls, search),
            "project": partial(project_calls, search),
        }[verb]
        count -= 1
        yield Shape(verb, name, make)
