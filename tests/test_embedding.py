"""Compressed embedding tables: each against the dense table it stands for, its gradient, and its exact bytes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import gauss, seeded
from torch import Tensor, nn

import vecbank
from vecbank import embedding as store
from vecbank import pq
from vecbank.codes import packed_bytes
from vecbank.nn.embeddings import CompressedEmbedding, HashedEmbedding

pytestmark = pytest.mark.usefixtures("one_thread")


def one_hot(codes: Tensor, rows: int) -> Tensor:
    """(..., rows) float64; nothing set for -1."""
    return (codes.unsqueeze(-1) == torch.arange(rows)).double()


# --- hashing ---


def plain_hash(value: int, rows: int, probe: int, probes: int, feature: int, seed: int) -> int:
    """The same in Python's integers."""
    mask = (1 << 64) - 1
    x = value * 0x94D049BB133111EB + (feature * probes + probe + 1) * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03
    x &= mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return ((x ^ (x >> 31)) & ((1 << 63) - 1)) % rows


def test_hash_is_the_documented_one() -> None:
    ids = torch.tensor([0, 1, 2, 12345, 2**40 + 7, 2**63 - 1])
    for rows, probes, feature, seed in ((7, 1, 0, 0), (1000, 3, 5, 0), (2**31 + 11, 2, 1, 99)):
        got = store.hash_rows(ids, rows, probes, feature=feature, seed=seed)
        want = [[plain_hash(v, rows, u, probes, feature, seed) for u in range(probes)] for v in ids.tolist()]
        assert got.tolist() == want
    assert (store.hash_rows(torch.tensor([-1]), 5, 2) == -1).all()


def test_hash_spreads_and_streams_are_independent() -> None:
    ids = torch.arange(20000)
    feature = torch.tensor([[0], [1]])
    rows = store.hash_rows(ids, 50, 2, feature=feature)  # (2, N, 2)
    for stream in (rows[0, :, 0], rows[0, :, 1], rows[1, :, 0]):
        counts = torch.bincount(stream, minlength=50).double()
        assert ((counts - 400).square() / 400).sum() < 100  # chi-squared with 49 degrees of freedom
    pairs = torch.bincount(rows[0, :, 0] * 50 + rows[1, :, 0], minlength=2500).double()
    assert ((pairs - 8).square() / 8).sum() < 2900
    assert not torch.equal(rows, store.hash_rows(ids, 50, 2, feature=feature, seed=1))


@pytest.mark.parametrize("reduce", ["concat", "sum", "mean"])
def test_hashed_rows_equal_the_one_hot_product(reduce: str) -> None:
    table = gauss(9, 4, dtype=torch.float64).requires_grad_()
    ids = torch.tensor([[3, 3, -1], [0, 12345, 7]])
    got = store.hashed_lookup(ids, table, 3, feature=2, reduce=reduce)
    rows = one_hot(store.hash_rows(ids, 9, 3, feature=2), 9) @ table.detach()
    want = rows.flatten(-2) if reduce == "concat" else rows.sum(-2) / (3 if reduce == "mean" else 1)
    torch.testing.assert_close(got, want)
    probe = gauss(*want.shape, dtype=torch.float64, seed=1)
    (got * probe).sum().backward()
    weights = (
        probe.unflatten(-1, (3, 4)) if reduce == "concat" else probe.unsqueeze(-2) / (3 if reduce == "mean" else 1)
    )
    dense = one_hot(store.hash_rows(ids, 9, 3, feature=2), 9)
    torch.testing.assert_close(table.grad, torch.einsum("abuv,abuw->vw", dense, weights.expand(2, 3, 3, 4)))


def test_shared_table_of_features() -> None:
    module = HashedEmbedding(40, 3, [2, 1, 4], seed=5, generator=seeded())
    ids = torch.randint(0, 10**9, (6, 5, 3), generator=seeded())
    ids[0, 0, 1] = -1
    out = module(ids)
    assert out.shape == (6, 5, module.out_features) and module.out_features == 21
    at = 0
    for f, probes in enumerate((2, 1, 4)):  # each feature reads the first of its own streams
        rows = store.hash_rows(ids[..., f], 40, 4, feature=f, seed=5)[..., :probes]
        want = vecbank.lookup(rows, module.table).flatten(-2)
        assert torch.equal(out[..., at : at + 3 * probes], want)
        at += 3 * probes
    assert (out[0, 0, 6:9] == 0).all() and module.stored_bytes == 40 * 3 * 4


# --- every method behind the same lookup ---

V, D = 60, 8


def modules() -> dict[str, CompressedEmbedding]:
    table = gauss(V, D)
    g = seeded()
    keep = torch.rand(3, D, generator=g) < 0.6
    return {
        "full": CompressedEmbedding(V, D, generator=g),
        "hashed": CompressedEmbedding(V, D, "hashed", rows=11, probes=2, generator=g),
        "hashed sum": CompressedEmbedding(V, D, "hashed", rows=11, probes=3, reduce="sum", generator=g),
        "two_table": CompressedEmbedding(V, D, "two_table", base=7, generator=g),
        "two_table concat": CompressedEmbedding(V, D, "two_table", combine="concat", generator=g),
        "low_rank": CompressedEmbedding(V, D, "low_rank", rank=3, generator=g),
        "integer": CompressedEmbedding(V, D, "integer", bits=5, generator=g),
        "integer frozen": CompressedEmbedding.from_table(table, "integer", bits=4),
        "product": CompressedEmbedding(V, D, "product", parts=2, bits=3, generator=g),
        "product frozen": CompressedEmbedding.from_table(table, "product", parts=4, bits=5, generator=g),
        "pruned": CompressedEmbedding.from_table(table, "pruned", keep=0.4),
        "ragged": CompressedEmbedding.from_table(table, "ragged", block=torch.arange(V) % 3, keep=keep),
    }


NAMES = list(modules())


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str) -> None:
    module = modules()[name]
    ids = torch.randint(0, V, (5, 6), generator=seeded())
    ids[0, 0] = -1
    out = module(ids)
    assert out.shape == (5, 6, D) and (out[0, 0] == 0).all()
    alone = module(ids[1, 2])
    if name == "low_rank":  # a product, whose last bits may depend on the number of rows
        torch.testing.assert_close(out[1, 2], alone)
    else:
        assert torch.equal(out[1, 2], alone)
    assert module(ids[:0]).shape == (0, 6, D)
    # the same id gives the same row, and its gradients add up in a fixed order
    (module(ids.repeat(3, 1)).square().sum()).backward()
    first = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    assert first and all(torch.isfinite(g).all() for g in first)
    module.zero_grad()
    (module(ids.repeat(3, 1)).square().sum()).backward()
    # type: ignore
    assert all(torch.equal(a, p.grad) for a, p in zip(first, (p for p in module.parameters()), strict=True))
    # state travels; bytes are what the state weighs
    other = modules()[name]
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(ids), out) and torch.equal(copy.deepcopy(module)(ids), out)
    if module.frozen or module.method not in ("integer", "product"):
        assert module.stored_bytes == sum(t.numel() * t.element_size() for t in module.state_dict().values())
    assert module.ratio == pytest.approx(4 * V * D / module.stored_bytes)
    if module.method != "hashed":  # hashes take any number
        with pytest.raises(IndexError):
            module(torch.tensor([V * V]))


@pytest.mark.parametrize("name", NAMES)
def test_compiles_whole(name: str) -> None:
    torch._dynamo.reset()  # every method compiles the same forward
    module = modules()[name]
    ids = torch.randint(0, V, (5, 6), generator=seeded())
    got = torch.compile(module, fullgraph=True, backend="aot_eager")(ids)
    torch.testing.assert_close(got, module(ids))


def test_bytes_by_hand() -> None:
    sizes = {name: module.stored_bytes for name, module in modules().items()}
    kept = int((modules()["ragged"].columns >= 0).sum(1)[torch.arange(V) % 3].sum())
    assert sizes == {
        "full": V * D * 4,
        "hashed": 11 * 4 * 4,
        "hashed sum": 11 * D * 4,
        "two_table": (7 + 9) * D * 4,
        "two_table concat": (8 + 8) * D // 2 * 4,
        "low_rank": (V + D) * 3 * 4,
        "integer": V * 5 + V * 4,
        "integer frozen": V * 4 + V * 4,
        "product": V * packed_bytes(2, 3) + 2 * 8 * 4 * 4,
        "product frozen": V * packed_bytes(4, 5) + 4 * 32 * 2 * 4,
        "pruned": 24 * D * 4 + V * 4,
        "ragged": kept * 4 + V * 8 + V * 2 + 3 * D * 2,
    }


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("low_rank", [{"rank": r} for r in (1, 4, 8, 16)]),
        ("integer", [{"bits": b} for b in (2, 4, 8)]),
        ("product", [{"bits": b, "parts": 4} for b in (1, 3, 6)]),
        ("pruned", [{"keep": s} for s in (0.1, 0.5, 1.0)]),
    ],
)
def test_more_bytes_less_error(method: str, options: list[dict[str, Any]]) -> None:
    table = gauss(300, 16) * torch.linspace(2, 0.2, 300).unsqueeze(1)
    errors, sizes = [], []
    for option in options:
        module = CompressedEmbedding.from_table(table, method, generator=seeded(), **option)
        errors.append((module(torch.arange(300)) - table).square().mean().item())
        sizes.append(module.stored_bytes)
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)


# --- integers ---


@pytest.mark.parametrize("bits", [2, 4, 5, 8, 16])
def test_integer_rows_are_within_half_a_step(bits: int) -> None:
    table = gauss(50, 9)
    largest = table.abs().amax(1) / (2 ** (bits - 1) - 1)
    rows = store.quantize_rows(table, bits, largest)
    assert rows.packed.shape == (50, packed_bytes(9, bits))
    back = store.integer_lookup(torch.arange(50), rows, 9, bits)
    assert ((back - table).abs() <= largest.unsqueeze(1) * 0.5001).all()
    best = store.integer_lookup(torch.arange(50), store.quantize_rows(table, bits), 9, bits)
    assert ((best - table).square().sum(1) <= (back - table).square().sum(1) * (1 + 1e-5) + 1e-12).all()


def test_integers_train_as_they_will_be_stored() -> None:
    table = gauss(30, 6, dtype=torch.float64).requires_grad_()
    scale = store.row_scale(table, 4).detach().requires_grad_()
    ids = torch.tensor([3, 3, 7, -1])
    got = store.fake_integer_lookup(ids, table, scale, 4)
    rows = store.quantize_rows(table, 4, scale)
    assert torch.equal(got, store.integer_lookup(ids, rows, 6, 4))
    probe = gauss(4, 6, dtype=torch.float64, seed=1)
    (got * probe).sum().backward()
    ratio = table.detach() / scale.detach().unsqueeze(1)
    inside = ((ratio >= -8) & (ratio <= 7)).double()
    total = one_hot(ids, 30).T @ probe
    torch.testing.assert_close(table.grad, total * inside)
    slope = ratio.round().clamp(-8, 7) - ratio * inside
    torch.testing.assert_close(scale.grad, (total * slope).sum(1) / (6 * 7) ** 0.5)


@pytest.mark.parametrize("method", ["integer", "product"])
def test_freezing_changes_nothing_but_the_bytes(method: str) -> None:
    module = modules()[method]
    ids = torch.arange(-1, V)
    for _ in range(5):
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        loss = (module(ids) - gauss(V + 1, D)).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    before, size = module(ids), module.stored_bytes
    module.freeze_()
    assert torch.equal(module(ids), before)
    assert module.stored_bytes == size == sum(t.numel() * t.element_size() for t in module.state_dict().values())
    assert module.freeze_() is module and "table" not in module.state_dict()
    module(ids).sum().backward()
    trained = module.scale if method == "integer" else module.codebooks
    assert trained.grad is not None and (trained.grad != 0).any()


# --- codes, pruning, widths ---


def test_coded_rows() -> None:
    table = gauss(70, 10)
    codec = pq.train(table, 4, 5, generator=seeded())
    packed = codec.encode(table, packed=True)
    codebooks = codec.codebooks.requires_grad_()
    ids = torch.tensor([[5, 69], [5, -1]])
    got = store.coded_lookup(ids, packed, codebooks, 5, 10)
    want = codec.decode(codec.encode(table))[ids.clamp_min(0)] * (ids >= 0).unsqueeze(-1)
    assert torch.equal(got, want)
    got.sum().backward()
    assert codebooks.grad.count_nonzero() > 0  # type: ignore[union-attr]


def test_pruned_rows() -> None:
    table = gauss(20, 5)
    keep = gauss(20, seed=1) > 0
    rows = store.prune_rows(table, keep)
    ids = torch.arange(20)
    assert torch.equal(store.pruned_lookup(ids, rows), table * keep.unsqueeze(1))
    assert rows.table.shape[0] == int(keep.sum()) and rows.remap.dtype == torch.int32
    module = CompressedEmbedding.from_table(table, "pruned", keep=0.5)
    norms = table.norm(dim=1)
    assert torch.equal((module(ids) != 0).any(1), norms >= norms.sort(descending=True).values[9])


def test_gates_of_zero_are_pruning() -> None:
    """One gate per id (OptFS): a weighted lookup, and the compact table once gates are exactly 0 or not."""
    table, ids = gauss(20, 5).requires_grad_(), torch.randint(0, 20, (50,), generator=seeded())
    gate = gauss(20, seed=1).relu().requires_grad_()
    gated = vecbank.lookup(ids.unsqueeze(-1), table, vecbank.lookup(ids, gate.unsqueeze(1)), reduce="sum")
    compact = store.prune_rows(table * gate.unsqueeze(1), gate > 0)
    torch.testing.assert_close(gated, store.pruned_lookup(ids, compact))
    gated.square().sum().backward()
    assert gate.grad is not None and table.grad is not None


def test_rows_of_different_widths_equal_the_masked_table() -> None:
    table = gauss(40, 6, dtype=torch.float64)
    block, keep = torch.randint(0, 4, (40,), generator=seeded()), torch.rand(4, 6, generator=seeded()) < 0.5
    keep[0] = False
    rows = store.ragged_rows(table, block, keep)
    values = rows.values.clone().requires_grad_()
    ids = torch.randint(-1, 40, (100,), generator=seeded(1))
    got = store.ragged_lookup(ids, rows._replace(values=values))
    masked = table * keep[block]
    torch.testing.assert_close(got, masked[ids.clamp_min(0)] * (ids >= 0).unsqueeze(1))
    probe = gauss(100, 6, dtype=torch.float64, seed=2)
    (got * probe).sum().backward()
    torch.testing.assert_close(values.grad, (one_hot(ids, 40).T @ probe)[keep[block]])
    assert rows.values.numel() == int(keep[block].sum())


def test_two_tables_keep_all_ids_apart() -> None:
    module = CompressedEmbedding(1000, 4, "two_table", std=1.0, generator=seeded())
    assert len(module(torch.arange(1000)).unique(dim=0)) == 1000
    assert module.stored_bytes < 0.07 * 4000 * 4


# --- on click data ---


class Clicks:
    """Six features with Zipf-distributed values, each value with an effect of its own on the logit."""

    def __init__(self, values: int = 800, count: int = 24000) -> None:
        g = seeded(3)
        share = 1 / torch.arange(1, values + 1).double() ** 1.05
        self.ids = torch.multinomial(share.expand(6, values), count, replacement=True, generator=g).T
        effect = 0.9 * torch.randn(6, values, generator=g)
        logit = effect[torch.arange(6), self.ids].sum(1) - 1
        self.click = (torch.rand(count, generator=g) < torch.sigmoid(logit)).float()
        self.train, self.test = slice(0, count * 3 // 4), slice(count * 3 // 4, count)
        self.values = values

    def auc(self, score: Tensor) -> float:
        label = self.click[self.test].bool()
        rank = score.argsort().argsort().double() + 1
        positive = int(label.sum())
        return float((rank[label].sum() - positive * (positive + 1) / 2) / (positive * (len(label) - positive)))

    def fitted(self, embed: Callable[[Tensor], Tensor], width: int, modules: list[nn.Module]) -> Callable[[], float]:
        torch.manual_seed(0)
        head = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 1))
        optimiser = torch.optim.Adam([p for m in (*modules, head) for p in m.parameters()], lr=1e-2)
        ids, click = self.ids[self.train], self.click[self.train]
        for i in range(140):
            rows = slice(i * 512 % (len(click) - 512), i * 512 % (len(click) - 512) + 512)
            loss = nn.functional.binary_cross_entropy_with_logits(head(embed(ids[rows])).squeeze(1), click[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return lambda: self.auc(head(embed(self.ids[self.test])).detach().squeeze(1))


def test_features_that_share_a_table_beat_features_apart() -> None:
    data = Clicks()
    scores = {}
    for rows in (600, 180):
        shared = HashedEmbedding(rows, 4, [2] * 6, std=0.1, generator=seeded())
        scores["shared", rows] = data.fitted(shared, shared.out_features, [shared])()
        apart = [HashedEmbedding(rows // 6, 8, [1], std=0.1, seed=f, generator=seeded(f)) for f in range(6)]
        scores["apart", rows] = data.fitted(
            lambda ids, apart=apart: torch.cat([m(ids[:, f : f + 1]) for f, m in enumerate(apart)], -1), 48, apart
        )()
    assert scores["shared", 600] > scores["shared", 180] > 0.6
    assert scores["shared", 600] > scores["apart", 600] and scores["shared", 180] > scores["apart", 180]


def test_pruning_small_rows_costs_less_than_pruning_any() -> None:
    data = Clicks()
    full = CompressedEmbedding(6 * data.values, 4, std=0.02, generator=seeded())
    shift = data.values * torch.arange(6)
    current: list[nn.Module] = [full]
    score = data.fitted(lambda ids: current[0](ids + shift).flatten(1), 24, [full])
    reached = score()
    current[0] = CompressedEmbedding.from_table(full.table.detach(), "pruned", keep=0.5)
    small = score()
    chosen = torch.rand(len(full.table), generator=seeded()) < 0.5
    current[0] = CompressedEmbedding.from_table(full.table.detach(), "pruned", keep=chosen)
    assert reached > 0.65 and small > score() + 0.02 and small > reached - 0.04


def test_learned_widths_find_the_planted_ones() -> None:
    """Half of the blocks need two dimensions, half of them eight (DNIS): gates on columns tell which."""
    block, need = torch.arange(400) % 4, torch.tensor([2, 2, 8, 8])
    planted = gauss(400, 8) * (torch.arange(8) < need[block].unsqueeze(1))
    noisy = planted + 0.3 * gauss(400, 8, seed=1)
    alpha = torch.ones(4, 8, requires_grad=True)
    optimiser = torch.optim.Adam([alpha], lr=0.05)
    for _ in range(100):
        fit = (noisy * alpha[block] - planted - 0.3 * gauss(400, 8, seed=2)).square().mean()
        optimiser.zero_grad()
        (fit + 0.02 * alpha.abs().mean()).backward()
        optimiser.step()
    keep = alpha.detach() > 0.3
    assert torch.equal(keep, torch.arange(8) < need.unsqueeze(1))
    module = CompressedEmbedding.from_table(noisy, "ragged", block=block, keep=keep)
    assert torch.equal(module(torch.arange(400)), noisy * keep[block])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CompressedEmbedding(9, 4, "magic"), ValueError, "method must be one of"),
        (lambda: CompressedEmbedding(9, 4, "pruned"), ValueError, "from_table"),
        (lambda: CompressedEmbedding(9, 4, "hashed"), TypeError, "needs the option rows"),
        (lambda: CompressedEmbedding(9, 4, "hashed", rows=3, probes=3), ValueError, "multiple of probes"),
        (lambda: CompressedEmbedding(9, 4, "low_rank", rank=2, bits=3), TypeError, "has no option bits"),
        (lambda: CompressedEmbedding(9, 4, "integer", bits=1), ValueError, "bits must lie between 2 and 16"),
        (lambda: CompressedEmbedding(9, 4, "two_table", combine="max"), ValueError, "combine must be one of"),
        (lambda: CompressedEmbedding.from_table(torch.zeros(9, 4), "hashed"), ValueError, "method must be full"),
        (lambda: CompressedEmbedding(9, 4)(torch.tensor([9])), IndexError, "ids must lie between -1 and 8"),
        (lambda: CompressedEmbedding(9, 4, "hashed", rows=3)(torch.tensor([9])), IndexError, "ids must lie between"),
        (lambda: CompressedEmbedding(7, 4, "two_table")(torch.tensor([7])), IndexError, "ids must lie between"),
        (lambda: CompressedEmbedding(9, 4)(torch.tensor([1.0])), TypeError, "ids must be integers"),
        (lambda: HashedEmbedding(9, 4, []), ValueError, "probes must hold at least one number"),
        (lambda: HashedEmbedding(9, 4, [1])(torch.zeros(3, 2).long()), ValueError, "ids must have shape"),
        (lambda: store.hash_rows(torch.tensor([1]), 0), ValueError, "rows must be at least 1"),
        (lambda: store.prune_rows(torch.zeros(3, 2), torch.ones(2) > 0), ValueError, "keep must be bool"),
        (
            lambda: store.ragged_rows(torch.zeros(3, 2), torch.zeros(2).long(), torch.ones(2, 2) > 0),
            ValueError,
            "need table",
        ),
    ],
)
def test_refuses_by_name(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
