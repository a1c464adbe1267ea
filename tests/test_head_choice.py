"""Which head a Bank chooses, when, and what it tells; the answers are those of a Bank without one."""

import pickle
from typing import Any

import pytest
import torch

import vecbank
from vecbank import _C, _head
from vecbank._head_choice import Asked, Chooser
from vecbank._ops import METRICS

D, M = 256, 20_000


def falling(rows: int, exponent: float, seed: int, d: int = D) -> torch.Tensor:
    """Rows whose variances fall as (i + 1)^-exponent along axes of no special direction."""
    axes = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(7))).Q
    drawn = torch.randn(rows, d, generator=torch.Generator().manual_seed(seed))
    return (drawn * torch.arange(1, d + 1).float().pow(-exponent / 2)) @ axes


BANK, QUERIES = falling(M, 2.0, 1), falling(40, 2.0, 2)


def same(found: vecbank.results.TopK, metric: str, bank: torch.Tensor = BANK, x: torch.Tensor = QUERIES) -> None:
    expected = vecbank.topk(x, bank, found.indices.shape[-1], metric)
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.values, expected.values)


def last_axes(n: int, seed: int) -> torch.Tensor:
    """Queries where the bank has least of its length."""
    axes = torch.linalg.eigh(BANK.T @ BANK).eigenvectors[:, :24]
    return torch.randn(n, 24, generator=torch.Generator().manual_seed(seed)) @ axes.T


@pytest.mark.parametrize("metric", ["dot", "cosine", "l2", "sqeuclidean"])
def test_a_falling_spectrum_gets_a_head(metric: str) -> None:
    bank = vecbank.Bank(BANK, metric, screen="int8").prepare()
    told = bank.explain(QUERIES)
    assert told.head is not None and told.head < D / 2
    assert list(told.screened)[0] == "head" and told.gain is not None and told.gain >= 1.1
    assert told.predicted is not None and told.head <= told.predicted < D and told.head <= told.dimensions < D
    assert f"a head of {told.head} coordinates" in told.why
    same(bank.topk(QUERIES, 10), metric)


def test_rows_without_direction_get_none() -> None:
    bank = vecbank.Bank(torch.randn(M, D, generator=torch.Generator().manual_seed(3)), "dot", screen="int8")
    before = bank.prepare()._packs[bank._kind("topk", bank.vectors, METRICS["dot"])].pack
    told = bank.explain(QUERIES)
    assert told.head is None and told.predicted == D and told.dimensions == D and list(told.screened) == ["int8"]
    bank.prepare()
    assert bank._packs[bank._kind("topk", bank.vectors, METRICS["dot"])].pack is before  # nothing was packed again


def test_it_is_chosen_once_it_pays() -> None:
    bank = vecbank.Bank(BANK, "dot", screen="int8")
    needed = _head.worth_choosing_after(D)
    x = QUERIES[:1].expand(needed // 3 + 1, D)
    heads = []
    for _ in range(5):
        same(bank.topk(x, 10), "dot", x=x)
        heads.append(bank.explain(x[:1]).head)
    assert heads[0] is None and heads[-1] is not None


def test_other_vectors_are_asked_anew() -> None:
    bank = vecbank.Bank(BANK.clone(), "dot", screen="int8").prepare()
    assert bank.explain(QUERIES).head is not None
    bank.vectors.copy_(torch.randn(M, D, generator=torch.Generator().manual_seed(4)))
    assert bank.explain(QUERIES).head is None
    same(bank.topk(QUERIES, 5), "dot", bank.vectors)


def test_update_keeps_the_head() -> None:
    bank = vecbank.Bank(BANK.clone(), "l2", screen="int8").prepare()
    head = bank.explain(QUERIES).head
    rows = torch.tensor([0, 17, M - 1])
    bank.update_(rows, falling(3, 0.0, 5))
    assert bank.explain(QUERIES).head == head
    same(bank.topk(QUERIES, 10), "l2", bank.vectors)
    bank.update_(torch.arange(M), falling(M, 2.0, 6))  # all of them: it is chosen anew later
    assert bank.explain(QUERIES).head is None
    same(bank.topk(QUERIES, 10), "l2", bank.vectors)


def test_what_packs_anew_drops_the_head() -> None:
    bank = vecbank.Bank(BANK.clone(), "dot", screen="int8").prepare()
    bank.vectors.data[3] = 10 * QUERIES[0]
    bank.repack()
    assert bank.topk(QUERIES[0], 1).indices.item() == 3
    assert bank.explain(QUERIES).head is None
    assert bank.prepare().explain(QUERIES).head is not None
    half = bank.bfloat16()
    assert half.explain(QUERIES.bfloat16()).head is None
    assert half.prepare().explain(QUERIES.bfloat16()).head is not None
    same(half.topk(QUERIES.bfloat16(), 10), "dot", half.vectors, QUERIES.bfloat16())
    half.load_state_dict(half.state_dict())
    assert half.explain(QUERIES.bfloat16()).head is None


def test_an_error_while_it_packs_leaves_a_sound_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = vecbank.Bank(BANK, "dot", screen="int8")
    x = falling(_head.worth_choosing_after(D), 2.0, 15)
    bank.topk(x[:1], 10)
    real = vecbank._prepared.ops.pack

    def stopped(*_: object) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(vecbank._prepared.ops, "pack", stopped)
    with pytest.raises(KeyboardInterrupt):
        bank.topk(x, 10)
    monkeypatch.setattr(vecbank._prepared.ops, "pack", real)
    assert bank.explain(x[:5]).head is None
    bank.topk(x[:1], 10)
    assert bank.explain(x[:5]).head is not None


def test_rows_that_are_mostly_zero() -> None:
    bank = torch.zeros(100, 8)
    bank[:40] = torch.randn(40, 8, generator=torch.Generator().manual_seed(16))
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(17))
    for metric in ("dot", "cosine", "l2"):
        same(vecbank.Bank(bank, metric, screen="int8", head=3).topk(x, 3), metric, bank, x)


def test_a_trace_at_the_call_that_chooses() -> None:
    """Nothing is chosen while calls are recorded, and the record has nothing of it."""
    bank = vecbank.Bank(BANK, "dot", screen="int8")
    x = falling(_head.worth_choosing_after(D), 2.0, 18)
    bank.topk(x[:1], 10)
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda rows: bank.topk(rows, 10).indices)(x)
    assert [node.op for node in graph.graph.nodes].count("call_function") <= 3
    with torch.device("meta"):
        assert bank.prepare().explain(x[:5]).head is not None
    same(bank.topk(QUERIES, 10), "dot")


def test_masks_and_many_ranks_with_a_head() -> None:
    bank = vecbank.Bank(BANK, "dot", screen="int8", head=32)
    for share in (0.01, 0.1, 0.5, 0.9):
        allowed = torch.rand(40, M, generator=torch.Generator().manual_seed(19)) < share
        for k in (1, 10, 100):
            found, expected = (
                bank.topk(QUERIES, k, allowed=allowed),
                vecbank.topk(QUERIES, BANK, k, "dot", allowed=allowed),
            )
            assert torch.equal(found.indices, expected.indices) and torch.equal(found.values, expected.values)


def test_a_head_of_ones_own() -> None:
    for head in (1, 40, D - 1, D):
        bank = vecbank.Bank(BANK, "cosine", head=head)
        same(bank.topk(QUERIES, 10), "cosine")
        told = bank.explain(QUERIES)
        if "head" in told.screened or "int8" in told.screened:  # else this instruction set begins with another screen
            assert told.head == (None if head == D else head)
        assert bank.head == head and pickle.loads(pickle.dumps(bank)).head == head
    with pytest.raises(AttributeError):
        bank.head = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("head", "screen", "error", "words"),
    [
        (0, "auto", ValueError, "head must lie between 1 and the width of the vectors, 256, got 0"),
        (D + 1, "auto", ValueError, "got 257"),
        (-1, "auto", ValueError, "got -1"),
        (2.0, "auto", TypeError, "head"),
        (8, "float32", ValueError, 'screen must be "auto" or "int8"'),
    ],
)
def test_errors(head: object, screen: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        vecbank.Bank(BANK, "dot", screen=screen, head=head)  # type: ignore[arg-type]


def test_small_and_odd_banks() -> None:
    for rows, d in ((1, 1), (3, 1), (5, 2), (17, 64), (300, 64)):
        bank = torch.randn(rows, d, generator=torch.Generator().manual_seed(rows))
        x = bank[:2] + 0.1
        for made in (vecbank.Bank(bank, "l2").prepare(), vecbank.Bank(bank, "l2", head=max(1, d // 2))):
            same(made.topk(x, min(3, rows)), "l2", bank, x)


def test_rows_that_are_not_finite() -> None:
    bad = BANK.clone()
    bad[::7, 3] = torch.nan
    bad[5] = torch.inf
    bad[11] = 3e38
    for made in (vecbank.Bank(bad, "dot", screen="int8").prepare(), vecbank.Bank(bad, "dot", screen="int8", head=20)):
        same(made.topk(QUERIES, 10), "dot", bad)
    nothing = torch.full((3000, 64), torch.nan)  # no axes to find: all coordinates, or those as they are
    for made in (vecbank.Bank(nothing, "dot", screen="int8").prepare(), vecbank.Bank(nothing, "dot", head=20)):
        assert made.topk(torch.ones(2, 64), 3).indices.tolist() == [[-1] * 3] * 2


@pytest.mark.parametrize("n", [1, 40, 200])
def test_queries_unlike_the_bank(n: int) -> None:
    """They lie where the bank has least of its length, so a head leaves nearly all rows."""
    bank = vecbank.Bank(BANK, "dot", screen="int8").prepare()
    x = last_axes(n, 8)
    same(bank.topk(x, 10), "dot", x=x)


def test_prepare_asks_with_the_queries() -> None:
    """Queries that only see the last axes need all coordinates."""
    x = last_axes(100, 8)
    bank = vecbank.Bank(BANK, "dot", screen="int8").prepare()
    assert bank.explain(QUERIES).head is not None
    assert bank.prepare(queries=x).explain(x).head is None  # packed again
    same(bank.topk(x, 10), "dot", x=x)
    assert bank.prepare(queries=QUERIES, k=1).explain(QUERIES).head is not None


def test_many_banks_have_none() -> None:
    banks = torch.stack([BANK[:6000], BANK[6000:12000]])
    bank = vecbank.Bank(banks, "dot", screen="int8", head=10).prepare()
    x = torch.stack([QUERIES, QUERIES])
    found, expected = bank.topk(x, 3), vecbank.topk(x, banks, 3, "dot")
    assert torch.equal(found.indices, expected.indices)


def test_the_model_prefers_less_where_there_is_less() -> None:
    """The steeper the spectrum, the smaller the head, and the fewer survivors a wider head leaves."""
    told = [_head.predict(falling(M, exponent, 9), METRICS["dot"]) for exponent in (0.5, 1.5, 3.0)]
    best = [min(one.costs, key=lambda head, one=one: one.costs[head]) for one in told if one is not None]
    assert best == sorted(best, reverse=True) and best[0] > best[-1]
    for one in told:
        assert one is not None
        shares = [one.left[head] for head in sorted(one.left)]
        assert shares == sorted(shares, reverse=True) and 0 <= shares[-1] < shares[0] <= 1


def test_the_sample_of_queries_decides_and_not_the_last_call() -> None:
    """Queries unlike the others, in the call that chooses, change little; `explain` neither counts nor chooses."""
    bank = vecbank.Bank(BANK, "dot", screen="int8")
    bank.topk(QUERIES, 10)
    needed = _head.worth_choosing_after(D)
    x = falling(needed - 40, 2.0, 11)
    bank.topk(x, 10)
    for _ in range(3):
        assert bank.explain(x).head is None
    odd = torch.randn(60, D, generator=torch.Generator().manual_seed(12))
    bank.topk(odd, 10)
    assert bank.explain(x).head is not None and "chosen" in repr(bank)


def test_single_queries_are_asked_as_such() -> None:
    worth = _head.worth_choosing_after(D)
    asked = Asked(worth, worth)
    for row in falling(300, 2.0, 13):
        asked.add(row)
    assert asked.few and 1 <= len(asked.sample()) <= 300
    asked.add(falling(9000, 2.0, 14))
    assert not asked.few and len(asked.sample()) <= 2 * 128


def test_a_head_that_costs_more_is_given_up_and_tried_again() -> None:
    """For queries unlike the bank; later ones are like it again. The answers are the same all the time."""
    bank = vecbank.Bank(BANK, "dot", screen="int8").prepare()
    worth = _head.worth_choosing_after(D)
    odd = last_axes(worth // 8, 20)
    heads = []
    for _ in range(6):
        same(bank.topk(odd, 10), "dot", x=odd)
        heads.append(bank.explain(odd[:3]).head)
    assert heads[0] is not None and heads[-1] is None
    assert f"a head of {heads[0]} was given up" in bank.explain(odd[:3]).why
    rows = torch.tensor([3, 5])
    bank.update_(rows, bank.vectors[rows].clone())  # which keeps what was chosen, and when it is chosen again
    assert f"a head of {heads[0]} was given up" in bank.explain(odd[:3]).why
    usual = falling(2 * worth, 2.0, 21)
    before = waits_for(bank)
    for _ in range(3):
        bank.topk(usual, 1)
    assert bank.explain(QUERIES).head is not None
    for _ in range(11):
        bank.topk(odd, 10)
    assert bank.explain(odd[:3]).head is None and waits_for(bank) > before  # it is tried later each time
    same(bank.topk(QUERIES, 10), "dot")


def waits_for(bank: vecbank.Bank) -> int:
    """After how many queries from its choice on the Bank chooses again."""
    chooser = bank._packs[bank._kind("topk", bank.vectors, METRICS["dot"])].chooser
    assert chooser is not None and chooser._asked is not None
    return chooser._asked.enough


def test_no_room_for_another_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches go on with the pack that there is, after one warning, and the next try comes later."""
    bank = vecbank.Bank(BANK, "dot", screen="int8")
    x, real, tries = falling(_head.worth_choosing_after(D), 2.0, 28), vecbank._prepared.ops.pack, []

    def no_room(*given: Any) -> torch.Tensor:
        if given[5] is None:
            return real(*given)
        tries.append(given)
        raise MemoryError("no room")

    monkeypatch.setattr(vecbank._prepared.ops, "pack", no_room)
    bank.topk(x[:1], 10)
    with pytest.warns(RuntimeWarning, match="no other head could be prepared, and searches go on as before: no room"):
        same(bank.topk(x, 10), "dot", x=x)
    for _ in range(2):
        same(bank.topk(x, 10), "dot", x=x)
    assert len(tries) == 1 and bank.explain(QUERIES).head is None


def test_calls_that_are_refused_choose_nothing() -> None:
    bank = vecbank.Bank(BANK, "dot", screen="int8")
    x = falling(_head.worth_choosing_after(D), 2.0, 29)
    bank.topk(x[:1], 10)
    for k in (0, -1, M + 1):
        with pytest.raises((ValueError, RuntimeError)):
            bank.topk(x, k)
    assert bank.explain(QUERIES).head is None
    bank.topk(x, 10)
    assert bank.explain(QUERIES).head is not None


def test_a_head_stays_while_it_pays() -> None:
    bank = vecbank.Bank(BANK, "dot", screen="int8").prepare()
    x = falling(_head.worth_choosing_after(D) // 2, 2.0, 22)
    made = bank._packs[bank._kind("topk", bank.vectors, METRICS["dot"])].pack
    for _ in range(4):
        bank.topk(x, 10)
    assert bank._packs[bank._kind("topk", bank.vectors, METRICS["dot"])].pack is made


def head_use(bank: vecbank.Bank) -> _head.Use:
    pack = bank._packs[bank._kind("topk", bank.vectors, METRICS["dot"])].pack
    return _head.Use(*_C.take_head_use(pack.data_ptr()))


def test_what_searches_with_a_head_tell() -> None:
    bank, other = (vecbank.Bank(BANK, "dot", screen="int8", head=head).prepare() for head in (32, 24))
    for each in (bank, other, bank):
        each.topk(QUERIES, 10)
    told = head_use(bank)
    assert told.searches == 2 and told.pairs == told.scanned == 80 * M and told.repeated == 0
    assert 0 < told.survivors < told.pairs / 10 and told.left == told.survivors / told.scanned
    assert head_use(other).searches == 1 and head_use(bank) == _head.Use()  # what was told is not told again
    bank.topk(last_axes(40, 23), 10)
    told = head_use(bank)
    assert told.pairs == told.repeated == 40 * M and told.scanned < told.pairs and told.left > 0.1
    vecbank.topk(QUERIES, BANK, 10, "dot")
    assert head_use(bank) == _head.Use()


def test_masked_rows_are_no_survivors() -> None:
    bank = vecbank.Bank(BANK, "dot", screen="int8", head=32).prepare()
    allowed = torch.rand(M, generator=torch.Generator().manual_seed(24)) < 0.1
    bank.topk(QUERIES, 10, allowed=allowed)
    assert 0 < head_use(bank).survivors <= 40 * int(allowed.sum())


def test_each_choice_lasts_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that costs too much is given up later each time, so queries of two kinds in turn do not pack each time."""
    head, pack, few = _head.Head(64, torch.eye(D), 70.0, 2.0), torch.zeros(1), QUERIES[:10]
    use = (1, 10 * M, 5 * M, 4 * M, 10 * M)
    monkeypatch.setattr(_C, "take_head_use", lambda _: use)
    chooser, needed = Chooser(D), []
    for _ in range(5):
        chooser = Chooser(D, head, chooser)
        calls = 1
        while not chooser.due(few, pack, M):
            calls += 1
        searches = chooser.searches(5)
        assert chooser.measured == searches.measured == (64, 0.8) and searches.k == 5
        assert searches.queries is not None and searches.queries.shape[1] == D
        needed.append(calls)
    assert needed == sorted(needed) and needed[-1] > 4 * needed[0]
    use = (1, 10 * M, 10 * M, 1, 0)
    looks = []
    monkeypatch.setattr(_C, "take_head_use", lambda _: looks.append(1) or use)
    chooser = Chooser(D, head)
    assert not any(chooser.due(few, pack, M) for _ in range(5000))
    assert 0 < len(looks) <= 50_000 // (_head.worth_choosing_after(D) // 4)  # not at every call


def test_explain_does_not_count_for_the_choice() -> None:
    """It says what such queries would take, and the Bank keeps its head."""
    bank = vecbank.Bank(BANK, "dot", screen="int8").prepare()
    odd = last_axes(_head.worth_choosing_after(D) // 4, 26)
    for _ in range(3):
        told = bank.explain(odd)
        assert told.head is not None and "x as long as with all coordinates" in told.why
    assert "x as long" not in bank.explain(QUERIES).why
    bank.topk(QUERIES, 10)
    bank.explain(odd)
    for _ in range(4):
        bank.topk(falling(len(odd), 2.0, 27), 10)
    assert bank.explain(QUERIES).head == told.head


def test_what_was_measured_is_of_the_queries_that_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of those before, for which the head was given up."""
    head, pack, x = _head.Head(64, torch.eye(D), 70.0, 2.0), torch.zeros(1), QUERIES[:10]
    use = (1, 10 * M, 5 * M, 4 * M, 10 * M)
    monkeypatch.setattr(_C, "take_head_use", lambda _: use)
    chooser = Chooser(D, head)
    while chooser.measured is None:
        assert not chooser.due(x, pack, M)
    assert chooser.measured == (64, 0.8)
    use = (1, 10 * M, 10 * M, M, 0)
    while not chooser.due(x, pack, M):
        pass
    assert chooser.measured == (64, 0.1)


def test_what_was_measured_corrects_the_model() -> None:
    """A head that left ten times as much as the sample says leaves room for a wider one, or none."""
    vectors, code = falling(M, 1.0, 25), METRICS["dot"]
    plain = _head.predict(vectors, code)
    assert plain is not None
    best = min(plain.costs, key=lambda head: plain.costs[head])
    told = _head.predict(vectors, code, _head.Searches(measured=(best, 10 * plain.left[best] + 0.01)))
    assert told is not None and all(told.costs[head] >= plain.costs[head] for head in plain.costs)
    assert min(told.costs, key=lambda head: told.costs[head]) >= best
    assert _head.choose(vectors, code, _head.Searches(measured=(best, 1.0))).rotation is None


@pytest.mark.parametrize("sizes", [[1] * 3000, [700] * 5, [3000], [999, 1, 1, 1999], [0, 2000, 0, 1000]])
def test_a_sample_of_the_last_queries(sizes: list[int]) -> None:
    """The last 1024 of 3000, every eighth of them."""
    asked, numbers, at = Asked(3000, 1024), torch.arange(4000.0)[:, None], 0
    for size in sizes:
        assert asked.count < 3000
        done = asked.add(numbers[at : at + size])
        at += size
    taken = asked.sample()[:, 0]
    assert done and taken[0] == 1976 and bool((taken.diff() == 8).all()) and 128 <= len(taken) <= 256


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"queries": torch.zeros(3, D + 1)}, ValueError, r"queries must be \(..., 256\) like the bank, got \(3, 257\)"),
        ({"queries": "all"}, TypeError, "queries"),
        ({"queries": torch.zeros(3, D, dtype=torch.int64)}, TypeError, "queries"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 1.5}, TypeError, "k"),
        ({"what": "project", "queries": QUERIES}, ValueError, "project"),
        ({"metric": QUERIES}, TypeError, "queries="),
    ],
)
def test_errors_of_prepare(arguments: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        vecbank.Bank(BANK, "dot").prepare(**arguments)  # type: ignore[arg-type]
    nothing = vecbank.Bank(BANK, "dot").prepare(queries=QUERIES[:0], k=10**7)  # no query to ask with, and a large k
    same(nothing.topk(QUERIES, 3), "dot")
