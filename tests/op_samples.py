"""Arguments for every op under ``torch.ops.vecbank``, for tests that go through all of them."""

from __future__ import annotations

from typing import Any

import torch
from helpers import CODE, all_ops, gauss, op
from torch import Tensor

CODES = torch.tensor([[0, 3, 3], [-1, 1, 3], [-1, -1, -1], [2, 0, -1]])


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
    return table
