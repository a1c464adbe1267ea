"""Calls past the Python checks, straight to torch.ops.vecbank: an exception, never a crash."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from cases import METRICS
from helpers import ALL_CODES, CODE, all_ops, gauss, op
from op_refusals import BANK, CODES, FAKEABLE, FULL, INDICES, INT64, KEYS, LABELS, RADII, ROWS, SEARCHES, X
from op_samples import KINDS, samples, sets_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_leaves, tree_map_only

ERRORS = (RuntimeError, NotImplementedError)


def search(name: str, x: Tensor, bank: Tensor, pack: Tensor | None = None, metric: int = 0) -> Any:
    return op(name)(x, bank, pack, *((2,) if name == "topk" else ()), metric)


@pytest.mark.parametrize(
    "what, fake",
    [(what, False) for what in ROWS] + [(what, True) for what in FAKEABLE],
    ids=[f"{what}-real" for what in ROWS] + [f"{what}-fake" for what in FAKEABLE],
)
def test_refused(what: str, fake: bool) -> None:
    """By the kernel and by its fake: what a fake lets through fails later, inside a compiled program."""
    name, row = ROWS[what]
    with pytest.raises(ERRORS):
        if fake:
            with FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True) as mode:  # `radius` makes a symbol
                op(name)(*tree_map_only(Tensor, mode.from_tensor, row))
        else:
            op(name)(*row)


def longest(rows: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The sample of the most tensors, those in lists among them."""
    return max(rows, key=lambda row: sum(isinstance(a, Tensor) for a in tree_leaves(row)))


def _on_meta() -> list[tuple[str, int]]:
    """(op, number) of every tensor that has another tensor beside it."""
    found = []
    for name, rows in samples().items():
        count = sum(isinstance(a, Tensor) for a in tree_leaves(longest(rows)))
        found += [(name, i) for i in range(count) if count > 1]
    return found


@pytest.mark.parametrize("name, number", _on_meta())
def test_mixed_devices_are_refused(name: str, number: int) -> None:
    """One meta tensor among CPU tensors sends the call to the fake kernel, whose answer is empty."""
    row, numbers = longest(samples()[name]), itertools.count()
    mixed = tree_map_only(Tensor, lambda t: t.detach().to("meta") if next(numbers) == number else t, row)
    with pytest.raises(ERRORS):
        op(name)(*mixed)


@pytest.mark.parametrize(
    "name",
    [
        "pack",
        *SEARCHES,
        *("topk_among", "radius", "radius_count", "merge_topk"),
        *("topk_backward", "project_backward", "project_backward_small"),
    ],
)
def test_bad_metric(name: str) -> None:
    rows = {
        "pack": lambda code: (BANK, code),
        "topk": lambda code: (X, BANK, None, 2, code),
        "topk_among": lambda code: (X, BANK, None, 2, code, [], []),
        "radius": lambda code: (X, BANK, None, RADII, code, [], []),
        "radius_count": lambda code: (X, BANK, None, RADII, code, [], []),
        "merge_topk": lambda code: (KEYS, INDICES, 2, code, False),
        "topk_backward": lambda code: (gauss(4, 2), X, BANK, torch.zeros(4, 2, dtype=INT64), code),
        "project_backward": lambda code: (gauss(4, 5), X, BANK, code),
        "project_backward_small": lambda code: (gauss(4, 5), X, BANK, code),
    }
    row = rows.get(name, lambda code: (X, BANK, None, code))
    for code in (-1, len(ALL_CODES), 2**40, -(2**63)):
        with pytest.raises(ERRORS, match="^[^\n]*metric must be 0") as caught:
            op(name)(*row(code))
        if name != "project_backward":  # whose checks are the fake's
            choices = [f"{number} ({metric})" for metric, number in ALL_CODES.items()]
            text = f"metric must be {', '.join(choices[:-1])} or {choices[-1]}, got {code}"
            assert text in str(caught.value)


FLAT_INDICES = torch.zeros(4, 2, dtype=INT64)
ONE = torch.tensor(1.0)
TEXTS: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "scalar x with a mask": (
        "quantize_train",
        (ONE, BANK, None, 2, torch.tensor(True)),
        "x must have at least one dimension, got a scalar",
    ),
    "bank": ("pack", (BANK[0], 0), "bank must be (M, d) or (B, M, d), got (3)"),
    "dtypes": (
        "nearest",
        (X.double(), BANK, None, 0),
        "x and bank must share a dtype (or x be bfloat16/float16 with a float32 bank)",
    ),
    "widths": ("nearest", (X, gauss(5, 2), None, 0), "x (4, 3) and bank (5, 2) differ in their last dimension"),
    "pack of another kind": (
        "nearest",
        (X, BANK, BANK, 0),
        "pack must be what vecbank::pack returned (a contiguous uint8 tensor)",
    ),
    "pack of another bank": (
        "nearest",
        (X, BANK, torch.zeros(64, dtype=torch.uint8), 0),
        "pack does not belong to a bank of this shape, dtype, metric and bias; repack it",
    ),
    "bias": (
        "topk",
        (X, BANK, None, 2, 0, None, True, gauss(4)),
        "bias must be (M,) in the bank's dtype, got (4) for bank (5, 3)",
    ),
    "mask": (
        "topk",
        (X, BANK, None, 2, 0, FULL.float()),
        "mask must be bool and expanded to (..., M), got (4, 5)",
    ),
    "codes": ("lookup", (CODES.int(), BANK, None, 0), "codes must be int64"),
    "k among": (
        "topk_among",
        (X, BANK, None, 6, 0, [], []),
        "k must lie between 1 and M, got k = 6 with bank (5, 3)",
    ),
    "a program without end": (
        "topk_among",
        (X, BANK, None, 2, 0, [FULL], [0, 0] * 65 + [-1, 0] * 64),
        "program must join at most 64 sets into one",
    ),
    "radii": (
        "radius",
        (X, BANK, None, RADII[:3], 2, [], []),
        "radii must be contiguous float64 (4), got (3)",
    ),
    "weights": (
        "lookup",
        (CODES, BANK, CODES, 1),
        "weights must have the dtype of the rows they weigh",
    ),
    "indices": (
        "exact_scores",
        (X, BANK, 0, None, FLAT_INDICES[:3]),
        "indices go with a bank (M, d), and must be (..., k) for x (..., d), got (3, 2)",
    ),
    "gradients": (
        "quantize_backward",
        (X, X, X[:2], ONE, 1),
        "grad, x and quantized must share device, dtype and shape, got (2, 3) for x (4, 3)",
    ),
}


@pytest.mark.parametrize("what", TEXTS)
def test_one_refusal_has_one_wording(what: str, device: str) -> None:
    name, row, text = TEXTS[what]
    with pytest.raises(RuntimeError) as caught:
        op(name)(*tree_map_only(Tensor, lambda t: t.to(device), row))
    assert str(caught.value).split("vecbank: ", 1)[1].splitlines()[0] == text


GARBAGE = {
    "zeros": lambda good, *_: torch.zeros_like(good),
    "ones": lambda good, *_: torch.full_like(good, 255),
    "noise": lambda good, *_: torch.randint(0, 256, good.shape, dtype=torch.uint8),
    "one byte short": lambda good, *_: good[:-1],
    "header only": lambda good, *_: good[:64],
    "empty": lambda good, *_: good[:0],
    "header cut off": lambda good, *_: good[64:],
    "not contiguous": lambda good, *_: good.repeat_interleave(2)[::2],
    "float32": lambda good, *_: good.view(torch.float32),
    "int64": lambda good, *_: good.to(INT64),
    "meta": lambda good, *_: good.to("meta"),
    "of fewer rows": lambda good, bank, code: op("pack")(bank[:69], code),
    "of narrower rows": lambda good, bank, code: op("pack")(bank[:, :19], code),
    "of another dtype": lambda good, bank, code: op("pack")(bank.half(), code),
    "of another metric": lambda good, bank, code: op("pack")(bank, (code + 2) % len(CODE)),
}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_packs(kind: str, metric: str, name: str) -> None:
    x, bank, code = gauss(4, 20), gauss(70, 20), CODE[metric]
    bad = GARBAGE[kind](op("pack")(bank, code), bank, code)
    with pytest.raises(ERRORS):
        search(name, x, bank, bad, code)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_packs_among_sets(kind: str, metric: str) -> None:
    x, bank, code = gauss(4, 20), gauss(70, 20), CODE[metric]
    bad = GARBAGE[kind](op("pack")(bank, code), bank, code)
    with pytest.raises(ERRORS):
        op("topk_among")(x, bank, bad, 2, code, [torch.tensor([[3, 60]])], [2, 0])
    for name in ("radius", "radius_count"):
        with pytest.raises(ERRORS):
            op(name)(x, bank, bad, RADII, code, [], [])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "not_self"])
def test_sets_on_another_device(kind: str) -> None:
    """Each tensor of each kind; the fake kernel that such a call reaches refuses it."""
    sets, program = sets_of(X, BANK, kind)
    for i in range(len(sets)):
        mixed = [t.to("meta") if i == j else t for j, t in enumerate(sets)]
        for call in (("topk_among", 2, 0), ("radius", RADII, 0), ("radius_count", RADII, 0)):
            with pytest.raises(ERRORS):
                op(call[0])(X, BANK, None, *call[1:], mixed, program)


def test_sets_whose_rows_lie_apart() -> None:
    """Python lays them out anew; the kernels read them in place, and refuse what they would misread."""
    words, ids = torch.zeros(4, 4, dtype=torch.uint8)[:, ::2], torch.zeros(4, 4, dtype=INT64)[:, ::2]
    apart = [LABELS[0], torch.zeros(1, 10, dtype=INT64)[:, ::2], LABELS[2]]
    for sets, program in (([words], [1, 0]), ([ids], [2, 0]), ([ids], [3, 0]), ([ids], [6, 0]), (apart, [5, 0])):
        with pytest.raises(ERRORS, match="in one piece|contiguous"):
            op("topk_among")(X, BANK, None, 2, 0, sets, program)
    found = op("topk_among")(X, BANK, None, 2, 0, [FULL.repeat(1, 2)[:, ::2]], [0, 0])  # a mask may have any strides
    assert torch.equal(found[1], op("topk")(X, BANK, None, 2, 0)[1])


def test_numbers_in_sets_never_crash() -> None:
    """Rows that no bank has, ends of ranges far outside and in any order, labels of any size: answers or errors."""
    wild = torch.tensor([[-(2**63), 2**63 - 1], [2**63 - 1, -(2**63)], [5, -1], [2**40, 3]])
    for kind, sets in (
        (2, [wild]),
        (3, [wild]),
        (6, [wild]),
        (6, [wild.sort(-1).values]),
        (5, [wild[:, :1], *LABELS[1:]]),
    ):
        for program in ([kind, 0], [kind, 0, -3, 0], [kind, 0, 4, -(2**63), -1, 0], [kind, 0, 4, 2**63 - 1, -2, 0]):
            found = op("topk_among")(X, BANK, None, 5, 0, sets, program)[1]
            assert int(found.min()) >= -1 and int(found.max()) < 5
            offsets, rows, _ = op("radius")(X, BANK, None, RADII, 2, sets, program)
            assert int(offsets[-1]) == len(rows) and bool(((rows >= 0) & (rows < 5)).all())
            assert torch.equal(op("radius_count")(X, BANK, None, RADII, 2, sets, program), offsets.diff())
    for code in CODE.values():
        strange = torch.tensor([[torch.nan, torch.inf, -torch.inf, 0.0, 1.0, -1.0]], dtype=torch.float64)
        rows = torch.tensor([[2**63 - 1, -(2**63), 3, 3, -1, 2**40]])
        op("merge_topk")(strange, rows, 6, code, True)


@pytest.mark.parametrize("name", SEARCHES)
def test_damaged_headers_never_crash(name: str) -> None:
    """Every word of the header changed in turn: an error, or an answer, but no read outside the pack."""
    x, bank = gauss(4, 20), gauss(70, 20)
    good = op("pack")(bank, 1)
    for word in range(23):
        for value in (0, 1, -1, 2**31, 2**62, -(2**63), 12345):
            pack = good.clone()
            pack[: 23 * 8].view(INT64)[word] = value
            try:
                search(name, x, bank, pack, 1)
            except RuntimeError:
                pass


@pytest.mark.parametrize("bad", [5, -2, 2**31, 2**40, -(2**63), 2**63 - 1])
def test_codes_out_of_range(bad: int) -> None:
    codes = torch.tensor([[0, bad], [1, 2]])
    for reduce in range(3):
        with pytest.raises(RuntimeError):
            op("lookup")(codes, BANK, None, reduce)
    with pytest.raises(RuntimeError):
        op("segment_sum")(gauss(2, 2, 3), codes, 5, None)
    with pytest.raises(RuntimeError):
        op("lookup_dot")(gauss(2, 3), codes, BANK)
    for metric in CODE.values():
        with pytest.raises(RuntimeError):
            op("topk_backward")(gauss(2, 2), X[:2], BANK, codes, metric)


def test_every_op_is_covered_here() -> None:
    assert set(all_ops()) == {name for name, _ in ROWS.values()}, "a new op: add rows of bad arguments"
