"""Packed bits against faiss: `python -m bench.bits [--out FILE.json]`, with VECBANK_ISA to choose an instruction set.

Every row times ours beside faiss' binary index in one interleaved run, and counts the queries whose distances differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

import vecbank
from bench.selections import OURS, Row, options_of, run
from vecbank import bits, codes

FAISS = "faiss, IndexBinaryFlat"
TITLE = "Packed bits"


def words(rows: int, width: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (rows, width // 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def search(n: int, m: int, width: int, k: int, target: float) -> Row:
    x, bank = words(n, width, 1), words(m, width, 2)
    index = faiss.IndexBinaryFlat(width)
    index.add(bank.numpy())
    name = f"nearest {n:,} x {m:,}" if k == 1 else f"topk {n:,} x {m:,}, k {k}"

    def ours() -> Any:
        return bits.nearest(x, bank) if k == 1 else bits.topk(x, bank, k)

    return Row(
        f"{name}, {width} bits",
        FAISS,
        target,
        {OURS: ours, FAISS: lambda: index.search(x.numpy(), k)},
        lambda: int((ours().values.reshape(n, k).numpy() != index.search(x.numpy(), k)[0]).any(1).sum()),
    )


def radius(n: int, m: int, width: int, r: int) -> Row:
    x, bank = words(n, width, 1), words(m, width, 2)
    index = faiss.IndexBinaryFlat(width)
    index.add(bank.numpy())

    def wrong() -> int:
        limits = index.range_search(x.numpy(), r + 1)[0]  # faiss' radius is without its end
        return int((np.diff(limits) != bits.radius_count(x, bank, r).numpy()).sum())

    hits = len(bits.radius(x, bank, r).indices) / n
    return Row(
        f"radius {n:,} x {m:,}, {width} bits, r {r}, {hits:.0f} hits a query",
        FAISS,
        0.7,
        {
            OURS: lambda: bits.radius(x, bank, r),
            FAISS: lambda: index.range_search(x.numpy(), r + 1),
            "radius_count": lambda: bits.radius_count(x, bank, r),
        },
        wrong,
    )


def planes(n: int, m: int, d: int, count: int) -> Row:
    """Against the search among the decoded vectors, which are 32 / planes times as much to read."""
    draws = torch.Generator().manual_seed(3)
    x, rows = torch.randn(n, d, generator=draws), torch.randn(m, d, generator=draws)
    a, b = codes.pack_signs(x, count), codes.pack_signs(rows, count)
    values = codes.unpack_signs(a, d, count)
    bank = vecbank.Bank(codes.unpack_signs(b, d, count), "dot").prepare("search")
    given: dict[str, Any] = {"bits": d, "x_planes": count, "bank_planes": count}
    return Row(
        f"topk {n:,} x {m:,}, {d} bits in {count} planes, k 10",
        "topk of the decoded vectors",
        1.0,
        {OURS: lambda: bits.topk(a, b, 10, **given), "topk of the decoded vectors": lambda: bank.topk(values, 10)},
        lambda: int((bits.topk(a, b, 10, **given).indices != bank.topk(values, 10).indices).any(1).sum()),
    )


def rows_of() -> Iterator[Row]:
    yield search(256, 1_000_000, 256, 10, 0.7)
    yield search(65_536, 8192, 64, 1, 0.7)
    for n in (1, 4, 8):
        yield search(n, 1_000_000, 256, 10, 1.0)
    yield search(256, 200_000, 1024, 10, 0.9)
    yield search(256, 200_000, 256, 100, 0.9)
    yield radius(256, 200_000, 64, 16)
    yield planes(256, 200_000, 256, 2)


def main() -> None:
    run("bits", TITLE, rows_of(), 9, options_of("bits", __doc__ or "").parse_args())


if __name__ == "__main__":
    main()
