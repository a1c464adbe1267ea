"""Calls past the Python checks, straight to torch.ops.vecbank: an exception, never a crash."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from cases import METRICS
from helpers import CODE, all_ops, gauss, op
from op_samples import KINDS, samples, sets_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_leaves, tree_map_only

INT64 = torch.int64
X, BANK, CODES = gauss(4, 3), gauss(5, 3), torch.tensor([0, 1])
SEARCHES = ("project", "topk", "nearest", "quantize", "quantize_train")
ERRORS = (RuntimeError, NotImplementedError)


def search(name: str, x: Tensor, bank: Tensor, pack: Tensor | None = None, metric: int = 0) -> Any:
    return op(name)(x, bank, pack, *((2,) if name == "topk" else ()), metric)


PAIRS: dict[str, tuple[Tensor, Tensor]] = {
    "widths differ": (gauss(4, 2), BANK),
    "scalar x": (torch.tensor(1.0), BANK),
    "one-dimensional bank": (X, BANK[0]),
    "flat x, batched bank": (X, gauss(2, 5, 3)),
    "four-dimensional bank": (X, gauss(1, 1, 5, 3)),
    "batches differ": (gauss(3, 4, 3), gauss(2, 5, 3)),
    "integer x": (X.long(), BANK),
    "integer bank": (X, BANK.long()),
    "integers": (X.long(), BANK.long()),
    "float64, float32": (X.double(), BANK),
    "float32, float16": (X, BANK.half()),
    "float16, bfloat16": (X.half(), BANK.bfloat16()),
    "complex": (X.to(torch.complex64), BANK.to(torch.complex64)),
    "bool": (X.bool(), BANK.bool()),
}
FULL = torch.ones(4, 5, dtype=torch.bool)
ROWS: dict[str, tuple[str, tuple[Any, ...]]] = {
    **{f"topk: k {k}": ("topk", (X, BANK, None, k, 0)) for k in (0, -1, 6, 2**40, -(2**63))},
    "topk: float mask": ("topk", (X, BANK, None, 2, 0, FULL.float())),
    "topk: mask of fewer queries": ("topk", (X, BANK, None, 2, 0, FULL[:3])),
    "topk: mask of fewer rows": ("topk", (X, BANK, None, 2, 0, FULL[:, :4])),
    "topk: mask of one dimension": ("topk", (X, BANK, None, 2, 0, FULL[0])),
    "topk: mask of three": ("topk", (X, BANK, None, 2, 0, FULL.expand(2, 4, 5))),
    "topk: bias of another length": ("topk", (X, BANK, None, 2, 0, None, True, gauss(4))),
    "topk: bias of another dtype": ("topk", (X, BANK, None, 2, 0, None, True, gauss(5).double())),
    "topk: bias of two dimensions": ("topk", (X, BANK, None, 2, 0, None, True, gauss(5, 1))),
    "topk: bias for distances": ("topk", (X, BANK, None, 2, 2, None, True, gauss(5))),
    "topk: bias, batched bank": ("topk", (gauss(2, 4, 3), gauss(2, 5, 3), None, 2, 0, None, True, gauss(5))),
    "pack: bias of another length": ("pack", (BANK, 0, gauss(4))),
    "pack: bias for distances": ("pack", (BANK, 2, gauss(5))),
    "quantize_train: float mask": ("quantize_train", (X, BANK, None, 2, torch.ones(4))),
    "quantize_train: mask of fewer rows": ("quantize_train", (X, BANK, None, 2, FULL[:3, 0])),
    "quantize_train: mask of two dimensions": ("quantize_train", (X, BANK, None, 2, FULL)),
    "lookup: int32 codes": ("lookup", (CODES.int(), BANK, None, 0)),
    "lookup: float codes": ("lookup", (CODES.double(), BANK, None, 0)),
    "lookup: flat bank": ("lookup", (CODES, BANK[0], None, 0)),
    "lookup: integer bank": ("lookup", (CODES, BANK.long(), None, 0)),
    "lookup: weights of another shape": ("lookup", (CODES, BANK, gauss(3), 1)),
    "lookup: integer weights": ("lookup", (CODES, BANK, CODES, 1)),
    "lookup: weights of another dtype": ("lookup", (CODES, BANK, gauss(2).double(), 1)),
    "lookup: sum of a scalar": ("lookup", (CODES[0], BANK, None, 1)),
    "lookup: reduce 3": ("lookup", (CODES, BANK, None, 3)),
    "lookup: reduce -1": ("lookup", (CODES, BANK, None, -1)),
    "segment_sum: lengths": ("segment_sum", (X, CODES, 5, None)),
    "segment_sum: float codes": ("segment_sum", (X, torch.ones(4), 5, None)),
    "segment_sum: num_codes": ("segment_sum", (X, torch.tensor([0, 1, 2, 0]), -1, None)),
    "segment_sum: integers": ("segment_sum", (X.long(), torch.tensor([0, 1, 2, 0]), 5, None)),
    "segment_sum: weights": ("segment_sum", (X, torch.tensor([0, 1, 2, 0]), 5, gauss(3))),
    "segment_sum: scalar": ("segment_sum", (torch.tensor(1.0), torch.tensor(0), 5, None)),
    "lookup_dot: lengths": ("lookup_dot", (X, CODES, BANK)),
    "lookup_dot: widths": ("lookup_dot", (gauss(2, 4), CODES, BANK)),
    "lookup_dot: int32 codes": ("lookup_dot", (gauss(2, 3), CODES.int(), BANK)),
    "lookup_dot: flat bank": ("lookup_dot", (gauss(2, 3), CODES, BANK[0])),
    "residual_quantize: no book": ("residual_quantize", (X, [], [], 2)),
    "residual_quantize: too many packs": ("residual_quantize", (X, [BANK], [BANK, BANK], 2)),
    "residual_quantize: float packs": ("residual_quantize", (X, [BANK], [BANK], 2)),
    "residual_quantize: widths": ("residual_quantize", (X, [BANK, gauss(5, 2)], [], 2)),
    "residual_quantize: batched book": ("residual_quantize", (X, [gauss(2, 5, 3)], [], 2)),
    "residual_quantize: dtypes": ("residual_quantize", (X, [BANK, BANK.double()], [], 2)),
    "residual_quantize: 16-bit books": ("residual_quantize", (X.half(), [BANK.half()], [], 2)),
    "residual_quantize: metric": ("residual_quantize", (X, [BANK], [], len(CODE))),
    "product_quantize: a flat book": ("product_quantize", (X, BANK, op("pack")(BANK, 3))),
    "product_quantize: widths": ("product_quantize", (X, gauss(2, 5, 3), op("pack")(gauss(2, 5, 3), 3))),
    "product_quantize: float pack": ("product_quantize", (X, gauss(3, 5, 1), gauss(3, 5))),
    "product_quantize: dtypes": ("product_quantize", (X.double(), gauss(3, 5, 1), op("pack")(gauss(3, 5, 1), 3))),
    "product_quantize: no rows": ("product_quantize", (X, gauss(3, 0, 1), op("pack")(gauss(3, 0, 1), 3))),
    "quantize_backward: shapes": ("quantize_backward", (X, X, X[:2], torch.tensor(1.0), 1)),
    "quantize_backward: dtypes": ("quantize_backward", (X.double(), X, X, torch.tensor(1.0), 1)),
    "quantize_backward: integers": ("quantize_backward", (X.long(), X.long(), X.long(), torch.tensor(1.0), 1)),
    "quantize_backward: scalars": ("quantize_backward", (*(X[0, 0],) * 3, torch.tensor(1.0), 1)),
    "quantize_backward: a scale each": ("quantize_backward", (X, X, X, X[:, :1], 1)),
    "quantize_backward: integer scale": ("quantize_backward", (X, X, X, torch.tensor(1), 1)),
    "quantize_backward: estimator": ("quantize_backward", (X, X, X, torch.tensor(1.0), 3)),
    "repack_: rows out of range": ("repack_", (op("pack")(BANK, 0), BANK, 0, torch.tensor([5]))),
    "repack_: rows of another dtype": ("repack_", (op("pack")(BANK, 0), BANK, 0, torch.tensor([1.0]))),
    "repack_: pack of another bank": ("repack_", (op("pack")(BANK[:3], 0), BANK, 0, torch.tensor([1]))),
    "repack_: pack of another metric": ("repack_", (op("pack")(BANK, 1), BANK, 0, torch.tensor([1]))),
    "repack_: rows (R, 1)": ("repack_", (op("pack")(BANK, 0), BANK, 0, torch.tensor([[1]]))),
    "repack_: bias of another length": (
        "repack_",
        (op("pack")(BANK, 0, gauss(5)), BANK, 0, torch.tensor([1]), gauss(4)),
    ),
    "repack_: batched bank": ("repack_", (op("pack")(BANK, 0), BANK[None], 0, torch.tensor([1]))),
    "pack: flat bank": ("pack", (BANK[0], 0)),
    "pack: integers": ("pack", (BANK.long(), 0)),
    "pack: four dimensions": ("pack", (gauss(1, 1, 5, 3), 0)),
    "topk_backward: k": ("topk_backward", (gauss(4, 2), X, BANK, torch.zeros(4, 3, dtype=INT64), 0)),
    "topk_backward: queries": ("topk_backward", (gauss(3, 2), X, BANK, torch.zeros(3, 2, dtype=INT64), 0)),
    "topk_backward: widths": (
        "topk_backward",
        (gauss(4, 2), X, gauss(5, 2), torch.zeros(4, 2, dtype=INT64), 0),
    ),
    "topk_backward: indices": ("topk_backward", (gauss(4, 2), X, BANK, torch.zeros(4, 2), 0)),
    "exact_scores: widths": ("exact_scores", (X, gauss(5, 2), 0)),
    "exact_scores: metric": ("exact_scores", (X, BANK, 9)),
    "exact_scores: dtypes": ("exact_scores", (X.double(), BANK, 0)),
    "exact_scores: float indices": ("exact_scores", (X, BANK, 0, None, torch.zeros(4, 2))),
    "exact_scores: indices of other rows": ("exact_scores", (X, BANK, 0, None, torch.zeros(3, 2).long())),
    "exact_scores: indices of a batched bank": (
        "exact_scores",
        (gauss(2, 4, 3), gauss(2, 5, 3), 0, None, torch.zeros(2, 4, 1).long()),
    ),
    "project_backward: too many rows": ("project_backward", (gauss(4, 6), X, BANK, 0)),
    "project_backward: queries": ("project_backward", (gauss(3, 5), X, BANK, 0)),
    "project_backward: widths": ("project_backward", (gauss(4, 5), X, gauss(5, 2), 0)),
    "project_backward_small: too many rows": ("project_backward_small", (gauss(4, 6), X, BANK, 0)),
    "project_backward_small: queries": ("project_backward_small", (gauss(3, 5), X, BANK, 0)),
    "project_backward_small: widths": ("project_backward_small", (gauss(4, 5), X, gauss(5, 2), 0)),
    "project_backward_small: float64": ("project_backward_small", (gauss(4, 5), X.double(), BANK.double(), 0)),
}
RADII = torch.ones(4, dtype=torch.float64)
LABELS = [torch.zeros(4, 1, dtype=INT64), torch.zeros(1, 5, dtype=INT64), torch.arange(5).unsqueeze(0)]
WORST = (None, False, True)
# What candidate sets may not be: of x (4, 3) and bank (5, 3).
BAD_SETS: dict[str, tuple[list[Tensor], list[int]]] = {
    "float mask": ([FULL.float()], [0, 0]),
    "mask of fewer queries": ([FULL[:3]], [0, 0]),
    "mask of fewer rows": ([FULL[:, :4]], [0, 0]),
    "mask of one dimension": ([FULL[0]], [0, 0]),
    "words of 64 bits": ([torch.zeros(4, 1, dtype=INT64)], [1, 0]),
    "no words": ([torch.zeros(4, 0, dtype=torch.uint8)], [1, 0]),
    "bits of fewer queries": ([torch.zeros(3, 1, dtype=torch.uint8)], [1, 0]),
    "bits of one dimension": ([torch.zeros(1, dtype=torch.uint8)], [1, 0]),
    "int32 ranges": ([torch.zeros(4, 2, dtype=torch.int32)], [2, 0]),
    "ranges of three": ([torch.zeros(4, 3, dtype=INT64)], [2, 0]),
    "ranges of fewer queries": ([torch.zeros(2, 2, dtype=INT64)], [2, 0]),
    "int32 ids": ([torch.zeros(4, 2, dtype=torch.int32)], [3, 0]),
    "float ids": ([torch.zeros(4, 2)], [6, 0]),
    "ids of fewer queries": ([torch.zeros(3, 2, dtype=INT64)], [6, 0]),
    "ids of one dimension": ([torch.zeros(4, dtype=INT64)], [3, 0]),
    "ids of three dimensions": ([torch.zeros(1, 4, 2, dtype=INT64)], [6, 0]),
    "labels (n, 2)": ([torch.zeros(4, 2, dtype=INT64), *LABELS[1:]], [5, 0]),
    "int32 labels": ([LABELS[0], LABELS[1].int(), LABELS[2]], [5, 0]),
    "labels of fewer rows": ([LABELS[0], LABELS[1][:, :4], LABELS[2][:, :4]], [5, 0]),
    "labels of more banks": ([LABELS[0], LABELS[1].repeat(2, 1), LABELS[2].repeat(2, 1)], [5, 0]),
    "flat labels": ([LABELS[0], LABELS[1][0], LABELS[2][0]], [5, 0]),
    "no order of labels": (LABELS[:2], [5, 0]),
    "no tensor": ([], [0, 0]),
    "operand out of range": ([FULL], [0, 1]),
    "negative operand": ([FULL], [0, -1]),
    "operand of 2^40": ([FULL], [0, 2**40]),
    "half a step": ([FULL], [0]),
    "unknown code": ([FULL], [7, 0]),
    "unknown join": ([FULL], [0, 0, -4, 0]),
    "code of 2^40": ([FULL], [2**40, 0]),
    "two results": ([FULL], [0, 0, 0, 0]),
    "a join of nothing": ([FULL], [-1, 0]),
    "a join of one": ([FULL], [0, 0, -1, 0]),
    "no set at all, negated": ([], [-3, 0]),
    "65 sets": ([FULL], [0, 0] * 65 + [-1, 0] * 64),
    "too long": ([FULL], [0, 0] + [-3, 0] * 5000),
}
for _what, _sets in BAD_SETS.items():
    ROWS[f"topk_among: {_what}"] = ("topk_among", (X, BANK, None, 2, 0, *_sets))
    ROWS[f"radius: {_what}"] = ("radius", (X, BANK, None, RADII, 2, *_sets))
    ROWS[f"radius_count: {_what}"] = ("radius_count", (X, BANK, None, RADII, 2, *_sets))
_KEYS, _INDICES = torch.zeros(4, 6, dtype=torch.float64), torch.zeros(4, 6, dtype=INT64)
ROWS |= {
    **{f"topk_among: k {k}": ("topk_among", (X, BANK, None, k, 0, [], [])) for k in (0, -1, 6, 2**40, -(2**63))},
    "topk_among: worst of a similarity": ("topk_among", (X, BANK, None, 2, 0, [], [], *WORST)),
    "topk_among: worst with a pack": ("topk_among", (X, BANK, op("pack")(BANK, 2), 2, 2, [], [], *WORST)),
    "topk_among: bias for distances": ("topk_among", (X, BANK, None, 2, 2, [], [], gauss(5))),
    "topk_among: bias of another length": ("topk_among", (X, BANK, None, 2, 0, [], [], gauss(4))),
    "topk_among: metric": ("topk_among", (X, BANK, None, 2, 9, [], [])),
    "topk_among: another rank's labels": (
        "topk_among",
        (X, BANK, None, 2, 0, [*LABELS[:2], torch.tensor([[0, 1, 5, 3, 4]])], [5, 0]),
    ),
    "topk_among: a negative rank of labels": (
        "topk_among",
        (X, BANK, None, 2, 0, [*LABELS[:2], torch.tensor([[0, 1, -1, 3, 4]])], [5, 0]),
    ),
    "topk_among: mask of another bank": (
        "topk_among",
        (gauss(2, 4, 3), gauss(2, 5, 3), None, 2, 0, [FULL], [0, 0]),
    ),
    "merge_topk: float32 keys": ("merge_topk", (_KEYS.float(), _INDICES, 2, 0, False)),
    "merge_topk: int32 indices": ("merge_topk", (_KEYS, _INDICES.int(), 2, 0, False)),
    "merge_topk: shapes": ("merge_topk", (_KEYS, _INDICES[:, :5], 2, 0, False)),
    "merge_topk: queries": ("merge_topk", (_KEYS, _INDICES[:3], 2, 0, False)),
    "merge_topk: scalars": ("merge_topk", (_KEYS[0, 0], _INDICES[0, 0], 1, 0, False)),
    "merge_topk: metric": ("merge_topk", (_KEYS, _INDICES, 2, 9, False)),
    **{f"merge_topk: k {k}": ("merge_topk", (_KEYS, _INDICES, k, 0, False)) for k in (0, -1, 7, 2**40)},
    "merge_topk: nothing to merge": ("merge_topk", (_KEYS[:, :0], _INDICES[:, :0], 1, 0, False)),
}
for _name in ("radius", "radius_count"):
    ROWS |= {
        f"{_name}: float32 radii": (_name, (X, BANK, None, RADII.float(), 2, [], [])),
        f"{_name}: radii of fewer queries": (_name, (X, BANK, None, RADII[:3], 2, [], [])),
        f"{_name}: radii of two dimensions": (_name, (X, BANK, None, RADII.reshape(2, 2), 2, [], [])),
        f"{_name}: one radius": (_name, (X, BANK, None, RADII[0], 2, [], [])),
        f"{_name}: a radius for all": (_name, (X, BANK, None, RADII[:1], 2, [], [])),
        f"{_name}: bias for distances": (_name, (X, BANK, None, RADII, 2, [], [], gauss(5))),
        f"{_name}: bias of another dtype": (_name, (X, BANK, None, RADII, 0, [], [], gauss(5).double())),
        f"{_name}: metric": (_name, (X, BANK, None, RADII, 5, [], [])),
    }
for _name in ("topk_among", "radius", "radius_count"):
    ROWS |= {
        f"{_name}: {what}": (_name, (*pair, None, 2 if _name == "topk_among" else RADII, 0, [], []))
        for what, pair in PAIRS.items()
    }
for _name in SEARCHES:
    ROWS |= {
        f"{_name}: {what}": (_name, (*pair, None, *((2,) if _name == "topk" else ()), 0))
        for what, pair in PAIRS.items()
    }


# A fake kernel checks devices, dtypes and shapes; these are values, which may be symbolic.
VALUES = (
    "topk: k",
    "topk_among: k",
    "topk_among: another rank's labels",
    "topk_among: a negative rank of labels",
    "merge_topk: k",
    "repack_: rows out of range",
    "repack_: pack of",
    "lookup: reduce 3",
    "lookup: reduce -1",
    "segment_sum: num_codes",
)
FAKEABLE = [what for what in ROWS if not what.startswith(VALUES)]


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
        "merge_topk": lambda code: (_KEYS, _INDICES, 2, code, False),
        "topk_backward": lambda code: (gauss(4, 2), X, BANK, torch.zeros(4, 2, dtype=INT64), code),
        "project_backward": lambda code: (gauss(4, 5), X, BANK, code),
        "project_backward_small": lambda code: (gauss(4, 5), X, BANK, code),
    }
    row = rows.get(name, lambda code: (X, BANK, None, code))
    for code in (-1, len(CODE), 2**40, -(2**63)):
        with pytest.raises(ERRORS, match="^[^\n]*metric must be 0") as caught:
            op(name)(*row(code))
        if name != "project_backward":  # whose checks are the fake's
            choices = [f"{number} ({metric})" for metric, number in CODE.items()]
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
