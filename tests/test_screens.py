"""Banks and their screens: what is packed when, how much of it, and that no screen changes an answer."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import CODE, ISAS, Target, assert_same, gauss
from torch import Tensor

import vecbank
from vecbank import Bank, _prepared, _progress

pytestmark = pytest.mark.usefixtures("both_ways")

METRICS = ("dot", "cosine", "l2", "sqeuclidean")
SCREENS = ("auto", "float32", "int16", "int8")


def available(screen: str) -> bool:
    return screen != "int16" or vecbank._C.has_int16()


def held(bank: Bank) -> set[bool]:
    """Of the packs: whether they hold codes."""
    return {kind.int8 for kind in bank._packs}


@pytest.mark.parametrize("metric", METRICS)
def test_codes_are_for_wide_vectors_that_they_tell_apart(metric: str, one_thread: None) -> None:
    rows, width, k = vecbank._C.int8_panels, 3000, 3
    least = next(m for m in range(1000, 20_000, 1000) if rows(m, width, CODE[metric], 1) or m > 9000)
    if not rows(least, width, CODE[metric], 1):
        pytest.skip("8-bit codes pay for no such bank on this processor")
    noise = gauss(least, width)
    spread = gauss(least, 8) @ gauss(8, width, seed=1) + noise / 10
    x, y = noise[:5] + gauss(5, width, seed=2) / 10, spread[:5] + gauss(5, width, seed=2) / 10
    bank = Bank(noise.clone(), metric)  # which shares what it is made of
    found = bank.topk(x, k)
    assert held(bank) == {False}, "the scores lie too close to each other"
    assert "too close to each other for 8-bit codes" in bank.explain(x, k).why
    assert_same(found, Bank(noise, metric, screen="int8").topk(x, k))
    assert_same(found, vecbank.topk(x, noise, k, metric=metric))
    bank.topk(x[:1], k)
    assert held(bank) == {False, True}, "memory limits the speed of one query"
    assert held(Bank(noise, metric).prepare(queries=x[:1])) == {True}
    assert held(Bank(noise, metric).prepare(queries=x)) == {False}
    bank.vectors.copy_(spread)
    assert_same(bank.topk(y, k), Bank(spread, metric).topk(y, k))
    assert bank._coded and held(bank) == {True} and held(Bank(spread, metric).prepare()) == {True}
    same = Bank(noise[:1].expand(least, width), metric).prepare()
    assert held(same) == {False} or bool(same._coded), "equal rows: either will do"
    assert_same(same.topk(x, k).indices, torch.arange(k).expand(5, k))
    with torch.device("meta"):
        assert held(Bank(noise, metric).prepare()) == {False}, "whatever the default device is"
    odd = noise.clone()
    odd[0], odd[least // 128] = float("nan"), float("inf")
    assert held(Bank(odd, metric).prepare()) == {True}, "nothing is known of the scores"


@pytest.mark.parametrize("metric", METRICS)
def test_a_bank_packs_what_a_verb_needs(metric: str, target: Target) -> None:
    rows, x = gauss(9000, 48), gauss(70, 48, seed=1)
    codes = target.isa is not None and vecbank._C.int8_panels(9000, 48, CODE[metric], 1)
    bank = Bank(rows, metric)
    assert not bank._packs and "packed at first use" in repr(bank)
    bank.topk(x, 3)
    bank.nearest(x)
    assert held(bank) == {codes}
    bank.project(x)
    assert held(bank) == {codes, False}
    assert ("packed as int8" in repr(bank)) == codes and "packed as float32" in repr(bank)
    bank.repack()
    assert held(bank) == {codes, False}
    assert held(Bank(rows, metric).prepare()) == {codes}
    assert held(Bank(rows, metric).prepare("project")) == {False}
    for screen in SCREENS:
        if available(screen):
            made = Bank(rows, metric, screen=screen).prepare("project")
            (pack,) = (held.pack for held in made._packs.values())
            assert pack.numel() > rows.numel() * 4, "panels of float32"
            assert_same(made.project(x), bank.project(x))
    assert held(Bank(rows).prepare("search", metric)) == {codes}
    assert not Bank(rows, metric, learnable=True).prepare()._packs
    forced = Bank(rows, metric, screen="float32").prepare().prepare("project")
    assert held(forced) == {False} and len(forced._packs) == 1, "one pack for both"


@pytest.mark.parametrize("width", [32, 34, 35, 36, 64, 100, 128, 768])
@pytest.mark.parametrize("metric", METRICS)
def test_a_bank_for_search_is_light(metric: str, width: int) -> None:
    rows = gauss(4096, width)
    pack = torch.ops.vecbank.pack(rows, CODE[metric], None, False, 4)
    # Beside few coordinates the norms of cosine count.
    most = 0.43 if metric == "cosine" and width < 36 else 0.40
    assert pack.numel() <= most * rows.numel() * 4
    half = torch.ops.vecbank.pack(rows.half(), CODE[metric], None, False, 4)
    assert half.numel() == pack.numel(), "beside half the bytes of vectors"


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("data", ["ordinary", "far", "outlier", "equal", "ruined", "faint", "scales", "integers"])
def test_no_screen_changes_an_answer(data: str, screen: str, target: Target) -> None:
    """Among them banks that a coarse screen cannot decide, for which finer ones take over, with panels of their own."""
    if target.isa is None or not available(screen):
        pytest.skip("a screen of the CPU")
    for metric in METRICS:
        for n, m, d, k in (
            (1, 3000, 40, 4),
            (5, 900, 64, 1),
            (150, 2000, 33, 10),
            (90, 600, 260, 1),
            (64, 4000, 32, 90),
        ):
            x, rows = draw(data, gauss(n, d), gauss(m, d, seed=1))
            bias = gauss(m, seed=3) if metric == "dot" and n == 150 else None
            bank = Bank(rows, metric, screen=screen, bias=bias)
            want = vecbank.topk(x.double(), rows.double(), k, metric, bias=None if bias is None else bias.double())
            got = bank.topk(x, k)
            assert torch.equal(got.indices, want.indices), (metric, n, m, d, k)
            if bias is None:
                assert torch.equal(bank.quantize(x).codes, want.indices[:, 0]), (metric, n, m, d)


def draw(data: str, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    if data == "far":
        return 1000 + 0.01 * x, 1000 + 0.01 * rows
    if data == "outlier":  # the coordinate that embeddings have: the codes are of rotated rows
        x[:, 3], rows[:, 3] = 40 * x[:, 3], 40 * rows[:, 3]
    elif data == "equal":
        rows[:] = rows[0]
    elif data == "ruined":
        rows[::3], rows[1], x[0] = float("nan"), 3e38, 1e-30
    elif data == "faint":
        rows[: len(rows) // 2] *= 1e-12
    elif data == "scales":
        rows *= 10.0 ** (torch.arange(len(rows)) % 7 - 3).unsqueeze(1)
    elif data == "integers":
        return x.round(), rows.round()
    return x, rows


@pytest.mark.parametrize("screen", SCREENS)
def test_written_rows_are_coded_again(screen: str, target: Target) -> None:
    if target.isa is None or not available(screen):
        pytest.skip("a screen of the CPU")
    rows, x = gauss(2000, 40), gauss(100, 40, seed=1)
    bank = Bank(rows.clone(), "cosine", screen=screen).prepare()
    (before,) = bank._packs.values()
    for step in range(4):
        where, new = torch.randint(2000, (30,), generator=torch.Generator().manual_seed(step)).unique(), None
        new = gauss(len(where), 40, seed=step + 2) * 10.0 ** (2 * step)
        bank.update_(where, new)
        rows[where] = new
        (after,) = bank._packs.values()
        assert after.pack is before.pack
        assert_same(tuple(bank.topk(x, 5)), tuple(vecbank.topk(x, rows, 5, "cosine")), f"step {step}")


@pytest.mark.parametrize("metric", METRICS)
def test_codes_serve_every_level(metric: str, one_thread: None) -> None:
    """The codes of a bank have as many bits as the level that packs it likes; queries leave room for them on others."""
    before = vecbank._C.isa()
    rows, x = gauss(3000, 70), gauss(130, 70, seed=1)
    want = vecbank.topk(x, rows, 7, metric)
    try:
        for packs in ISAS:
            vecbank._C.set_isa(packs)
            pack = torch.ops.vecbank.pack(rows, CODE[metric], None, False, 4)
            for searches in ISAS:
                vecbank._C.set_isa(searches)
                for n in (1, 3, 130):
                    got = torch.ops.vecbank.topk(x[:n], rows, pack, 7, CODE[metric])
                    assert_same(tuple(got), tuple(t[:n] for t in want), f"{packs}, then {searches}")
    finally:
        vecbank._C.set_isa(before)


def test_written_rows_of_a_biased_bank_are_coded_again(target: Target) -> None:
    rows, x, bias = gauss(2000, 40), gauss(100, 40, seed=1), 3 * gauss(2000, seed=2)
    bank = Bank(rows.clone(), "dot", bias=bias, screen="int8").prepare()
    where, new = torch.arange(7, 107), gauss(100, 40, seed=3)
    bank.update_(where, new)
    rows[where] = new
    assert_same(tuple(bank.topk(x, 5)), tuple(vecbank.topk(x, rows, 5, "dot", bias=bias)))


def test_a_screen_goes_with_a_bank() -> None:
    bank = Bank(gauss(50, 40), "l2", screen="float32")
    for copied in (copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))):
        assert copied.screen == "float32" and held(copied.prepare()) == {False}
    assert "screen='float32'" in repr(bank)
    with pytest.raises(AttributeError, match="the screen of a Bank is fixed at 'float32': make another one"):
        bank.screen = "int8"  # type: ignore[misc]


@pytest.mark.parametrize("screen", SCREENS)
def test_explain(screen: str, target: Target, one_thread: None) -> None:
    if target.isa is None or not available(screen):
        pytest.skip("a screen of the CPU")
    rows, x = gauss(9000, 64), gauss(150, 64, seed=1)
    bank = Bank(rows, "l2", screen=screen)
    told = bank.explain(x, 5)
    (first,) = told.screened
    if screen == "auto":
        assert first in ("float32", "int8", "int16") and vecbank._C.isa() in told.why
    else:
        assert first == screen and f'because the Bank says screen="{screen}"' in told.why
    assert told.queries == 150 and told.screened[first] == 150 and told.repeated == 0 and told.seconds > 0
    panels = 9000 * 64 * (1 if first == "int8" else 4)
    assert told.refined >= 5 * 150 and told.bytes_read >= panels + told.refined * 256
    far = Bank(torch.cat([rows[:4500] + 60, rows[4500:] - 60]), "dot", screen=screen).explain(x, 5)
    assert screen != "int8" or (len(far.screened) > 1 and "left too much undecided" in far.why)
    everything = bank.explain(x[:2], 9000)
    assert everything.screened == {} and "k = 9000 is an eighth" in everything.why and everything.refined == 18000
    assert "nothing to search" in bank.explain(x[:0]).why
    assert '"l1" has no screen' in Bank(rows, "l1").explain(x[:1]).why
    assert "packed at every call" in Bank(rows, "l2", learnable=True, screen=screen).explain(x).why
    few = bank.explain(x[:1], 5, torch.arange(9000) < 6000)
    assert few.queries == 1 and (screen != "int16" or "int16 does not serve so few" in few.why)
    with pytest.raises(ValueError, match="k must lie between 1 and"):
        bank.explain(x, 9001)
    vecbank._C.force_ways()
    tiny = Bank(gauss(30, 16), "dot", screen=screen).explain(gauss(2, 16), 1)
    assert tiny.screened == {} and "faster than a screen" in tiny.why and tiny.refined == 60 and tiny.repeated == 2


def test_explain_is_for_running_programs() -> None:
    bank = Bank(gauss(50, 40), "l2")
    assert torch.compile(lambda x: bank.explain(x, 5).queries, backend="eager")(gauss(3, 40)) == 3, "left uncompiled"
    with pytest.raises(RuntimeError):
        torch.compile(lambda x: bank.explain(x, 5).queries, backend="eager", fullgraph=True)(gauss(3, 40))


def test_refusals(target: Target) -> None:
    rows = gauss(5, 4)
    for wrong in ("int4", "", None, 8):
        with pytest.raises(ValueError, match="screen must be one of auto, float32, int16, int8, got"):
            Bank(rows, "l2", screen=wrong)  # type: ignore[arg-type]
    if not vecbank._C.has_int16():
        with pytest.raises(ValueError, match='screen "int16" needs a processor with AVX2 or AVX-512'):
            Bank(rows, "l2", screen="int16")
    with pytest.raises(ValueError, match='what must be "search" .* or "project", got .all.'):
        Bank(rows, "l2").prepare("all")
    with pytest.raises(ValueError, match='names no metric: say which, as in prepare."search", "l2".'):
        Bank(rows).prepare("search")
    with pytest.raises(ValueError, match="metric must be one of dot, .*, got 'euclid'"):
        Bank(rows, "l2").prepare("search", "euclid")
    with pytest.raises(ValueError, match="explain is for a Bank on the CPU, this one is on meta"):
        Bank(rows.to("meta"), "l2").explain(rows.to("meta"), 1)
    with pytest.raises(ValueError, match="this Bank is for \"l2\", got metric 'dot'"):
        Bank(rows, "l2").prepare("search", "dot")
    for use in (-1, 5):
        with pytest.raises(RuntimeError, match="use must lie between 0 and 4"):
            torch.ops.vecbank.pack(rows, 0, None, False, use)


def test_the_smallest_rows_have_no_larger_codes(target: Target) -> None:
    """Rows of 2^-90 have codes no larger than others: without VNNI, sums of larger ones would overflow 16 bits."""
    for exponent in range(-100, -84):
        rows, on = gauss(4000, 64) / 7, [0, 1, 4, 5]
        rows[:, on] = -rows[:, on].abs()
        rows[1234], rows[700] = 0, 0
        rows[1234, on], rows[700, 0] = 2.0**exponent, 2.0**exponent
        x = torch.zeros(64, 64)
        x[:, on] = 1
        for screen in ("auto", "int8"):
            assert Bank(rows, "dot", screen=screen).topk(x, 1).indices.unique().tolist() == [1234], exponent


def test_an_op_refuses_codes_that_were_tampered_with() -> None:
    rows, x = gauss(100, 40), gauss(3, 40, seed=1)
    pack = torch.ops.vecbank.pack(rows, CODE["dot"], None, False, 4)
    assert_same(tuple(torch.ops.vecbank.topk(x, rows, pack, 5, CODE["dot"])), tuple(vecbank.topk(x, rows, 5, "dot")))
    assert torch.equal(torch.ops.vecbank.project(x, rows, pack, CODE["dot"]), vecbank.project(x, rows, "dot"))
    for at, value in ((104, 9), (104, 0), (108, 0), (108, 200)):  # the kind of panels, the largest code
        other = pack.clone()
        other[at] = value
        with pytest.raises(RuntimeError, match="does not belong to a bank of this shape"):
            torch.ops.vecbank.topk(x, rows, other, 5, CODE["dot"])


def test_a_bar_of_preparing_is_drawn_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first second on; here from the first moment on."""
    vectors = gauss(3000, 32)
    before = vecbank._C.packed_rows()
    Bank(vectors, "l2").prepare("search", progress=True)
    assert vecbank._C.packed_rows() - before == 3008  # whole panels
    assert capsys.readouterr().err == ""  # it took less than a second
    monkeypatch.setattr(_progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(_progress, "_INTERVAL", 0.001)
    Bank(gauss(400_000, 32), "l2").prepare("search")
    assert capsys.readouterr().err == ""
    Bank(gauss(400_000, 32), "l2").prepare("project", progress=True)
    drawn = capsys.readouterr().err
    assert "preparing 400000 x 32 [" in drawn and "] 400000/400000 " in drawn and drawn.endswith("\n")


def test_without_memory_a_bank_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, x = gauss(9000, 64), gauss(70, 64, seed=1)
    bank = Bank(rows, "l2").prepare("search")
    packs = dict(bank._packs)

    def full(*args: Any) -> Any:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"
        )

    with monkeypatch.context() as patch:
        patch.setattr(_prepared, "ops", SimpleNamespace(pack=full))
        for call in (lambda: bank.prepare("project"), lambda: bank.project(x)):
            with pytest.raises(MemoryError):
                call()
    assert bank._packs == packs and torch.equal(bank.vectors, rows)
    assert_same(tuple(bank.topk(x, 3)), tuple(vecbank.topk(x, rows, 3, "l2")))
    torch.testing.assert_close(bank.project(x), vecbank.project(x, rows, "l2"))
