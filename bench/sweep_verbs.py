"""The shapes of the verbs in the sweep, each beside the torch expression that people write for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import vecbank
from bench.timing import Call
from vecbank import codes, embedding

DTYPES = {"": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Shape:
    """One call of ours beside one expression of torch's; `make` draws the inputs and prepares what is fixed."""

    verb: str
    name: str
    make: Callable[[torch.Generator], tuple[Call, Call]]
    short: bool = False  # in the reduced sweep too
    peer: str = "torch"


def _draw(gen: torch.Generator, *shape: int, dtype: str = "") -> Tensor:
    return torch.randn(*shape, generator=gen).to(DTYPES[dtype])


def scores(x: Tensor, bank: Tensor, metric: str, unit: Tensor | None = None) -> Tensor:
    """What people write for all pairs; `unit` holds the bank's rows at length 1 where the bank is fixed."""
    if metric == "dot":
        return x @ bank.mT
    if metric == "cosine":
        return F.normalize(x, dim=-1) @ (F.normalize(bank, dim=-1) if unit is None else unit).mT
    if metric == "l1":
        return torch.cdist(x, bank, p=1.0)
    wide = x.dtype in (torch.float32, torch.float64)
    distance = torch.cdist(x, bank) if wide else torch.cdist(x.float(), bank.float())  # cdist takes no 16 bits
    return distance.square() if metric == "sqeuclidean" else distance


@dataclass(frozen=True)
class Search:
    """The inputs of a search or projection; `batch` problems where it is not 0."""

    n: int
    m: int
    d: int
    metric: str = "dot"
    dtype: str = ""
    batch: int = 0
    tensor: bool = False  # the bank is a plain tensor

    @property
    def text(self) -> str:
        sizes = f"{self.n:,} x {self.m:,}, d {self.d:,}"
        if self.batch:
            sizes = f"{self.batch:,} x ({sizes})"
        kind = "tensor" if self.tensor or self.batch else "Bank"
        return " ".join(filter(None, (sizes, self.metric, self.dtype, kind)))

    def draw(self, gen: torch.Generator) -> tuple[Tensor, Tensor, Any, Callable[[Tensor], Tensor]]:
        """x, the vectors, what ours is called with, and the expression of all scores."""
        lead = (self.batch,) if self.batch else ()
        x, vectors = (_draw(gen, *lead, rows, self.d, dtype=self.dtype) for rows in (self.n, self.m))
        fixed = not (self.tensor or self.batch)
        bank = vecbank.Bank(vectors, self.metric) if fixed else vectors
        unit = F.normalize(vectors, dim=-1) if fixed and self.metric == "cosine" else None
        return x, vectors, bank, lambda x: scores(x, vectors, self.metric, unit)


def topk_calls(search: Search, k: int, allowed: float | None, gen: torch.Generator) -> tuple[Call, Call]:
    x, _, bank, theirs = search.draw(gen)
    largest = search.metric in ("dot", "cosine")
    k = k or search.m
    if allowed is None:
        return (
            lambda: vecbank.topk(x, bank, k, search.metric),
            lambda: theirs(x).topk(k, largest=largest),
        )
    mask = torch.rand(search.n, search.m, generator=gen) < allowed
    worst = -torch.inf if largest else torch.inf
    return (
        lambda: vecbank.topk(x, bank, k, search.metric, allowed=mask),
        lambda: theirs(x).masked_fill(~mask, worst).topk(k, largest=largest),
    )


def nearest_calls(search: Search, gen: torch.Generator) -> tuple[Call, Call]:
    x, _, bank, theirs = search.draw(gen)
    reduced = torch.max if search.metric in ("dot", "cosine") else torch.min
    return lambda: vecbank.nearest(x, bank, search.metric), lambda: reduced(theirs(x), -1)


def quantize_calls(search: Search, gen: torch.Generator) -> tuple[Call, Call]:
    x, vectors, bank, theirs = search.draw(gen)
    reduced = torch.argmax if search.metric in ("dot", "cosine") else torch.argmin

    def expression() -> tuple[Tensor, Tensor]:
        found = reduced(theirs(x), -1)
        return vectors[found], found

    return lambda: vecbank.quantize(x, bank, search.metric), expression


def _quantize_train(search: Search, gen: torch.Generator) -> tuple[Call, Call]:
    """The step of an EMA codebook, as it is written: one-hot counts and sums."""
    x, vectors, bank, theirs = search.draw(gen)

    def expression() -> tuple[Tensor, ...]:
        found = theirs(x).argmin(-1)
        quantized = vectors[found]
        one_hot = F.one_hot(found, search.m).to(x.dtype)
        return quantized, found, F.mse_loss(quantized, x), one_hot.sum(0), one_hot.mT @ x

    return lambda: vecbank.quantize_train(x, bank, search.metric), expression


def project_calls(search: Search, gen: torch.Generator) -> tuple[Call, Call]:
    x, _, bank, theirs = search.draw(gen)
    return lambda: vecbank.project(x, bank, search.metric), lambda: theirs(x)


def _project_step(search: Search, gen: torch.Generator) -> tuple[Call, Call]:
    """Forward and backward, to x and to the bank."""
    x, vectors, _, _ = search.draw(gen)
    x.requires_grad_()
    vectors.requires_grad_()
    upstream = torch.randn(*x.shape[:-1], search.m, generator=gen).to(x.dtype)

    def step(forward: Callable[[Tensor, Tensor, str], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(x, vectors, search.metric), (x, vectors), upstream)

    return lambda: step(vecbank.project), lambda: step(scores)


def _topk_step(search: Search, k: int, gen: torch.Generator) -> tuple[Call, Call]:
    """The gradient of the k best values, to x and to the bank."""
    x, vectors, _, _ = search.draw(gen)
    x.requires_grad_()
    vectors.requires_grad_()
    upstream, largest = _draw(gen, search.n, k), search.metric in ("dot", "cosine")
    return (
        lambda: torch.autograd.grad(vecbank.topk(x, vectors, k, search.metric).values, (x, vectors), upstream),
        lambda: torch.autograd.grad(
            scores(x, vectors, search.metric).topk(k, largest=largest).values, (x, vectors), upstream
        ),
    )


def _quantize_step(search: Search, gen: torch.Generator) -> tuple[Call, Call]:
    """Straight through to x."""
    x, vectors, bank, theirs = search.draw(gen)
    x.requires_grad_()
    upstream = _draw(gen, search.n, search.d)

    def expression() -> Tensor:
        return x + (vectors[theirs(x.detach()).argmin(-1)] - x).detach()

    return (
        lambda: torch.autograd.grad(vecbank.quantize(x, bank, search.metric).quantized, x, upstream),
        lambda: torch.autograd.grad(expression(), x, upstream),
    )


def _search_shapes() -> Iterator[Shape]:
    S = Search

    def project(search: Search, short: bool = False) -> Shape:
        return Shape("project", f"project {search.text}", partial(project_calls, search), short)

    def step(search: Search, short: bool = False) -> Shape:
        return Shape("project", f"project step {search.text}", partial(_project_step, search), short)

    def topk(search: Search, k: int, short: bool = False, allowed: float | None = None) -> Shape:
        masked = "" if allowed is None else f", {100 * allowed:g} % allowed"
        count = "M" if k == 0 else f"{k:,}"
        return Shape("topk", f"topk {search.text} k {count}{masked}", partial(topk_calls, search, k, allowed), short)

    def topk_step(search: Search, k: int) -> Shape:
        return Shape("topk", f"topk step {search.text} k {k}", partial(_topk_step, search, k))

    def nearest(search: Search, short: bool = False) -> Shape:
        return Shape("nearest", f"nearest {search.text}", partial(nearest_calls, search), short)

    def quantize(search: Search, short: bool = False) -> Shape:
        return Shape("quantize", f"quantize {search.text}", partial(quantize_calls, search), short)

    def quantize_step(search: Search) -> Shape:
        return Shape("quantize", f"quantize step {search.text}", partial(_quantize_step, search))

    yield from (
        project(S(1, 64, 16, "cosine"), True),
        project(S(64, 64, 64, "cosine"), True),
        project(S(64, 64, 64, "cosine", tensor=True)),
        project(S(1, 1000, 256, "cosine")),
        project(S(1, 100_000, 64, "cosine"), True),
        project(S(1, 100_000, 64, "cosine", tensor=True), True),
        project(S(1, 100_000, 768, "dot")),
        project(S(16, 100_000, 128, "cosine")),
        project(S(1000, 300, 256, "cosine"), True),
        project(S(1000, 300, 256, "cosine", tensor=True)),
        project(S(10_000, 500, 384, "cosine")),
        project(S(1_000_000, 1, 64, "cosine"), True),
        project(S(200_000, 10, 32, "cosine")),
        project(S(200_000, 3, 256, "dot")),
        project(S(3000, 3000, 1, "dot"), True),
        project(S(3000, 3000, 3, "l2")),
        project(S(3000, 3000, 16, "sqeuclidean")),
        project(S(4096, 4096, 768, "dot")),
        project(S(500, 2000, 32, "l1")),
        project(S(2000, 1000, 768, "cosine", "bf16"), True),
        project(S(2000, 1000, 768, "cosine", "fp16"), True),
        project(S(16, 1000, 768, "dot", "bf16")),
        project(S(1000, 1000, 128, "cosine", "float64"), True),
        project(S(1000, 1000, 128, "l2", "float64")),
        project(S(4, 500, 200_000, "cosine", tensor=True), True),
        project(S(4, 20, 5_000_000, "dot", tensor=True)),
        project(S(200, 100, 64, "cosine", batch=64), True),
        project(S(10, 20, 16, "cosine", batch=4096), True),
        project(S(10, 20, 16, "l2", batch=4096)),
        project(S(197, 197, 64, "dot", batch=12)),
        project(S(1024, 1024, 64, "dot", batch=8)),
        step(S(64, 64, 64, "cosine"), True),
        step(S(64, 64, 64, "dot")),
        step(S(64, 64, 64, "l2")),
        step(S(10, 20, 16, "l2", batch=512)),
        step(S(5000, 512, 128, "l2"), True),
        step(S(5000, 512, 128, "sqeuclidean")),
        step(S(5000, 512, 128, "cosine"), True),
        step(S(5000, 512, 128, "dot")),
        step(S(5000, 512, 128, "dot", "bf16")),
        step(S(2000, 512, 16, "l1")),
        step(S(200, 100, 64, "cosine", batch=64)),
        step(S(200, 100, 64, "l2", batch=64)),
    )
    yield from (
        topk(S(1, 64, 16), 1, True),
        topk(S(1, 1000, 128, "cosine"), 10),
        topk(S(1, 100_000, 64, "cosine"), 10, True),
        topk(S(1, 100_000, 64, "cosine", tensor=True), 10, True),
        topk(S(1, 100_000, 128, "l2", tensor=True), 10),
        topk(S(1, 1_000_000, 128), 10),
        topk(S(1, 1_000_000, 128), 1000, True),
        topk(S(8, 100_000, 128), 10),
        topk(S(1000, 100, 64, "l2"), 1),
        topk(S(1_000_000, 10, 16), 3, True),
        topk(S(2000, 50, 64), 0, True),
        topk(S(20_000, 64, 64), 8, True),
        topk(S(20_000, 64, 64, "cosine"), 2),
        topk(S(20_000, 200, 32), 30, True),
        topk(S(20_000, 200, 32, "l2"), 30),
        topk(S(4096, 8, 128), 2),
        topk(S(8192, 256, 1024), 8),
        topk(S(1024, 100_000, 128), 10, True),
        topk(S(1024, 100_000, 128), 100, True),
        topk(S(1024, 100_000, 128), 1000, True),
        topk(S(1024, 100_000, 128, tensor=True), 10_000),
        topk(S(1024, 100_000, 128, "l2"), 10_000),
        topk(S(500, 20_000, 64), 500),
        topk(S(500, 20_000, 64), 2499),
        topk(S(500, 20_000, 64), 2501),
        topk(S(500, 20_000, 64, tensor=True), 2501),
        topk(S(50, 20_000, 64), 0, True),
        topk(S(50, 20_000, 64, "l2"), 0),
        topk(S(1024, 5000, 64), 0),
        topk(S(1, 50_000, 64), 0),
        topk(S(1000, 10_000, 1), 10),
        topk(S(1000, 10_000, 3, "l2"), 10),
        topk(S(10, 20, 16, "l2", batch=4096), 3, True),
        topk(S(10, 20, 16, "dot", batch=4096), 3),
        topk(S(200, 100, 64, "cosine", batch=64), 5),
        topk(S(1024, 1024, 3, "l2", batch=8), 16),
        topk(S(1024, 1024, 64, "l2", batch=8), 20),
        topk(S(16, 2000, 65_536), 10, True),
        topk(S(16, 2000, 65_536, tensor=True), 10),
        topk(S(500, 1000, 65_536, tensor=True), 10),
        topk(S(256, 20_000, 4096, "cosine"), 10),
        topk(S(1024, 20_000, 128, "dot", "bf16"), 10),
        topk(S(1024, 20_000, 128, "dot", "fp16"), 10),
        topk(S(1, 100_000, 128, "dot", "bf16"), 10, True),
        topk(S(1, 100_000, 128, "dot", "fp16"), 10),
        topk(S(1024, 20_000, 128, "dot", "float64"), 10, True),
        topk(S(1, 100_000, 128, "dot", "float64"), 10),
        topk(S(1024, 20_000, 128, "dot", "float64", tensor=True), 10),
        topk(S(200, 5000, 32, "l1"), 10),
        topk(S(500, 40_000, 64), 10, True, allowed=0.5),
        topk(S(500, 40_000, 64), 10, True, allowed=0.01),
        topk(S(500, 40_000, 64), 10, allowed=0.001),
        topk(S(1, 40_000, 64), 10, allowed=0.1),
        topk_step(S(16, 64, 16, tensor=True), 4),
        topk_step(S(16, 512, 64, "l2", tensor=True), 8),
        topk_step(S(1000, 512, 64, "cosine", tensor=True), 8),
        topk_step(S(5000, 1000, 128, tensor=True), 32),
    )
    yield from (
        nearest(S(1, 1, 1, "l2"), True),
        nearest(S(1, 512, 64, "l2")),
        nearest(S(1, 100_000, 64, "l2")),
        nearest(S(1, 100_000, 64, "l2", "bf16", tensor=True), True),
        nearest(S(16, 512, 64, "l2", tensor=True), True),
        nearest(S(20_000, 16, 512, "dot"), True),
        nearest(S(20_000, 16, 512, "l2", tensor=True)),
        nearest(S(200_000, 2, 8, "l2"), True),
        nearest(S(65_536, 512, 32, "l2"), True),
        nearest(S(65_536, 1024, 64, "l2", tensor=True)),
        nearest(S(8192, 8192, 256, "l2")),
        nearest(S(4096, 1024, 64, "l2", "bf16")),
        nearest(S(4096, 1024, 64, "l2", "fp16", tensor=True)),
        nearest(S(4096, 1024, 64, "l2", "float64"), True),
        nearest(S(4096, 1024, 64, "cosine", tensor=True)),
        nearest(S(16, 2000, 65_536, "l2", tensor=True), True),
        nearest(S(16, 2000, 65_536, "l2")),
        nearest(S(4, 20, 5_000_000, "l2", tensor=True)),
        nearest(S(256, 64, 40_000, "l2", tensor=True)),
        nearest(S(2048, 2048, 3, "l2", batch=8), True),
        nearest(S(64, 16, 8, "l2", batch=1024)),
        quantize(S(16, 512, 64, "l2", tensor=True), True),
        quantize(S(65_536, 512, 64, "l2"), True),
        quantize(S(8192, 16, 4, "l2")),
        quantize_step(S(16, 64, 16, "l2")),
        quantize_step(S(16, 512, 64, "l2", tensor=True)),
        quantize_step(S(1000, 512, 64, "l2", tensor=True)),
        Shape("quantize", "quantize_train 8,192 x 1,024, d 64 l2 tensor",
              partial(_quantize_train, S(8192, 1024, 64, "l2", tensor=True)), True),
        Shape("quantize", "quantize_train 16 x 512, d 64 l2 tensor",
              partial(_quantize_train, S(16, 512, 64, "l2", tensor=True))),
    )  # fmt: skip


def _lookup(n: int, m: int, d: int, dtype: str, gen: torch.Generator) -> tuple[Call, Call]:
    table, ids = _draw(gen, m, d, dtype=dtype), torch.randint(m, (n,), generator=gen)
    return lambda: vecbank.lookup(ids, table), lambda: F.embedding(ids, table)


def _lookup_step(n: int, m: int, d: int, gen: torch.Generator) -> tuple[Call, Call]:
    table, ids = _draw(gen, m, d).requires_grad_(), torch.randint(m, (n,), generator=gen)
    upstream = _draw(gen, n, d)

    def step(forward: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(ids, table), table, upstream)

    return lambda: step(vecbank.lookup), lambda: step(F.embedding)


def _bags(n: int, bag: int, m: int, d: int, gen: torch.Generator) -> tuple[Call, Call]:
    table, ids = _draw(gen, m, d), torch.randint(m, (n, bag), generator=gen)
    weights = _draw(gen, n, bag)
    return (
        lambda: vecbank.lookup(ids, table, weights, reduce="sum"),
        lambda: F.embedding_bag(ids, table, per_sample_weights=weights, mode="sum"),
    )


def _segment_sum(n: int, m: int, d: int, gen: torch.Generator) -> tuple[Call, Call]:
    x, ids = _draw(gen, n, d), torch.randint(m, (n,), generator=gen)
    return lambda: vecbank.segment_sum(x, ids, m), lambda: x.new_zeros(m, d).index_add_(0, ids, x)


def _residual(n: int, stages: int, m: int, d: int, gen: torch.Generator) -> tuple[Call, Call]:
    x, books = _draw(gen, n, d), [0.7**s * _draw(gen, m, d) for s in range(stages)]
    banks = [vecbank.Bank(book, "l2") for book in books]

    def expression() -> tuple[Tensor, Tensor]:
        rest, found = x, []
        for book in books:
            found.append(torch.cdist(rest, book).argmin(1))
            rest = rest - book[found[-1]]
        return x - rest, torch.stack(found, -1)

    return lambda: vecbank.residual.quantize(x, banks), expression


def _pq_encode(n: int, parts: int, m: int, w: int, gen: torch.Generator) -> tuple[Call, Call]:
    x, books = _draw(gen, n, parts * w), _draw(gen, parts, m, w)
    return (
        lambda: vecbank.pq.encode(x, books),
        lambda: torch.cdist(x.view(n, parts, w).transpose(0, 1), books).argmin(-1).T,
    )


def _pq_scores(q: int, n: int, parts: int, gen: torch.Generator) -> tuple[Call, Call]:
    tables, found = _draw(gen, q, parts, 256), torch.randint(256, (n, parts), generator=gen)

    def expression() -> Tensor:
        return sum(tables[:, part, found[:, part]] for part in range(parts))  # type: ignore[return-value]

    return lambda: vecbank.pq.scores(tables, found), expression


def _sparse_encode(n: int, m: int, d: int, k: int, gen: torch.Generator) -> tuple[Call, Call]:
    x, weight, bias = _draw(gen, n, d), _draw(gen, m, d), _draw(gen, m)
    bank = vecbank.Bank(weight, "dot", bias=bias)
    return (
        lambda: vecbank.sparse.encode(x, bank, k=k),
        lambda: torch.addmm(bias, x, weight.T).relu_().topk(k),
    )


def _sparse_decode(n: int, m: int, d: int, k: int, gen: torch.Generator) -> tuple[Call, Call]:
    values, decoder = _draw(gen, n, k), _draw(gen, m, d)
    found = torch.randint(m, (n, k), generator=gen)
    return (
        lambda: vecbank.sparse.decode(values, found, decoder),
        lambda: F.embedding_bag(found, decoder, per_sample_weights=values, mode="sum"),
    )


def _kmeans(n: int, k: int, d: int, gen: torch.Generator) -> tuple[Call, Call]:
    """Ten iterations from given centroids, as a loop in torch has them."""
    x = _draw(gen, n, d)
    start = x[:k].clone()

    def expression() -> Tensor:
        centroids = start
        for _ in range(10):
            found = torch.cdist(x, centroids).argmin(1)
            sums = torch.zeros_like(centroids).index_add_(0, found, x)
            counts = torch.bincount(found, minlength=k).clamp(min=1)
            centroids = sums / counts[:, None]
        return centroids

    return lambda: vecbank.kmeans(x, k, init=start, iterations=10, tolerance=0.0), expression


def _pack_signs(n: int, d: int, gen: torch.Generator) -> tuple[Call, Call]:
    bits = (_draw(gen, n, d) > 0).to(torch.uint8)
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    return lambda: codes.pack_bits(bits), lambda: (bits.view(n, -1, 8) * weights).sum(-1, dtype=torch.uint8)


def _round_step(n: int, d: int, gen: torch.Generator) -> tuple[Call, Call]:
    z, levels = _draw(gen, n, d), [8, 5, 5, 5][:d]
    counts = torch.tensor(levels)
    basis = torch.tensor([1, 8, 40, 200][:d])
    half = (counts - 1) * (1 + 1e-3) / 2
    offset = torch.where(counts % 2 == 0, 0.5, 0.0)
    shift = (offset / half).atanh()

    def expression() -> tuple[Tensor, Tensor]:
        rounded = ((z + shift).tanh() * half - offset).round()
        whole = rounded + counts // 2
        return rounded / (counts // 2), (whole * basis).sum(-1).long()

    return lambda: codes.fsq_quantize(z, levels), expression


def _two_tables(n: int, d: int, gen: torch.Generator) -> tuple[Call, Call]:
    remainders, quotients = _draw(gen, 1000, d), _draw(gen, 1000, d)
    ids = torch.randint(1_000_000, (n,), generator=gen)
    return (
        lambda: embedding.two_table_lookup(ids, remainders, quotients),
        lambda: F.embedding(ids % 1000, remainders) * F.embedding(ids // 1000, quotients),
    )


def _other_shapes() -> Iterator[Shape]:
    def shape(verb: str, name: str, make: Callable[..., tuple[Call, Call]], *sizes: Any, short: bool = False) -> Shape:
        return Shape(verb, name, lambda gen: make(*sizes, gen), short)

    yield from (
        shape("lookup", "lookup 16 of 512, d 64", _lookup, 16, 512, 64, "", short=True),
        shape("lookup", "lookup 65,536 of 8,192, d 64", _lookup, 65_536, 8192, 64, "", short=True),
        shape("lookup", "lookup 65,536 of 8,192, d 64 bf16", _lookup, 65_536, 8192, 64, "bf16"),
        shape("lookup", "lookup 1,000,000 of 1,000, d 4", _lookup, 1_000_000, 1000, 4, ""),
        shape("lookup", "lookup step 65,536 of 8,192, d 64", _lookup_step, 65_536, 8192, 64, short=True),
        shape("lookup", "lookup bags 8,192 x 32 of 16,384, d 128", _bags, 8192, 32, 16_384, 128, short=True),
        shape("lookup", "lookup bags 16 x 4 of 512, d 64", _bags, 16, 4, 512, 64),
        shape("lookup", "segment_sum 65,536 to 1,024, d 64", _segment_sum, 65_536, 1024, 64, short=True),
        shape("lookup", "segment_sum 16 to 512, d 64", _segment_sum, 16, 512, 64),
        shape("lookup", "segment_sum 8,192 to 2, d 512", _segment_sum, 8192, 2, 512),
        shape("residual", "residual.quantize 16, 8 x 1,024, d 64", _residual, 16, 8, 1024, 64),
        shape("residual", "residual.quantize 8,192, 8 x 1,024, d 64", _residual, 8192, 8, 1024, 64, short=True),
        shape("pq", "pq.encode 16, 8 parts of 256 x 16", _pq_encode, 16, 8, 256, 16),
        shape("pq", "pq.encode 65,536, 8 parts of 256 x 16", _pq_encode, 65_536, 8, 256, 16, short=True),
        shape("pq", "pq.scores 16 x 100,000, 16 parts", _pq_scores, 16, 100_000, 16, short=True),
        shape("pq", "pq.scores 1 x 1,000, 8 parts", _pq_scores, 1, 1000, 8),
        shape("sparse", "sparse.encode 16 x 4,096, d 256 k 16", _sparse_encode, 16, 4096, 256, 16),
        shape("sparse", "sparse.encode 4,096 x 16,384, d 256 k 32", _sparse_encode, 4096, 16_384, 256, 32, short=True),
        shape("sparse", "sparse.encode 1,024 x 512, d 64 k 16", _sparse_encode, 1024, 512, 64, 16),
        shape("sparse", "sparse.decode 4,096 x 32 of 16,384, d 256", _sparse_decode, 4096, 16_384, 256, 32),
        shape("kmeans", "kmeans 2,000 x 10, d 2, 10 iterations", _kmeans, 2000, 10, 2),
        shape("kmeans", "kmeans 20,000 x 100, d 64, 10 iterations", _kmeans, 20_000, 100, 64, short=True),
        shape("codes", "pack_bits 100,000 x 256", _pack_signs, 100_000, 256, short=True),
        shape("codes", "fsq_quantize 65,536 x 4", _round_step, 65_536, 4, short=True),
        shape("codes", "fsq_quantize 16 x 4", _round_step, 16, 4),
        shape("embedding", "two_table_lookup 65,536, d 64", _two_tables, 65_536, 64),
    )


def shapes() -> list[Shape]:
    return [*_search_shapes(), *_other_shapes()]
