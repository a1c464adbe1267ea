"""Sets of vectors beside torch and maxsim-cpu: `python -m bench.multivector [--out FILE.json]`.

Every row times ours beside its peers in one interleaved run, and counts the queries whose answer is not the exact one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import maxsim_cpu
import numpy as np
import torch
from torch import Tensor

import vecbank
from bench.selections import OURS, Row, options_of, peak_mib, run

TITLE, K, D = "Sets of vectors", 10, 128
TOKENS, SIZE = 32, 64  # of a query and of a document


def _unit(*shape: int, seed: int) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return rows.div_(rows.norm(dim=-1, keepdim=True))


def _topics(count: int, queries: Tensor) -> Tensor:
    """Documents whose tokens lie about a few of 2000 topics, as those of texts do."""
    draw = torch.Generator().manual_seed(5)
    topics = _unit(2000, D, seed=6)
    topics[: queries.shape[1]] = queries[0]
    own = torch.randint(0, len(topics), (count, 8), generator=draw)
    which = torch.randint(0, 8, (count, SIZE), generator=draw)
    tokens = topics[own.gather(1, which)]
    tokens.add_(torch.randn(tokens.shape, generator=draw), alpha=0.06)
    return tokens.div_(tokens.norm(dim=-1, keepdim=True))


def _exact(queries: Tensor, documents: Tensor) -> Tensor:
    """In float64, some documents at a time."""
    rows = queries[0].double()
    scores = [(part.double() @ rows.T).amax(1).sum(-1) for part in documents.split(2000)]
    return torch.cat(scores).topk(K).indices


def searches(count: int, kind: str) -> Iterator[Row]:
    queries = _unit(1, TOKENS, D, seed=1)
    documents = _unit(count, SIZE, D, seed=2) if kind == "noise" else _topics(count, queries)
    bank = vecbank.DocumentBank(documents).prepare()
    exact = _exact(queries, documents)
    numpy_query, numpy_documents = queries[0].numpy(), documents.numpy()

    def with_torch() -> Tensor:
        scores = torch.bmm(queries, documents.reshape(1, -1, D).mT).reshape(TOKENS, count, SIZE)
        return scores.amax(2).sum(0).topk(K).indices

    def with_maxsim_cpu() -> Any:
        scores = maxsim_cpu.maxsim_scores(numpy_query, numpy_documents)
        return np.argpartition(-scores, K)[:K]

    def of_tensor() -> vecbank.TopK:
        return vecbank.maxsim_topk(queries, documents, K)

    def of_bank() -> vecbank.TopK:
        return bank.topk(queries, K)

    name = f"top {K} of {count:,} documents of {SIZE} tokens, {TOKENS} query tokens, d {D}, {kind}"
    peers = {"torch, bmm + max": with_torch, "maxsim-cpu": with_maxsim_cpu}
    note = f"peak memory: ours {peak_mib(of_tensor):.0f} MiB, torch {peak_mib(with_torch):.0f} MiB"
    ways: dict[str, tuple[Callable[[], vecbank.TopK], str, float]] = {
        "a tensor": (of_tensor, "torch, bmm + max", 1 / 3),
        "a DocumentBank": (of_bank, "maxsim-cpu", 1.0),
    }
    for way, (ours, against, target) in ways.items():
        yield Row(
            f"{name}, {way}",
            against,
            target,
            {OURS: ours, **peers},
            lambda ours=ours: int((ours().indices[0] != exact).any()),
            note=note if way == "a tensor" else f"codes take {count * SIZE * D / 2**20:.0f} MiB",
        )


def training(tokens: int, size: int) -> Row:
    queries, documents = (_unit(32, n, D, seed=n).requires_grad_() for n in (tokens, size))

    def step(scores: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        loss = torch.nn.functional.cross_entropy(scores(), torch.arange(32))
        return torch.autograd.grad(loss, (queries, documents))

    def ours() -> tuple[Tensor, Tensor]:
        return step(lambda: vecbank.maxsim(queries, documents))

    def with_torch() -> tuple[Tensor, Tensor]:
        return step(lambda: torch.einsum("qtd,psd->qpts", queries, documents).amax(3).sum(2))

    def wrong() -> int:
        return sum(int((a - b).abs().max() > 1e-5) for a, b in zip(ours(), with_torch(), strict=True))

    mine, theirs = peak_mib(ours), peak_mib(with_torch)
    return Row(
        f"training step, 32 queries of {tokens} tokens x 32 documents of {size}, d {D}",
        "torch, einsum + amax",
        0.5,
        {OURS: ours, "torch, einsum + amax": with_torch},
        wrong,
        note=f"peak memory: ours {mine:.1f} MiB, torch {theirs:.1f} MiB",
    )


def groups() -> Row:
    x, bank = _unit(4096, D, seed=3), _unit(10_000, D, seed=4)
    offsets = torch.arange(1001) * 10

    def with_torch() -> Tensor:
        return (x @ bank.T).reshape(len(x), 1000, 10).amax(2)

    return Row(
        f"group_max 4096 x 1000 groups of 10 rows, d {D}",
        "torch, mm + amax",
        1.0,
        {OURS: lambda: vecbank.group_max(x, bank, offsets), "torch, mm + amax": with_torch},
        lambda: int(((vecbank.group_max(x, bank, offsets) - with_torch()).abs() > 1e-5).any(1).sum()),
    )


def rows_of(count: int) -> Iterator[Row]:
    yield training(32, 128)
    yield training(128, 128)
    yield groups()
    yield from searches(count, "noise")
    yield from searches(count, "topics")


def main() -> None:
    parser = options_of("multivector", __doc__ or "", budget=8.0)
    parser.add_argument("--documents", type=int, default=100_000, help="of the searches (default: %(default)s)")
    options = parser.parse_args()
    run("multivector", TITLE, rows_of(options.documents), 7, options)


if __name__ == "__main__":
    main()
