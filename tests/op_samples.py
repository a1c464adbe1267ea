"""Arguments for every op under ``torch.ops.vecbank``, for tests that go through all of them."""

from __future__ import annotations

from typing import Any

import torch
from helpers import ALL_CODES, CODE, all_ops, gauss, op
from torch import Tensor

import vecbank

CODES = torch.tensor([[0, 3, 3], [-1, 1, 3], [-1, -1, -1], [2, 0, -1]])
RATIO = ALL_CODES["poincare_ratio"]  # what ranks by the Poincare distance has no name for users
BOTH, EITHER, NOT = -1, -2, -3  # joins of candidate sets
Sets = tuple[list[Tensor], list[int]]


def set_tensors(x: Tensor, bank: Tensor) -> dict[str, list[Tensor]]:
    """The tensors of each kind of candidate set, for queries x (..., d) and a bank (M, d) or (B, M, d)."""
    lead, m = x.shape[:-1], bank.shape[-2]
    n, banks = lead.numel(), bank.shape[0] if bank.dim() == 3 else 1
    labels = torch.arange(banks * m).reshape(banks, m) % 2
    return {
        "mask": [((torch.arange(n * m) % 3) > 0).reshape(*lead, m)],
        "bits": [torch.full((n, -(-m // 8)), 0b10110101, dtype=torch.uint8)],
        "ranges": [torch.tensor([[1, 6]])],
        "exclude": [torch.tensor([[2, -1]]).expand(n, 2)],
        "not_self": [],
        "same": [torch.arange(n).reshape(n, 1) % 2, labels, labels.argsort(stable=True)],
        "rows": [torch.tensor([[0, 3, 3, torch.iinfo(torch.int64).max]])],
    }


KINDS = {"mask": 0, "bits": 1, "ranges": 2, "exclude": 3, "not_self": 4, "same": 5, "rows": 6}


def sets_of(x: Tensor, bank: Tensor, *steps: str | int) -> Sets:
    """Sets and their program, in postfix notation: a kind, or a join."""
    tensors, sets, program = set_tensors(x, bank), list[Tensor](), list[int]()
    for step in steps:
        if isinstance(step, int):
            program += (step, 0)
            continue
        program += (KINDS[step], 1 if step == "not_self" else len(sets))
        sets += tensors[step]
    return sets, program


PROGRAMS: list[tuple[str | int, ...]] = [
    (),
    *((kind,) for kind in KINDS),
    ("bits", "exclude", BOTH),
    ("ranges", NOT, "rows", EITHER, "same", "not_self", BOTH, BOTH),
]


def samples() -> dict[str, list[tuple[Any, ...]]]:
    """Arguments for every op: metrics, packs, masks, dtypes, batches, empties, inputs that require grad."""
    x, bank = gauss(4, 6), gauss(9, 6)
    xg, bg = x.clone().requires_grad_(), bank.clone().requires_grad_()
    batched = gauss(2, 4, 6), gauss(2, 9, 6)
    half = x.bfloat16(), bank
    mask = (torch.arange(36).reshape(4, 9) % 3) > 0
    pairs: list[tuple[Tensor, Tensor]] = [
        (x, bank),
        (xg, bg),
        (xg, bank),
        batched,
        half,
        (x.double(), bank.double()),
    ]
    pairs += [(x[:0], bank), (x[0], bank)]
    table: dict[str, list[tuple[Any, ...]]] = {name: [] for name in all_ops()}
    small = torch.tensor(0.1)  # into the unit ball
    inside = [tuple((t.detach() * small).to(t.dtype).requires_grad_(t.requires_grad) for t in pair) for pair in pairs]
    for a, b in inside:
        for code in (vecbank.METRICS["poincare"], RATIO):
            table["project"].append((a, b, None, code))
            table["nearest"].append((a, b, None, code))
            table["quantize"].append((a, b, None, code))
            table["topk"].append((a, b, None, 3, code))
            values, indices = op("topk")(a.detach(), b.detach(), None, 3, code)
            table["topk_backward"].append((values, a.detach(), b.detach(), indices, code))
            dense = op("project")(a.detach(), b.detach(), None, code)
            table["project_backward"].append((dense, a.detach(), b.detach(), code))
            table["exact_scores"].append((a, b, code, torch.float64))
            table["topk_among"].append((a, b, None, 3, code, [], [], None, False, True))
    for code in CODE.values():
        packed = op("pack")(bank, code)
        table["pack"] += [(bank, code), (batched[1], code), (bank.half(), code), (bank[:0], code)]
        table["repack_"] += [
            (packed.clone(), bank, code, torch.tensor(rows, dtype=torch.int64)) for rows in ([], [2], [8, 0, 8, 3])
        ]
        for a, b in pairs:
            table["project"].append((a, b, None, code))
            table["nearest"].append((a, b, None, code))
            table["quantize"].append((a, b, None, code))
            table["topk"].append((a, b, None, 3, code))
            indices = op("topk")(a.detach(), b.detach(), None, 3, code)[1]
            values = torch.ones(indices.shape, dtype=torch.float64 if a.dtype == torch.float64 else torch.float32)
            table["topk_backward"].append((values, a.detach(), b.detach(), indices, code))
            dense = torch.ones(*a.shape[:-1], b.shape[-2], dtype=a.dtype)
            table["project_backward"].append((dense, a.detach(), b.detach(), code))
            if b.dtype != torch.float64:
                table["project_backward_small"].append((dense, a.detach(), b.detach(), code))
        table["project"] += [
            (x, bank, packed, code),
            (x, bank, packed, code, torch.float64),
            (x, bank[:0], None, code),
        ]
        table["exact_scores"] += [
            (xg, bg, code),
            (*batched, code),
            (*half, code, torch.float64),
            (x, bank, code, torch.float64, torch.tensor([[0, 8, -1]]).expand(4, 3)),
            (xg, bg, code, None, torch.tensor([[0, 8, -1]]).expand(4, 3)),
        ]
        for name in ("project_backward", "project_backward_small"):
            table[name] += [(torch.ones(4, 9), x, bank, code, need, not need) for need in (True, False)]
        table["nearest"] += [
            (x, bank, packed, code),
            (x, bank, packed, code, False),
            (x, bank[:0], None, code),
        ]
        table["quantize"] += [(x, bank, packed, code), (x, bank[:0], None, code)]
        table["topk"] += [(x, bank, packed, 9, code, mask), (xg, bg, None, 2, code, mask, False)]
        for a, b in pairs:
            table["quantize_train"].append((a, b, None, code))
        table["quantize_train"] += [(x, bank, packed, code, mask[:, 1]), (xg, bank, None, code, mask[:, 0])]
    bias, turn = gauss(9), torch.linalg.qr(gauss(6, 6)).Q.contiguous()
    table["pack"].append((bank, CODE["dot"], bias))
    for code in (CODE["cosine"], CODE["l2"]):
        table["pack"] += [(bank, code, None, False, 4, turn, 2), (batched[1], code, None, False, 4, turn, 5)]
        headed = op("pack")(bank, code, None, False, 4, turn, 2)
        table["repack_"].append((headed.clone(), bank, code, torch.tensor([2, 8])))
        table["topk"] += [(x, bank, headed, 1, code), (x, bank, headed, 1, code, mask)]
        table["quantize"].append((x, bank, headed, code))
    table["pack"].append((bank, CODE["dot"], bias, False, 4, turn, 3))
    table["topk"].append((x, bank, op("pack")(bank, CODE["dot"], bias), 4, CODE["dot"], mask, True, bias))
    table["topk"].append((xg, bg, None, 4, CODE["dot"], None, True, gauss(9).requires_grad_()))
    book, packs = gauss(5, 6, seed=2), [op("pack")(bank, CODE["l2"]), op("pack")(bank, CODE["l2"])]
    for code in CODE.values():
        table["residual_quantize"] += [(x, [bank, book], [], code), (xg, [bg, book], [], code)]
    table["residual_quantize"] += [(x, [bank, bank], packs, CODE["l2"]), (half[0], [bank], [], CODE["l2"])]
    table["residual_quantize"] += [(x[:0], [bank], [], 2), (x.double(), [bank.double()], [], 2), (x, [bank[:0]], [], 2)]
    parts = torch.stack([bank[:, :3], bank[:, 3:]])
    parts_packed = op("pack")(parts, CODE["sqeuclidean"])
    table["product_quantize"] += [(t, parts, parts_packed) for t in (x, x[0], x[:0], x.half())]
    table["product_quantize"].append((gauss(2, 3, 6), parts, None))
    for estimator, dtype in enumerate((torch.float32, torch.float64, torch.bfloat16)):
        table["quantize_backward"].append((*(t.to(dtype) for t in (x, x + 1, x - 2)), torch.tensor(0.3), estimator))
    table["quantize_backward"] += [(x, x, x, torch.tensor(0.3), 2), (x[:0], x[:0], x[:0], torch.tensor([0.3]), 1)]
    table["quantize_backward"].append((x.t(), x.t(), x.t(), torch.tensor(0.3).double(), 1))
    weights = gauss(4, 3)
    for reduce in range(3):
        table["lookup"] += [(CODES, bank, None, reduce), (CODES, bg, weights.requires_grad_(), reduce)]
        table["lookup"] += [(CODES[:0], bank, None, reduce), (CODES - CODES - 1, bank[:0], None, reduce)]
    flat = CODES.flatten()
    table["segment_sum"] += [(gauss(12, 5), flat, 4, None), (gauss(0, 5), flat[:0], 4, None)]
    table["segment_sum"] += [(gauss(12, 5).requires_grad_(), flat, 4, gauss(12).requires_grad_())]
    table["segment_sum"] += [(xg, CODES, 4, weights)]
    table["lookup_dot"] += [
        (x, CODES, bank),
        (gauss(4, 3, 6), CODES, bank),
        (x.double(), CODES, bank.double()),
    ]
    _selections(table, pairs)
    _attend(table)
    _sparse(table)
    _bits(table)
    _maxsim(table)
    return table


def _bits(table: dict[str, list[tuple[Any, ...]]]) -> None:
    """Searches of packed bits: widths, planes, sets, empties."""
    for width, p, q, n, m in ((12, 1, 1, 4, 9), (64, 2, 1, 9, 40), (100, 1, 2, 3, 9), (9, 1, 1, 0, 9), (9, 1, 1, 4, 0)):
        size = (width + 7) // 8
        x = torch.arange(n * p * size, dtype=torch.int64).mul(37).remainder(256).byte().reshape(n, p * size)
        bank = torch.arange(m * q * size, dtype=torch.int64).mul(101).remainder(256).byte().reshape(m, q * size)
        sizes, radii = (width, p, q), torch.full((n,), width // 2)
        table["hamming_scores"].append((x, bank, *sizes))
        for program in PROGRAMS if m == 9 else [()]:
            sets = sets_of(x, bank, *program)
            table["hamming_topk"] += [(x, bank, *sizes, k, *sets) for k in (1, 11)]
            table["hamming_radius"].append((x, bank, *sizes, radii, *sets))
            table["hamming_radius_count"].append((x, bank, *sizes, radii, *sets))


def _selections(table: dict[str, list[tuple[Any, ...]]], pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Searches among candidate sets, within a radius, and the merge of parts."""
    turn = 0
    for code in CODE.values():
        radius = {0: -0.5, 1: -0.2, 3: 9.0}.get(code, 3.0)
        for a, b in pairs:
            turn += 1
            sets = sets_of(a, b, *PROGRAMS[turn % len(PROGRAMS)])
            radii = torch.full((a.shape[:-1].numel(),), radius, dtype=torch.float64)
            table["topk_among"].append((a, b, None, 3, code, *sets))
            table["radius"].append((a, b, None, radii, code, *sets))
            table["radius_count"].append((a, b, None, radii, code, *sets))
    (x, bank), (xg, bg), batched = pairs[0], pairs[1], pairs[3]
    radii = torch.tensor([-1.0, 0.5, torch.inf, -torch.inf], dtype=torch.float64)
    for code in CODE.values():
        packed = op("pack")(bank, code)
        sets = sets_of(x, bank, *PROGRAMS[code + 3])
        table["topk_among"] += [(x, bank, packed, 9, code, *sets), (x, bank, packed, 4, code, *sets, None, True)]
        table["radius"] += [(x, bank, packed, radii, code, *sets), (x, bank[:0], None, radii, code, [], [])]
        table["radius_count"] += [(x, bank, packed, radii, code, *sets), (x, bank[:0], None, radii, code, [], [])]
        if code > 1:  # distances
            worst = (None, False, True)
            table["topk_among"] += [(x, bank, None, 9, code, *sets, *worst), (xg, bg, None, 2, code, [], [], *worst)]
            table["topk_among"].append((*batched, None, 3, code, *sets_of(*batched, "same"), *worst))
    table["topk_among"] += [(x, bank, None, 3, 0, *sets_of(x, bank, *program)) for program in PROGRAMS]
    table["topk_among"].append((xg, bg, None, 4, 0, *sets_of(x, bank, "bits"), gauss(9).requires_grad_()))
    table["radius"].append((x, bank, None, radii, 0, *sets_of(x, bank, "rows"), gauss(9)))
    table["radius_count"].append((x, bank, None, radii, 0, *sets_of(x, bank, "rows"), gauss(9)))
    indices = torch.tensor([[3, -1, 0, 7], [1, 2, 3, 4], [-1, -1, -1, -1]])
    keys = torch.tensor([[0.5, 9.0, 0.5, -1.0], [-torch.inf, torch.inf, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).double()
    for code in CODE.values():
        found = keys if code < 2 else -keys.abs()  # of a distance none is positive
        table["merge_topk"] += [(found, indices, 2, code, False), (found, indices, 4, code, True)]
    table["merge_topk"] += [(keys[0], indices[0], 3, 0, False), (keys[:0], indices[:0], 1, 1, True)]
    table["merge_topk"].append((keys.t(), indices.t(), 3, 0, True))


def _attend(table: dict[str, list[tuple[Any, ...]]]) -> None:
    """Sums weighted by a softmax: dtypes, sets, values or none, batches, empties, inputs that require grad."""
    x, bank, values = gauss(4, 6), gauss(9, 6), gauss(9, 3)
    batched = gauss(2, 4, 6), gauss(2, 9, 6), gauss(2, 9, 3)
    half = tuple(t.half() for t in (x, bank, values))
    empty = [(x[:0], bank, values), (x, bank[:0], values[:0]), (x[:, :0], bank[:, :0], values[:, :0])]
    for i, (a, b, v) in enumerate([(x, bank, values), batched, half, (x.bfloat16(), bank, values), *empty]):
        beta = torch.linspace(-1, 2, a.shape[:-1].numel())
        for program in PROGRAMS if i == 0 else PROGRAMS[i : i + 1]:
            sets = sets_of(a, b, *program) if b.shape[-2] == 9 else ([], [])
            own = [t.clone().requires_grad_() for t in (a, b, v, beta)]
            table["attend"] += [(*own, *sets), (a, b, None, beta, *sets)]
            out, lse = op("attend")(a, b, v, beta, *sets)
            needs = [(True,) * 4, (i != 1, i != 2, i != 3, i != 4)]
            table["attend_backward"] += [(out, lse.float(), a, b, v, beta, lse, *sets, *need) for need in needs]
            table["attend_backward"].append((None, lse.float(), a, b, None, beta, lse, *sets, True, True, False, True))


def _maxsim(table: dict[str, list[tuple[Any, ...]]]) -> None:
    """Sets of rows: five documents, one of them empty, for three queries, one of them empty."""
    query_offsets, offsets = torch.tensor([0, 2, 2, 5]), torch.tensor([0, 3, 3, 4, 9, 11])
    indices = torch.tensor([[4, -1, 0], [1, 1, 2], [3, 2, 1]])
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        rows, bank = gauss(5, 7, dtype=dtype), gauss(11, 7, seed=1, dtype=dtype)
        for code in CODE.values():
            for q, d in ((rows, bank), (rows.clone().requires_grad_(), bank.clone().requires_grad_())):
                sides = (q, query_offsets, d, offsets)
                table["maxsim"] += [(*sides, code), (*sides, code, True)]
                table["maxsim_pairs"] += [(*sides, indices, code, True), (*sides, indices[:, :0], code)]
            sides = (rows, query_offsets, bank, offsets)
            sets = sets_of(gauss(3, 1), gauss(5, 1), *PROGRAMS[code])
            table["maxsim_topk"] += [(*sides, 2, code, *sets), (*sides, 5, code, [], [])]
            if code < 2:
                packed = op("maxsim_pack")(bank, offsets, code)
                table["maxsim_topk"].append((*sides, 2, code, *sets, *packed))
                table["maxsim_pack"].append((bank, offsets, code))
    none = torch.zeros(1, dtype=torch.int64)
    for q, d in (((rows[:0], none), (bank, offsets)), ((rows, query_offsets), (bank[:0], none))):
        table["maxsim"].append((*q, *d, 0, True))
        table["maxsim_pairs"].append((*q, *d, torch.full((q[1].shape[0] - 1, 2), -1), 0, True))
    table["maxsim_pack"].append((bank.t(), torch.tensor([0, 3, 7]), 1))


def _sparse(table: dict[str, list[tuple[Any, ...]]]) -> None:
    """Retrieval with sparse vectors: six documents over five terms, one of them empty, and a term that none has."""
    offsets, ids = torch.tensor([0, 2, 2, 5, 6, 8, 9]), torch.tensor([4, 0, 2, 4, 1, 4, 0, 1, 2])
    starts, documents, _ = op("sparse_invert")(offsets, ids, 6)
    table["sparse_invert"] += [(offsets, ids, 6), (offsets, ids.int(), 5), (offsets[:1], ids[:0], 0)]
    table["sparse_invert"].append((torch.zeros(4, dtype=torch.int64), ids[:0], 3))
    terms, weights = torch.tensor([[4, 0, -1], [2, 2, 1], [-1, -1, -1], [3, 5, 4]]), gauss(9)
    asked = gauss(4, 3)
    for dtype in (torch.float32, torch.float64):
        w, v = asked.to(dtype), weights.to(dtype)
        queries = [(terms, w), (terms.t(), w.t()), (terms[0], w[0]), (terms[:0], w[:0]), (terms[:, :0], w[:, :0])]
        queries += [(terms.reshape(2, 2, 3), w.reshape(2, 2, 3)), (terms, w.clone().requires_grad_())]
        for i, (t, u) in enumerate(queries):
            lists = (starts, documents, v.clone().requires_grad_() if i % 2 == 0 else v, 6)
            sets = sets_of(u, gauss(6, 1), *PROGRAMS[i])
            table["sparse_scores"].append((t, u, *lists))
            table["sparse_topk"] += [(t, u, *lists, 3, [], []), (t, u, *lists, 6, *sets)]
            u, lists = u.detach(), (starts, documents, v, 6)
            found = op("sparse_topk")(t, u, *lists, 4, *sets)
            table["sparse_backward"] += [
                (found[0].nan_to_num(), t, u, *lists, found[1], True, True),
                (op("sparse_scores")(t, u, *lists), t, u, *lists, None, i != 1, i != 2),
            ]
