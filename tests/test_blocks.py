"""Selections as they go where there are no kernels for them, put together from torch's ops a block of queries at a time.

A CUDA device goes this way; `_select.in_blocks` has the CPU go it. The tests of `test_allowed.py`, `test_selections.py`
and `test_parts.py` run once more here, against the same expectations to the bit, in blocks of few queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import test_allowed
import test_parts
import test_selections
import torch
from candidate_sets import SETS, make
from cases import METRICS, TABLE, Case, build, thin
from helpers import assert_same, expected, gauss, run, seeded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import vecbank
from vecbank import _select

FEW = 1 << 12  # bytes of a block: a few queries
SAMPLE = thin([case for case in TABLE if case.mask in SETS and case.m <= 513], 40)


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_select, "BLOCK_BYTES", FEW)
    with _select.in_blocks():
        yield


def again(module: ModuleType, *without: str) -> dict[str, Any]:
    """The tests of a module, to be run here too."""
    tests = {name: test for name, test in vars(module).items() if name.startswith("test_") and name not in without}
    assert set(without) <= set(vars(module))
    return {f"{module.__name__}_{name.removeprefix('test_')}": test for name, test in tests.items()}


globals().update(again(test_allowed) | again(test_selections) | again(test_parts))


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_table(case: Case) -> None:
    inputs = build(case)
    want = expected(case)
    assert_same(run(case, inputs.x, inputs.bank, inputs.allowed), want, "plain tensor")
    if not case.batched:
        assert_same(run(case, inputs.x, vecbank.Bank(inputs.bank, case.metric), inputs.allowed), want, "Bank")


@pytest.mark.parametrize("rows", [1, 2, 7, 10_000])
@pytest.mark.parametrize("kind", SETS)
def test_blocks_of_any_size(kind: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one query, of some, of a batch: the seams show nowhere."""
    monkeypatch.setattr(_select, "BLOCK_BYTES", 48 * 60 * rows)
    for batched in (False, True):
        x, bank = gauss(3, 7, 5), gauss(3, 60, 5) if batched else gauss(60, 5)
        allowed, dense = make(kind, (3, 7), 60, seeded(9), batched=batched)
        for metric in ("dot", "l2"):
            for options in ({}, {"order": "worst"}):
                got = vecbank.topk(x, bank, 9, metric, allowed=allowed, **options)
                assert_same(tuple(got), tuple(vecbank.reference.topk(x, bank, 9, metric, dense, **options)))
            want = vecbank.reference.radius(x, bank, 2.0, metric, dense)
            assert_same(tuple(vecbank.radius(x, bank, 2.0, metric, allowed=allowed)), tuple(want))
            count = vecbank.radius_count(x, bank, 2.0, metric, allowed=allowed)
            assert_same(count, want.offsets.diff().reshape(3, 7))


class Largest(TorchDispatchMode):
    """The most bytes that an op has returned a tensor of."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.what = 0, ""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor) and t.untyped_storage().nbytes() > self.size:
                self.size, self.what = t.untyped_storage().nbytes(), f"{op} {tuple(t.shape)} {t.dtype}"
        return out


N, M, D = 1500, 1200, 3
CALLS: dict[str, Callable[[Tensor, Tensor, Any], Any]] = {
    "topk": lambda x, bank, allowed: vecbank.topk(x, bank, 5, "l2", allowed=allowed),
    "the worst": lambda x, bank, allowed: vecbank.topk(x, bank, 5, "l2", allowed=allowed, order="worst"),
    "the least similar": lambda x, bank, allowed: vecbank.topk(x, bank, 5, allowed=allowed, order="worst"),
    "nearest": lambda x, bank, allowed: vecbank.nearest(x, bank, allowed=allowed),
    "radius": lambda x, bank, allowed: vecbank.radius(x, bank, 0.05, allowed=allowed),
    "radius_count": lambda x, bank, allowed: vecbank.radius_count(x, bank, 0.5, allowed=allowed),
    "max_hits": lambda x, bank, allowed: vecbank.radius(x, bank, 0.5, allowed=allowed, max_hits=5),
    "verify": lambda x, bank, allowed: vecbank.verify(x, bank, torch.zeros(N, 5).long(), "l2", allowed=allowed),
    "search_part": lambda x, bank, allowed: vecbank.search_part(x, bank, 5, "l2", allowed=allowed),
}
LARGE_SETS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "bits": lambda: vecbank.Allowed.bits(torch.full((M // 8,), 0b1011, dtype=torch.uint8)),
    "bits of each": lambda: vecbank.Allowed.bits(torch.full((N, M // 8), 0b1011, dtype=torch.uint8)),
    "ranges": lambda: vecbank.Allowed.ranges(torch.arange(N) % 500, torch.arange(N) % 500 + 400),
    "exclude": lambda: vecbank.Allowed.exclude(torch.arange(4 * N).reshape(N, 4) % M),
    "not_self": lambda: vecbank.Allowed.not_self(),
    "same": lambda: vecbank.Allowed.same(torch.arange(N) % 7, torch.arange(M) % 7),
    "rows": lambda: vecbank.Allowed.rows(torch.arange(4 * N).reshape(N, 4) % M),
    "joined": lambda: ~(vecbank.Allowed.not_self() & (torch.arange(M) % 3 > 0)) | vecbank.Allowed.ranges(3, 900),
}


@pytest.mark.parametrize("kind", LARGE_SETS)
@pytest.mark.parametrize("name", CALLS)
def test_nothing_of_all_pairs_is_made(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a bool for each; what is made does not grow with the number of queries."""
    monkeypatch.setattr(_select, "BLOCK_BYTES", 1 << 16)
    x, bank, allowed = gauss(N, D), gauss(M, D, seed=1), LARGE_SETS[kind]()
    with Largest() as largest:
        CALLS[name](x, bank, allowed)
    assert 0 < largest.size < N * M / 3, largest.what
