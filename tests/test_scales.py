"""Banks whose rows are of very different scale, zero, huge or not finite: the right rows, and few of them refined."""

from __future__ import annotations

import pytest
import torch
from helpers import CODE, Target, assert_same, gauss, op, same
from torch import Tensor

import vecbank
from vecbank import Bank

pytestmark = pytest.mark.usefixtures("both_ways")

NAN, INF = float("nan"), float("inf")
SCALES = (0.0, 1e-6, 1e-12, 1e-13, 1e-15, 1e-17, 1e-19, 1e-20, 1e-25, 1e-30, 1e15, 1e19, 1e21, 1e25, 1e30)


def brute(x: Tensor, bank: Tensor, k: int, metric: str, mask: Tensor | None = None) -> Tensor:
    """Indices (N, k): every score in the contract's order, sorted; -1 where no valid row is left."""
    distance = metric in ("l2", "sqeuclidean")
    scores = op("exact_scores")(x, bank, CODE["sqeuclidean" if distance else metric], torch.float64)
    keys = -scores if distance else scores
    valid = ~keys.isnan() if mask is None else mask & ~keys.isnan()
    order = keys.masked_fill(~valid, -INF).argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, (~valid.gather(1, order)).int().argsort(dim=1, stable=True))  # valid rows first
    return torch.where(valid.gather(1, order), order, -1)[:, :k]


def spread(rows: int, share: float, scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ordinary rows, a share of them scaled; and which are not."""
    bank = gauss(rows, 48, seed=seed)
    scaled = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[: round(share * rows)]
    bank[scaled] *= scale
    ordinary = torch.ones(rows, dtype=torch.bool)
    ordinary[scaled] = False
    return bank, ordinary.nonzero().flatten()


def near(bank: Tensor, rows: Tensor, count: int) -> Tensor:
    return bank[rows[torch.arange(count) % len(rows)]] + 0.1 * gauss(count, bank.shape[1], seed=5)


def assert_right_and_cheap(bank: Tensor, ordinary: Tensor, metric: str, target: Target, spare: int) -> None:
    """Of queries near the ordinary rows and of random ones: the right rows, of k + spare refined ones at most."""
    for x in (near(bank, ordinary, 90), gauss(90, 48, seed=6)):
        for given in (bank, Bank(bank, metric)):
            for k in (1, 10):
                vecbank._C.reset_counters()
                got = vecbank.topk(x, given, k, metric).indices
                assert torch.equal(got, brute(x, bank, k, metric)), (len(ordinary), k)
                counted = vecbank._C.counters()
                if target.device == "cpu":
                    assert counted["repeated"] == 0 and counted["refined"] <= 90 * (k + spare), (k, counted)


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
@pytest.mark.parametrize("scale", [1e-6, 1e-12, 1e-20, 0.0])
def test_small_rows_cost_no_refinement(scale: float, metric: str, target: Target, one_thread: None) -> None:
    """Codes that nobody uses shrink; whatever their share, the others are searched as if they were not there."""
    vecbank._C.force_ways(search=1)  # of their own accord so few pairs are all refined
    for share in (0.02, 0.97):
        bank, ordinary = spread(1000, share, scale)
        assert_right_and_cheap(bank, ordinary, metric, target, spare=40)


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
@pytest.mark.parametrize("odd", [NAN, 1e15, 1e18])
def test_ruined_rows_cost_no_refinement(odd: float, metric: str, target: Target, one_thread: None) -> None:
    vecbank._C.force_ways(search=1)
    for share in (0.01, 0.2):
        bank, ordinary = spread(1200, share, odd)
        assert_right_and_cheap(bank, ordinary, metric, target, spare=10)


@pytest.mark.parametrize("odd", [1e25, 1e30, INF])
def test_rows_beyond_all_proportion_are_the_worst_of_distances(odd: float, target: Target, one_thread: None) -> None:
    vecbank._C.force_ways(search=1)
    bank, ordinary = spread(1200, 0.01, odd)
    x = gauss(90, 48, seed=6)
    for given in (bank, Bank(bank, "l2")):
        vecbank._C.reset_counters()
        assert torch.equal(vecbank.topk(x, given, 10, "l2").indices, brute(x, bank, 10, "l2"))
        if target.device == "cpu":
            assert vecbank._C.counters()["refined"] <= 90 * 20
    few = torch.zeros(1200, dtype=torch.bool)  # they are found where there are no others
    few[ordinary[:4]] = True
    few |= ~torch.isin(torch.arange(1200), ordinary)
    found = vecbank.topk(x, Bank(bank, "l2"), 9, "l2", allowed=few)
    assert torch.equal(found.indices, brute(x, bank, 9, "l2", few))
    assert (found.indices >= 0).all()


def case(seed: int) -> tuple[Tensor, Tensor, int, Tensor | None]:
    """Anything: several scales in one bank, an offset, duplicates, rows that are not finite, queries of any scale."""
    g = torch.Generator().manual_seed(seed)

    def pick(*options: float) -> float:
        return options[int(torch.randint(len(options), (), generator=g))]

    def some(share: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=g) < share

    m, d, n = int(pick(1, 16, 17, 100, 500, 1500)), int(pick(1, 3, 17, 40)), int(pick(1, 2, 9, 40))
    bank = torch.randn(m, d, generator=g, dtype=torch.float64) + pick(0, 0, 30, 1000)
    for _ in range(int(pick(1, 1, 2, 3))):
        bank[some(pick(0.01, 0.03, 0.2, 0.8, 0.99), m)] *= pick(*SCALES)
    if pick(0, 0, 1):
        bank[some(0.3, m)] = bank[0].clone()
    rows = bank[torch.randint(m, (n,), generator=g)]
    noise = torch.randn(n, d, generator=g, dtype=torch.float64)
    sizes = 10.0 ** torch.randint(-30, 30, (n, 1), generator=g).double()
    x = [rows + 0.01 * noise, noise, rows, noise * sizes, noise * some(0.5, n, d)][int(pick(0, 1, 2, 3, 4))]
    if pick(0, 0, 1):
        bank[some(pick(0.01, 0.3), m)] = NAN
    if pick(0, 0, 0, 1):
        bank[some(0.02, m), 0] = INF
    dtype = (torch.float32, torch.float32, torch.float64, torch.bfloat16)[int(pick(0, 1, 2, 3))]
    mask = some(pick(0.02, 0.3, 0.9), n, m) if pick(0, 0, 1) else None
    return x.to(dtype), bank.to(dtype), min(m, int(pick(1, 1, 2, 5, 20))), mask


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
def test_any_mixture_of_scales(metric: str, target: Target, one_thread: None) -> None:
    for seed in range(60):
        x, bank, k, mask = case(seed)
        x, bank, mask = (t if t is None else t.to(target.device) for t in (x, bank, mask))
        want = brute(x, bank, k, metric, mask)
        for given in (bank, Bank(bank, metric)):
            assert_same(vecbank.topk(x, given, k, metric, allowed=mask).indices, want, f"seed {seed}")
            if k == 1 and mask is None:
                assert_same(vecbank.quantize(x, given, metric).codes, want[:, 0], f"seed {seed}, quantize")


def test_every_part_of_a_bank_leaves_negligible_rows_to_one(target: Target) -> None:
    """One query on several threads: the bank is split, and the first zero row stands for those of the other parts."""
    torch.set_num_threads(4)
    bank, _ = spread(40_000, 0.6, 0.0)
    bank[:9000] = gauss(9000, 48, seed=8)
    x = torch.cat([gauss(3, 48, seed=9), torch.zeros(1, 48), 1e-25 * gauss(1, 48, seed=9)])
    mask = torch.rand(5, 40_000, generator=torch.Generator().manual_seed(1)) < 0.5
    for metric in ("l2", "dot", "cosine"):
        held = Bank(bank, metric)
        for k in (1, 7, 60):
            for row in range(5):
                one = x[row : row + 1]
                assert_same(vecbank.topk(one, held, k, metric).indices, brute(one, bank, k, metric), f"{metric} {k}")
            assert_same(
                vecbank.topk(x, held, k, metric, allowed=mask).indices, brute(x, bank, k, metric, mask), f"{metric} {k}"
            )


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
def test_rewritten_rows_of_any_scale(metric: str, target: Target, one_thread: None) -> None:
    """`update_` writes into the pack that is there: kinds of rows come and go, the first negligible one too."""
    g = torch.Generator().manual_seed(3)
    bank = spread(300, 0.5, 1e-22)[0].to(target.device)
    bank[7] = NAN
    held, x = Bank(bank.clone(), metric), gauss(20, 48, seed=4).to(target.device)
    for step in range(60):
        rows = torch.randint(300, (1 + step % 3,), generator=g)
        if step % 4 == 0:
            rows[0] = (held.vectors.norm(dim=1) < 1e-15).nonzero().flatten()[0]  # what stands for the others
        new = gauss(len(rows), 48, seed=step) * (1.0, 0.0, 1e-22, 1e20, NAN, 1e-5)[step % 6]
        bank[rows.flip(0)] = new.flip(0).to(target.device)  # a row named twice keeps the last
        for i, row in enumerate(rows.tolist()):
            bank[row] = new[i].to(target.device)
        held.update_(rows.to(target.device), new.to(target.device))
        assert same(held.vectors, bank)
        for k in (1, 12):
            assert_same(held.topk(x, k).indices, brute(x, bank, k, metric), f"step {step}, k {k}")


def test_a_rewritten_row_is_prepared_alone() -> None:
    """The pack stays where it was, and a compiled program's stamp is the new one."""
    held = Bank(gauss(5000, 16), "l2").prepare("search")
    (before,) = held._packs.values()
    held.update_(torch.tensor([3]), gauss(1, 16, seed=9))
    (after,) = held._packs.values()
    assert after.pack is before.pack and after.is_of(held.vectors, None)
    x = gauss(4, 16, seed=1)
    packed = op("nearest")(x, held.vectors, after.pack, CODE["l2"])
    assert_same(tuple(packed), tuple(vecbank.nearest(x, held.vectors.clone(), "l2")))
    held.vectors[5] = 0  # written elsewhere: all of it is prepared again
    held.update_(torch.tensor([3]), gauss(1, 16, seed=10))
    assert_same(tuple(held.nearest(x)), tuple(vecbank.nearest(x, held.vectors.clone(), "l2")))


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_project_of_ruined_rows(metric: str, target: Target, one_thread: None) -> None:
    bank, _ = spread(500, 0.1, 1e15)
    bank[3], bank[5], bank[7] = NAN, 0.0, 1e30
    x = gauss(40, 48, seed=2)
    got = vecbank.project(x, Bank(bank, metric), metric)
    want = op("exact_scores")(x.double(), bank.double(), CODE[metric], torch.float64)
    assert got[:, 3].isnan().all()
    finite = ~want.isnan()
    scale = bank.double().nan_to_num().norm(dim=1) * x.double().norm(dim=1, keepdim=True)
    scale = scale if metric == "dot" else want.nan_to_num()
    assert ((got.double() - want)[finite].abs() <= 1e-5 * scale[finite].clamp_min(1.0)).all()


def test_a_far_row_is_no_better_than_one_that_is_not_screened() -> None:
    """Rewritten in a frame chosen for others, a row may be neither screened nor far."""
    bank = torch.ones(256, 1)
    held = Bank(bank.clone(), "l2")
    bank[0], bank[1], bank[2:] = 2.0**62.01, -(2.0**61.99), NAN
    for rows in torch.arange(256).split(16):
        held.update_(rows, bank[rows])
    x = torch.tensor([[2.0**60]])
    assert held.topk(x, 1).indices.item() == brute(x, bank, 1, "l2").item() == 0
    wide = torch.zeros(41, 3, dtype=torch.float64)  # every distance is inf in float64: the first row wins
    for i in range(41):
        wide[i, (i // 2) % 2] = 2.0**511.99 * (-1) ** (i + 1)
    wide[0] = torch.tensor([INF, 0.0, 0.0])
    assert vecbank.nearest(torch.tensor([[0.0, 0.0, 2.0**509.5]], dtype=torch.float64), wide).indices.item() == 0


def test_queries_whose_squares_underflow() -> None:
    x = torch.full((1, 4096), 2.0**-537.51, dtype=torch.float64)
    x[0, 0] = 2.0**-537
    for seed in range(20):
        half = torch.rand(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.5
        bank = torch.cat([half, 2 - half], dim=1).repeat_interleave(2048, dim=1) * (
            1 + 1e-8 * gauss(64, 1, dtype=torch.float64, seed=seed)
        )
        assert_same(vecbank.topk(x, bank, 1, "dot").indices, brute(x, bank, 1, "dot"), f"seed {seed}")
