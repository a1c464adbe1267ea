"""What each op under ``torch.ops.vecbank`` refuses: a table of calls, by what is wrong with them."""

from __future__ import annotations

from typing import Any

import torch
from helpers import ALL_CODES, gauss, op
from torch import Tensor

INT64 = torch.int64
X, BANK, CODES = gauss(4, 3), gauss(5, 3), torch.tensor([0, 1])
SEARCHES = ("project", "topk", "nearest", "quantize", "quantize_train")

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
    "residual_quantize: metric": ("residual_quantize", (X, [BANK], [], len(ALL_CODES))),
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
KEYS, INDICES = torch.zeros(4, 6, dtype=torch.float64), torch.zeros(4, 6, dtype=INT64)
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
    "merge_topk: float32 keys": ("merge_topk", (KEYS.float(), INDICES, 2, 0, False)),
    "merge_topk: int32 indices": ("merge_topk", (KEYS, INDICES.int(), 2, 0, False)),
    "merge_topk: shapes": ("merge_topk", (KEYS, INDICES[:, :5], 2, 0, False)),
    "merge_topk: queries": ("merge_topk", (KEYS, INDICES[:3], 2, 0, False)),
    "merge_topk: scalars": ("merge_topk", (KEYS[0, 0], INDICES[0, 0], 1, 0, False)),
    "merge_topk: metric": ("merge_topk", (KEYS, INDICES, 2, 9, False)),
    **{f"merge_topk: k {k}": ("merge_topk", (KEYS, INDICES, k, 0, False)) for k in (0, -1, 7, 2**40)},
    "merge_topk: nothing to merge": ("merge_topk", (KEYS[:, :0], INDICES[:, :0], 1, 0, False)),
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
        f"{_name}: metric": (_name, (X, BANK, None, RADII, 9, [], [])),
    }
for _name in ("topk_among", "radius", "radius_count"):
    ROWS |= {
        f"{_name}: {what}": (_name, (*pair, None, 2 if _name == "topk_among" else RADII, 0, [], []))
        for what, pair in PAIRS.items()
    }
BETA, VALUES = torch.ones(4), gauss(5, 2)
SUMS, LSE, ALL = torch.zeros(4, 2), torch.zeros(4, dtype=torch.float64), (True,) * 4
ROWS |= {f"attend: {what}": ("attend", (*_pair, None, BETA, [], [])) for what, _pair in PAIRS.items()}
ROWS |= {f"attend: {what}": ("attend", (X, BANK, VALUES, BETA, *_sets)) for what, _sets in BAD_SETS.items()}
ROWS |= {
    "attend: float64": ("attend", (X.double(), BANK.double(), None, BETA, [], [])),
    "attend: float64 values": ("attend", (X, BANK, VALUES.double(), BETA, [], [])),
    "attend: integer values": ("attend", (X, BANK, VALUES.long(), BETA, [], [])),
    "attend: fewer values": ("attend", (X, BANK, VALUES[:4], BETA, [], [])),
    "attend: a batch of values": ("attend", (X, BANK, VALUES.unsqueeze(0), BETA, [], [])),
    "attend: flat values": ("attend", (X, BANK, VALUES[:, 0], BETA, [], [])),
    "attend: float64 beta": ("attend", (X, BANK, VALUES, BETA.double(), [], [])),
    "attend: fewer betas": ("attend", (X, BANK, VALUES, BETA[:3], [], [])),
    "attend: one beta": ("attend", (X, BANK, VALUES, BETA[0], [], [])),
    "attend_backward: no grad": ("attend_backward", (None, BETA, X, BANK, VALUES, BETA, LSE, [], [], *ALL)),
    "attend_backward: grad alone": ("attend_backward", (SUMS, BETA, X, BANK, None, BETA, LSE, [], [], *ALL)),
    "attend_backward: smaller grad": ("attend_backward", (SUMS[:3], BETA, X, BANK, VALUES, BETA, LSE, [], [], *ALL)),
    "attend_backward: half grad": ("attend_backward", (SUMS.half(), BETA, X, BANK, VALUES, BETA, LSE, [], [], *ALL)),
    "attend_backward: fewer along": ("attend_backward", (SUMS, BETA[:3], X, BANK, VALUES, BETA, LSE, [], [], *ALL)),
    "attend_backward: wide along": ("attend_backward", (SUMS, LSE, X, BANK, VALUES, BETA, LSE, [], [], *ALL)),
    "attend_backward: fewer lse": ("attend_backward", (SUMS, BETA, X, BANK, VALUES, BETA, LSE[:3], [], [], *ALL)),
    "attend_backward: float32 lse": ("attend_backward", (SUMS, BETA, X, BANK, VALUES, BETA, BETA, [], [], *ALL)),
}
WORDS, WORD_BANK, COUNTS = torch.zeros(4, 3, dtype=torch.uint8), torch.zeros(5, 3, dtype=torch.uint8), torch.arange(4)
for _name, _more in {
    "hamming_topk": (2, [], []),
    "hamming_scores": (),
    "hamming_radius": (COUNTS, [], []),
    "hamming_radius_count": (COUNTS, [], []),
}.items():
    _rows: dict[str, tuple[Any, ...]] = {
        "floats": (X, WORD_BANK, 20, 1, 1),
        "a float bank": (WORDS, BANK, 20, 1, 1),
        "int8": (WORDS.to(torch.int8), WORD_BANK, 20, 1, 1),
        "widths": (WORDS[:, :2], WORD_BANK, 20, 1, 1),
        "too few bits": (WORDS, WORD_BANK, 16, 1, 1),
        "too many bits": (WORDS, WORD_BANK, 25, 1, 1),
        "no bits": (WORDS, WORD_BANK, 0, 1, 1),
        "2^62 bits": (WORDS, WORD_BANK, 2**62, 1, 1),
        "-2^63 bits": (WORDS, WORD_BANK, -(2**63), 1, 1),
        "planes of x": (WORDS, WORD_BANK, 20, 2, 1),
        "planes of the bank": (WORDS, WORD_BANK, 20, 1, 3),
        "no planes": (WORDS, WORD_BANK, 20, 0, 1),
        "-1 planes": (WORDS, WORD_BANK, 20, 1, -1),
        "2^40 planes": (WORDS, WORD_BANK, 20, 1, 2**40),
        "beyond int32": (WORDS.repeat(1, 15), WORD_BANK.repeat(1, 16), 24, 15, 16),
        "a flat bank": (WORDS, WORD_BANK[0], 20, 1, 1),
        "a batched bank": (WORDS, WORD_BANK[None], 20, 1, 1),
        "a scalar": (WORDS[0, 0], WORD_BANK[:, :1], 8, 1, 1),
    }
    ROWS |= {f"{_name}: {what}": (_name, (*row, *_more)) for what, row in _rows.items()}
    if not _more:
        continue
    for _what, _sets in BAD_SETS.items():
        ROWS[f"{_name}: {_what}"] = (_name, (WORDS, WORD_BANK, 20, 1, 1, _more[0], *_sets))
for _name in ("hamming_radius", "hamming_radius_count"):
    ROWS |= {
        f"{_name}: {what}": (_name, (WORDS, WORD_BANK, 20, 1, 1, radii, [], []))
        for what, radii in {
            "float radii": COUNTS.double(),
            "radii of fewer queries": COUNTS[:3],
            "radii of two dimensions": COUNTS.reshape(2, 2),
            "a radius for all": COUNTS[:1],
        }.items()
    }
ROWS |= {f"hamming_topk: k {k}": ("hamming_topk", (WORDS, WORD_BANK, 20, 1, 1, k, [], [])) for k in (0, -1, -(2**63))}
for _name in SEARCHES:
    ROWS |= {
        f"{_name}: {what}": (_name, (*pair, None, *((2,) if _name == "topk" else ()), 0))
        for what, pair in PAIRS.items()
    }
OFFSETS, TERMS = torch.tensor([0, 2, 3]), torch.tensor([1, 0, 1])
LISTS = (torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1], dtype=torch.int32), gauss(3), 2)
ASKED, WEIGHED = torch.tensor([[1, -1], [0, 1]]), gauss(2, 2)


def _lists(**other: Any) -> tuple[Any, ...]:
    return tuple(other.get(name, t) for name, t in zip(("starts", "documents", "weights", "count"), LISTS, strict=True))


BAD_QUERIES: dict[str, tuple[Any, ...]] = {
    "int32 ids": (ASKED.int(), WEIGHED, *LISTS),
    "fewer weights": (ASKED, WEIGHED[:, :1], *LISTS),
    "weights of another dtype": (ASKED, WEIGHED.double(), *LISTS),
    "scalar ids": (ASKED[0, 0], WEIGHED[0, 0], *LISTS),
    "float16": (ASKED, WEIGHED.half(), *_lists(weights=gauss(3).half())),
    "int32 starts": (ASKED, WEIGHED, *_lists(starts=LISTS[0].int())),
    "no starts": (ASKED, WEIGHED, *_lists(starts=LISTS[0][:0])),
    "starts of two dimensions": (ASKED, WEIGHED, *_lists(starts=LISTS[0][None])),
    "int64 documents": (ASKED, WEIGHED, *_lists(documents=LISTS[1].long())),
    "fewer documents": (ASKED, WEIGHED, *_lists(documents=LISTS[1][:2])),
    "negative count": (ASKED, WEIGHED, *_lists(count=-1)),
    "count of 2^31": (ASKED, WEIGHED, *_lists(count=2**31)),
    "values: term out of range": (ASKED + 1, WEIGHED, *LISTS),
    "values: term -2": (ASKED - 1, WEIGHED, *LISTS),
    "values: starts beyond the lists": (ASKED, WEIGHED, *_lists(starts=torch.tensor([0, 1, 4]))),
    "values: starts of 2^40": (ASKED, WEIGHED, *_lists(starts=torch.tensor([0, 2**40, 2**40 + 1]))),
    "values: starts descend": (ASKED, WEIGHED, *_lists(starts=torch.tensor([0, 3, 1]))),
    "values: negative starts": (ASKED, WEIGHED, *_lists(starts=torch.tensor([-1, 1, 3]))),
}
CHOSEN = torch.zeros(2, 2, dtype=INT64)
for _what, _row in BAD_QUERIES.items():
    ROWS[f"sparse_scores: {_what}"] = ("sparse_scores", _row)
    ROWS[f"sparse_topk: {_what}"] = ("sparse_topk", (*_row, 1, [], []))
    ROWS[f"sparse_backward: {_what}"] = ("sparse_backward", (gauss(2, 2), *_row, None, True, True))
ROWS |= {
    **{f"sparse_topk: k {k}": ("sparse_topk", (ASKED, WEIGHED, *LISTS, k, [], [])) for k in (0, -1, 3, 2**40)},
    "sparse_topk: mask of more documents": ("sparse_topk", (ASKED, WEIGHED, *LISTS, 1, [FULL[:2]], [0, 0])),
    "sparse_topk: bits of fewer queries": (
        "sparse_topk",
        (ASKED[[0, 0, 1]], WEIGHED[[0, 0, 1]], *LISTS, 1, [torch.zeros(2, 1, dtype=torch.uint8)], [1, 0]),
    ),
    "sparse_topk: unknown code": ("sparse_topk", (ASKED, WEIGHED, *LISTS, 1, [], [9, 0])),
    "sparse_backward: grad of fewer queries": (
        "sparse_backward",
        (gauss(1, 2), ASKED, WEIGHED, *LISTS, None, True, True),
    ),
    "sparse_backward: float64 grad": (
        "sparse_backward",
        (gauss(2, 2).double(), ASKED, WEIGHED, *LISTS, None, True, True),
    ),
    "sparse_backward: grad of fewer ranks": (
        "sparse_backward",
        (gauss(2, 1), ASKED, WEIGHED, *LISTS, CHOSEN, True, True),
    ),
    "sparse_backward: int32 indices": (
        "sparse_backward",
        (gauss(2, 2), ASKED, WEIGHED, *LISTS, CHOSEN.int(), True, True),
    ),
    "sparse_backward: flat indices": ("sparse_backward", (gauss(2, 2), ASKED, WEIGHED, *LISTS, CHOSEN[0], True, True)),
    "sparse_backward: values: starts that end early": (
        "sparse_backward",
        (gauss(2, 2), ASKED, WEIGHED, *_lists(starts=torch.tensor([0, 1, 2])), None, True, True),
    ),
    "sparse_invert: int32 offsets": ("sparse_invert", (OFFSETS.int(), TERMS, 2)),
    "sparse_invert: no offsets": ("sparse_invert", (OFFSETS[:0], TERMS, 2)),
    "sparse_invert: offsets of two dimensions": ("sparse_invert", (OFFSETS[None], TERMS, 2)),
    "sparse_invert: float ids": ("sparse_invert", (OFFSETS, TERMS.float(), 2)),
    "sparse_invert: ids of two dimensions": ("sparse_invert", (OFFSETS, TERMS[None], 2)),
    "sparse_invert: int16 ids": ("sparse_invert", (OFFSETS, TERMS.short(), 2)),
    "sparse_invert: values: width": ("sparse_invert", (OFFSETS, TERMS, -1)),
    "sparse_invert: values: id out of range": ("sparse_invert", (OFFSETS, TERMS, 1)),
    "sparse_invert: values: negative id": ("sparse_invert", (OFFSETS, TERMS - 1, 2)),
    "sparse_invert: values: an id twice": ("sparse_invert", (OFFSETS, torch.zeros_like(TERMS), 2)),
    "sparse_invert: values: offsets descend": ("sparse_invert", (torch.tensor([0, 5, 3]), TERMS, 2)),
    "sparse_invert: values: offsets of 2^40": ("sparse_invert", (torch.tensor([0, 2**40, 3]), TERMS, 2)),
    "sparse_invert: values: offsets end early": ("sparse_invert", (OFFSETS[:2], TERMS, 2)),
    "sparse_invert: values: offsets begin late": ("sparse_invert", (OFFSETS + 1, TERMS, 2)),
}


TOKENS, SETS = gauss(4, 3), torch.tensor([0, 3, 4])
BAD_SIDES: dict[str, tuple[Any, ...]] = {
    "rows of three dimensions": (TOKENS[None], SETS, TOKENS, SETS),
    "documents of three dimensions": (TOKENS, SETS, TOKENS[None], SETS),
    "another width": (TOKENS, SETS, gauss(4, 5), SETS),
    "another dtype": (TOKENS, SETS, TOKENS.double(), SETS),
    "integers": (TOKENS.long(), SETS, TOKENS.long(), SETS),
    "int32 query offsets": (TOKENS, SETS.int(), TOKENS, SETS),
    "int32 offsets": (TOKENS, SETS, TOKENS, SETS.int()),
    "no offsets": (TOKENS, SETS, TOKENS, SETS[:0]),
    "offsets of two dimensions": (TOKENS, SETS, TOKENS, SETS[None]),
    "values: offsets end early": (TOKENS, SETS, TOKENS, SETS[:2]),
    "values: offsets begin late": (TOKENS, SETS, TOKENS, SETS[1:]),
    "values: offsets fall": (TOKENS, SETS, TOKENS, torch.tensor([0, 5, 3, 4])),
    "values: query offsets of 2^40": (TOKENS, torch.tensor([0, 2**40, 4]), TOKENS, SETS),
}
for _what, _row in BAD_SIDES.items():
    ROWS[f"maxsim: {_what}"] = ("maxsim", (*_row, 0, True))
    ROWS[f"maxsim_pairs: {_what}"] = ("maxsim_pairs", (*_row, CHOSEN, 0))
    ROWS[f"maxsim_topk: {_what}"] = ("maxsim_topk", (*_row, 1, 0, [], []))
_SIDES = (TOKENS, SETS, TOKENS, SETS)
_CODES, _FACTS = torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(2, 3)
ROWS |= {
    **{f"maxsim: metric {m}": ("maxsim", (*_SIDES, m)) for m in (-1, 99)},
    "maxsim_pairs: int32 indices": ("maxsim_pairs", (*_SIDES, CHOSEN.int(), 0)),
    "maxsim_pairs: flat indices": ("maxsim_pairs", (*_SIDES, CHOSEN[0], 0)),
    "maxsim_pairs: indices of fewer queries": ("maxsim_pairs", (*_SIDES, CHOSEN[:1], 0)),
    "maxsim_pairs: values: no such document": ("maxsim_pairs", (*_SIDES, CHOSEN + 2, 0)),
    "maxsim_pairs: values: document -2": ("maxsim_pairs", (*_SIDES, CHOSEN - 2, 0)),
    **{f"maxsim_topk: k {k}": ("maxsim_topk", (*_SIDES, k, 0, [], [])) for k in (0, -1, 3, 2**40)},
    "maxsim_topk: mask of more documents": ("maxsim_topk", (*_SIDES, 1, 0, [FULL[:2]], [0, 0])),
    "maxsim_topk: codes alone": ("maxsim_topk", (*_SIDES, 1, 0, [], [], _CODES)),
    "maxsim_topk: codes of fewer tokens": ("maxsim_topk", (*_SIDES, 1, 0, [], [], _CODES[:3], _FACTS)),
    "maxsim_topk: int32 codes": ("maxsim_topk", (*_SIDES, 1, 0, [], [], _CODES.int(), _FACTS)),
    "maxsim_topk: facts of fewer documents": ("maxsim_topk", (*_SIDES, 1, 0, [], [], _CODES, _FACTS[:1])),
    "maxsim_topk: float64 facts": ("maxsim_topk", (*_SIDES, 1, 0, [], [], _CODES, _FACTS.double())),
    "maxsim_pack: a distance": ("maxsim_pack", (TOKENS, SETS, 2)),
    "maxsim_pack: int32 offsets": ("maxsim_pack", (TOKENS, SETS.int(), 0)),
    "maxsim_pack: values: offsets fall": ("maxsim_pack", (TOKENS, torch.tensor([0, 5, 3, 4]), 0)),
}


# A fake kernel checks devices, dtypes and shapes; these are values, which may be symbolic.
VALUES = (
    "topk: k",
    "topk_among: k",
    "hamming_topk: k",
    "topk_among: another rank's labels",
    "topk_among: a negative rank of labels",
    "merge_topk: k",
    "repack_: rows out of range",
    "repack_: pack of",
    "lookup: reduce 3",
    "lookup: reduce -1",
    "segment_sum: num_codes",
    "sparse_topk: k",
    "maxsim_topk: k",
)
FAKEABLE = [what for what in ROWS if not what.startswith(VALUES) and ": values: " not in what]
