"""Selections where there are no kernels for them: put together from torch's ops, a block of queries at a time.

A CUDA device goes this way; `_select.in_blocks` has the CPU go it. The tests of `test_allowed.py`, `test_selections.py`
and `test_parts.py` run once more here, against the same expectations to the bit, in blocks of few queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import test_allowed
import test_allowed_errors
import test_parts
import test_radius
import test_selections
import torch
from candidate_sets import SETS, make
from cases import TABLE, Case, build, thin
from helpers import assert_same, expected, gauss, run, seeded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import vecbank
from vecbank import _select

FEW = 1 << 12  # bytes of a block: a few queries
SAMPLE = thin([case for case in TABLE if case.mask in SETS and case.m <= 513], 40)


def right_root(t: Tensor) -> Tensor:
    """A device's root is rounded to nearest; torch's own on a CPU with MKL is off by one unit for some float64."""
    return torch.from_numpy(np.sqrt(t.numpy())) if t.dtype is torch.float64 else torch.sqrt(t)


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Iterator[None]:
    monkeypatch.setattr(_select, "BLOCK_BYTES", FEW)
    monkeypatch.setattr(Tensor, "sqrt", right_root)
    for module in (test_allowed, test_parts, test_radius, test_selections):
        monkeypatch.setattr(module, "WAYS", (0,))  # those of the kernels
    with _select.in_blocks():
        yield


def again(module: ModuleType, *without: str) -> dict[str, Any]:
    """The tests of a module, to be run here too."""
    tests = {name: test for name, test in vars(module).items() if name.startswith("test_") and name not in without}
    assert set(without) <= set(vars(module))
    return {f"{module.__name__}_{name.removeprefix('test_')}": test for name, test in tests.items()}


globals().update(
    again(
        test_allowed,
        *("test_compile", "test_compiled_for_any_number_of_queries"),
        *("test_isas_and_threads", "test_several_threads_share_one_set"),
    )
    | again(
        test_radius,
        *("test_a_bank_with_a_head", "test_many_hits_of_many_threads"),
        "test_threads_share_the_rows_that_screens_do_not_see",
    )
    | again(
        test_selections,
        *("test_compile", "test_compile_a_radius_with_a_gradient"),
        "test_farthest_points",
    )
    | again(test_allowed_errors)
    | again(test_parts, "test_compile", "test_refused")
)


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


def test_compile() -> None:
    """What does not wait for the number of hits is one program."""
    allowed = vecbank.Allowed.ranges(torch.arange(5), torch.arange(5) + 20) & vecbank.Allowed.not_self()
    x, bank = gauss(5, 4), gauss(30, 4)
    calls: list[Callable[[Tensor], Any]] = [
        lambda x: tuple(vecbank.topk(x, bank, 3, "l1", allowed=allowed)),
        lambda x: tuple(vecbank.radius(x, bank, 2.0, "l1", allowed=allowed, max_hits=4)),
        lambda x: tuple(vecbank.verify(x, bank, torch.zeros(5, 2).long(), "l1", allowed=allowed)),
    ]
    for call in calls:
        torch._dynamo.reset()
        assert_same(torch.compile(call, fullgraph=True, backend="aot_eager")(x), call(x))
    torch._dynamo.reset()


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


@pytest.mark.parametrize(
    "name, kind",
    [(name, kind) for name in CALLS for kind in LARGE_SETS if kind in ("none", "joined") or name in ("topk", "radius")],
)
def test_nothing_of_all_pairs_is_made(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a bool for each; what is made does not grow with the number of queries."""
    monkeypatch.setattr(_select, "BLOCK_BYTES", 1 << 16)
    x, bank, allowed = gauss(N, D), gauss(M, D, seed=1), LARGE_SETS[kind]()
    with Largest() as largest:
        CALLS[name](x, bank, allowed)
    assert 0 < largest.size < N * M / 3, largest.what
