"""Packs with a head: whatever the rotation, the head and the data, no answer changes by a bit."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import METRICS
from helpers import CODE, FLOATS, ISAS, assert_same, gauss, op, seeded
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import vecbank

SCREENED = ("dot", "cosine", "l2", "sqeuclidean")
INT8 = 4  # the use of a pack for searches that begin with codes, whatever the bank's size
DATA = (
    "spectrum",  # most of every length lies in the head
    "plain",  # heads hold as much as any other coordinates
    "beyond",  # queries lie outside the head altogether, rows mostly: the head leaves nearly everything
    "integers",  # many ties
    "twice",  # every row is there twice, and queries are among them
    "offset",  # a centre far away
    "ruined",  # NaN, infinity, and rows that float32 squares cannot hold
    "faint",  # zero rows, rows that vanish beside the others, subnormal ones
    "scales",
)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, one_thread: None) -> Iterator[str]:
    vecbank._C.set_isa(request.param)
    yield request.param


@functools.cache
def rotation(d: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=seeded(d), dtype=torch.float64)).Q.float().contiguous()


@functools.cache
def draw(data: str, n: int, m: int, d: int, head: int) -> tuple[Tensor, Tensor]:
    x, bank = gauss(n, d), gauss(m, d, seed=1)
    if data in ("spectrum", "offset", "ruined", "scales", "twice"):
        x[:, head:], bank[:, head:] = 0.05 * x[:, head:], 0.05 * bank[:, head:]
    elif data == "beyond":
        x[:, :head], bank[:, :head] = 0.0, 0.1 * bank[:, :head]
    x, bank = x @ rotation(d), bank @ rotation(d)
    if data == "integers":
        x, bank = (2 * x).round(), (2 * bank).round()
    elif data == "twice":
        bank = bank[torch.arange(m) // 2]
        x[::2] = bank[torch.arange(len(x[::2])) * 7 % m]
    elif data == "offset":
        x, bank = 1000 + 0.01 * x, 1000 + 0.01 * bank
    elif data == "ruined":
        bank[::5, 0], bank[1::7, 0], bank[2::11] = float("nan"), float("inf"), 3e38
        x[1::3, 0], x[2::5] = float("-inf"), 1e-30
    elif data == "faint":
        bank[::2] *= 1e-25
        bank[::6], bank[1::6], x[::3] = 0.0, bank[1::6] * 1e-40, x[::3] * 1e-30
    elif data == "scales":
        bank *= 10.0 ** (torch.arange(m) % 9 - 4).unsqueeze(1)
        x *= 10.0 ** (torch.arange(n) % 13 - 6).unsqueeze(1)
    return x, bank


@functools.cache
def plain(metric: str, data: str, dtype: torch.dtype, m: int, d: int, head: int, k: int) -> tuple[Tensor, ...]:
    """Queries, a bank, and the answer without a pack."""
    x, bank = (t.to(dtype) for t in draw(data, 130, m, d, head))
    return x, bank, *op("topk")(x, bank, None, k, CODE[metric])


def packed(bank: Tensor, metric: str, head: int, bias: Tensor | None = None, stamp: bool = False) -> Any:
    return op("pack")(bank, CODE[metric], bias, stamp, INT8, rotation(bank.shape[-1]), head)


def check_topk(metric: str, data: str, dtype: torch.dtype, m: int, d: int, head: int) -> None:
    pack = None
    for k in (1, 10, 200):
        if k > m:
            continue
        x, bank, *want = plain(metric, data, dtype, m, d, head, k)
        pack = packed(bank, metric, head) if pack is None else pack
        for n in (1, 3, 16, 130):
            got = op("topk")(x[:n], bank, pack, k, CODE[metric])
            assert_same(tuple(got), tuple(t[:n] for t in want), f"{n} queries, k = {k}")


@pytest.mark.parametrize("metric", SCREENED)
@pytest.mark.parametrize("data", DATA)
def test_a_head_changes_no_bit(data: str, metric: str, isa: str) -> None:
    check_topk(metric, data, torch.float32, 1700, 33, 11)


@pytest.mark.parametrize("metric", SCREENED)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_of_any_dtype(dtype: torch.dtype, metric: str, isa: str) -> None:
    check_topk(metric, "spectrum", dtype, 1700, 33, 11)


@pytest.mark.parametrize("metric", SCREENED)
@pytest.mark.parametrize(
    "m, d, head", [(7, 20, 5), (16, 33, 32), (100, 2, 1), (333, 33, 1), (333, 96, 95), (90, 40, 13)]
)
def test_of_any_shape(m: int, d: int, head: int, metric: str, isa: str) -> None:
    for data in ("spectrum", "beyond", "ruined"):
        check_topk(metric, data, torch.float32, m, d, head)


@pytest.mark.parametrize("metric", SCREENED)
@pytest.mark.parametrize("data", ["spectrum", "beyond", "twice"])
def test_masks_and_biases(data: str, metric: str, isa: str) -> None:
    x, bank = draw(data, 130, 1700, 33, 11)
    pack, code = packed(bank, metric, 11), CODE[metric]
    half = (torch.arange(1700) % 2 == 0).expand(130, 1700)
    some = torch.rand(130, 1700, generator=seeded()) < torch.tensor([0.0, 0.002, 0.3, 0.9]).repeat(33)[:130, None]
    for mask in (half, some):
        for n, k in ((1, 10), (16, 1), (130, 10)):
            assert_same(
                op("topk")(x[:n], bank, pack, k, code, mask[:n]), op("topk")(x[:n], bank, None, k, code, mask[:n])
            )
    if metric == "dot":
        for bias in (gauss(1700, seed=5), 100 * gauss(1700, seed=5), torch.zeros(1700)):
            pack = packed(bank, metric, 11, bias)
            for n, k in ((1, 1), (3, 10), (130, 1), (130, 10)):
                got, want = (op("topk")(x[:n], bank, p, k, code, None, True, bias) for p in (pack, None))
                assert_same(got, want)


@pytest.mark.parametrize("metric", SCREENED)
def test_of_every_search(metric: str, isa: str) -> None:
    code = CODE[metric]
    for data in ("spectrum", "beyond", "ruined"):
        x, bank = draw(data, 130, 1700, 33, 11)
        pack = packed(bank, metric, 11)
        for name in ("nearest", "quantize", "quantize_train", "project"):
            for n in (1, 130):
                assert_same(op(name)(x[:n], bank, pack, code), op(name)(x[:n], bank, None, code), name)
        books = [bank, 0.3 * draw("plain", 130, 900, 33, 11)[1]]
        packs = [packed(book, metric, 5) for book in books]
        got, want = (op("residual_quantize")(x, books, p, code) for p in (packs, []))
        assert_same(got, want, "residual_quantize")


def test_of_batched_banks(isa: str) -> None:
    banks = torch.stack([draw(data, 90, 600, 33, 11)[1] for data in ("spectrum", "plain")])
    x = torch.stack([draw(data, 90, 600, 33, 11)[0] for data in ("spectrum", "beyond")])
    for metric in SCREENED:
        code = CODE[metric]
        pack = packed(banks, metric, 11)
        for name, extra in (("topk", (10,)), ("topk", (1,)), ("nearest", ()), ("quantize", ())):
            assert_same(op(name)(x, banks, pack, *extra, code), op(name)(x, banks, None, *extra, code), name)
    split = torch.cat([x[0], x[1]], -1)
    pack = packed(banks, "sqeuclidean", 11)
    assert_same(op("product_quantize")(split, banks, pack), op("product_quantize")(split, banks, None))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_head_counts_what_it_does(threads: int, isa: str) -> None:
    """The head decides, or gives up: then another screen takes over, but for few queries."""
    torch.set_num_threads(threads)
    for data in ("spectrum", "beyond"):
        x, bank = draw(data, 400, 6000, 64, 16)
        pack = packed(bank, "cosine", 16)
        for n in (1, 400):
            vecbank._C.reset_counters()
            got = op("topk")(x[:n], bank, pack, 10, CODE["cosine"])
            seen = vecbank._C.counters()
            assert_same(got, op("topk")(x[:n], bank, None, 10, CODE["cosine"]))
            assert seen["head"] >= n and seen["int8"] == 0
            others = seen["int16"] + seen["float32"]
            if n == 1:
                assert others == 0
            elif data == "beyond" and threads == 1:  # more cut the bank into parts too small to give up
                assert others > 0, seen
            elif data == "spectrum" and others == 0:  # on a busy machine another screen may be timed to be faster
                assert seen["dimensions"] < 0.5 * 64 * seen["pairs"]


def test_a_head_of_one_isa_serves_another(one_thread: None) -> None:
    x, bank = draw("spectrum", 130, 1700, 33, 11)
    want = op("topk")(x, bank, None, 10, CODE["l2"])
    for packs in ISAS:
        vecbank._C.set_isa(packs)
        pack = packed(bank, "l2", 11)
        for searches in ISAS:
            vecbank._C.set_isa(searches)
            assert_same(op("topk")(x, bank, pack, 10, CODE["l2"]), want, f"{packs}, then {searches}")


def test_a_search_sees_through_one_pack_of_both_distances() -> None:
    x, bank = draw("spectrum", 130, 1700, 33, 11)
    pack = packed(bank, "l2", 11)
    assert_same(op("topk")(x, bank, pack, 10, CODE["sqeuclidean"]), op("topk")(x, bank, None, 10, CODE["sqeuclidean"]))


@pytest.mark.parametrize("metric", SCREENED)
@pytest.mark.parametrize("rows", [3, 900], ids=["few", "all"])
def test_written_rows_are_packed_again(rows: int, metric: str, isa: str) -> None:
    x, bank = (t.clone() for t in draw("spectrum", 130, 1700, 33, 11))
    bias = gauss(1700, seed=5) if metric == "dot" else None
    pack, code = packed(bank, metric, 11, bias, stamp=True), CODE[metric]
    where = torch.randperm(1700, generator=seeded())[:rows]
    bank[where] = 3 * gauss(rows, 33, seed=9)
    op("repack_")(pack, bank, code, where, bias, True)
    for n, k in ((1, 10), (130, 1), (130, 10)):
        got, want = (op("topk")(x[:n], bank, p, k, code, None, True, bias) for p in (pack, None))
        assert_same(got, want)
    if rows == 900:
        assert torch.equal(pack[128:].sort().values, packed(bank, metric, 11, bias, stamp=True)[128:].sort().values)


def test_equal_banks_have_equal_packs() -> None:
    for m in (1, 17, 333):
        bank = gauss(m, 37)
        first = packed(bank, "dot", 9)
        for _ in range(3):
            torch.full((first.numel(),), 0xA5, dtype=torch.uint8)  # memory that the next pack may be given
            assert torch.equal(packed(bank, "dot", 9), first)


WIDE, TURN = gauss(50, 24), rotation(24)
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "a head alone": ((INT8, None, 8), "a head goes with a rotation, and a rotation with a head"),
    "a rotation alone": ((INT8, TURN, 0), "a head goes with a rotation, and a rotation with a head"),
    "all of the width": ((INT8, TURN, 24), "head must lie between 1 and 23, got 24"),
    "more": ((INT8, TURN, 2**40), "head must lie between 1 and 23, got 1099511627776"),
    "negative": ((INT8, TURN, -1), "head must lie between 1 and 23, got -1"),
    "float32 panels": ((2, TURN, 8), "a head needs a pack of codes on the CPU: its use must be int8"),
    "every op": ((0, TURN, 8), "a head needs a pack of codes on the CPU: its use must be int8"),
    "a narrow rotation": ((INT8, rotation(23), 8), "rotation must be contiguous float32 (24, 24), got (23, 23)"),
    "a wide rotation": ((INT8, gauss(24, 25), 8), "rotation must be contiguous float32 (24, 24), got (24, 25)"),
    "a flat rotation": ((INT8, gauss(576), 8), "rotation must be contiguous float32 (24, 24), got (576)"),
    "batched rotations": ((INT8, TURN[None], 8), "rotation must be contiguous float32 (24, 24), got (1, 24, 24)"),
    "float64": ((INT8, TURN.double(), 8), "rotation must be contiguous float32 (24, 24), got (24, 24)"),
    "bfloat16": ((INT8, TURN.bfloat16(), 8), "rotation must be contiguous float32 (24, 24), got (24, 24)"),
    "not contiguous": ((INT8, TURN.T, 8), "rotation must be contiguous float32 (24, 24), got (24, 24)"),
}
ORTHOGONAL = "rotation must be orthogonal, and finite"
REFUSED_BY_VALUE: dict[str, Tensor] = {
    "NaN": torch.where(torch.eye(24) > 0, float("nan"), TURN),
    "infinity": torch.where(torch.eye(24) > 0, float("inf"), TURN),
    "too long": 2 * TURN,
    "too short": 0.9 * TURN,
    "zero": torch.zeros(24, 24),
    "huge": 1e30 * TURN,
    "noise": gauss(24, 24),
}


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, fake: bool) -> None:
    (use, turn, head), text = REFUSED[what]
    with pytest.raises(RuntimeError) as caught:
        if fake:
            with FakeTensorMode() as mode:
                there = None if turn is None else mode.from_tensor(turn)
                op("pack")(mode.from_tensor(WIDE), 0, None, False, use, there, head)
        else:
            op("pack")(WIDE, 0, None, False, use, turn, head)
    said = str(caught.value).split("vecbank: ", 1)[1].splitlines()[0]
    assert said.replace(",)", ")") == text


@pytest.mark.parametrize("what", REFUSED_BY_VALUE)
def test_what_is_no_rotation_is_refused(what: str, isa: str) -> None:
    with pytest.raises(RuntimeError, match=ORTHOGONAL):
        op("pack")(WIDE, 0, None, False, INT8, REFUSED_BY_VALUE[what].contiguous(), 8)


def test_a_rotation_on_another_device_is_refused() -> None:
    for bank, turn in ((WIDE, TURN.to("meta")), (WIDE.to("meta"), TURN)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            op("pack")(bank, 0, None, False, INT8, turn, 8)


def test_a_metric_without_a_screen_has_no_head() -> None:
    assert METRICS[-1] == "l1"
    for use in range(5):
        with pytest.raises(RuntimeError, match="a head needs a pack of codes"):
            op("pack")(WIDE, CODE["l1"], None, False, use, TURN, 8)


def test_a_pack_with_a_head_belongs_to_its_bank() -> None:
    x, bias = gauss(3, 24), gauss(50)
    pack = packed(WIDE, "dot", 8)
    for bank, metric, biases in (
        (WIDE[:49], "dot", None),
        (WIDE[:, :23], "dot", None),
        (WIDE.half(), "dot", None),
        (WIDE, "l2", None),
        (WIDE, "dot", bias),
    ):
        with pytest.raises(RuntimeError, match="does not belong to a bank of this shape, dtype, metric and bias"):
            op("topk")(x[:, : bank.shape[1]].to(bank.dtype), bank, pack, 2, CODE[metric], None, True, biases)
    with pytest.raises(RuntimeError, match="does not belong"):
        op("topk")(x, WIDE, pack[:-1], 2, CODE["dot"])


def test_damaged_headers_never_crash(isa: str) -> None:
    """Every half word of the header changed in turn: an error, or an answer, but no access outside the pack."""
    x, bank = gauss(4, 24), gauss(200, 24)
    good = packed(bank, "l2", 7)
    rows = torch.tensor([3, 150])
    for half in range(44):
        for value in (0, 1, -1, 6, 8, 23, 24, 2**30, -(2**31), 0x7FC00000, 0x3F800000):
            for call in (
                lambda pack: op("topk")(x, bank, pack, 2, CODE["l2"]),
                lambda pack: op("repack_")(pack, bank, CODE["l2"], rows),
            ):
                pack = good.clone()
                pack[:176].view(torch.int32)[half] = value
                try:
                    call(pack)
                except RuntimeError:
                    pass


def test_a_fake_pack_is_as_long_as_the_real_one() -> None:
    for rows in (1, 16, 17, 65):
        for width in (2, 9, 40):
            for metric, biased in (("dot", False), ("dot", True), ("cosine", False), ("l2", False)):
                bank, turn, bias = gauss(rows, width), rotation(width), gauss(rows) if biased else None
                for head in {1, width // 2, width - 1}:
                    real = packed(bank, metric, head, bias)
                    with FakeTensorMode() as mode:
                        fakes = [None if t is None else mode.from_tensor(t) for t in (bank, bias, turn)]
                        fake = op("pack")(fakes[0], CODE[metric], fakes[1], False, INT8, fakes[2], head)
                    assert fake.shape == real.shape


class PackAndSearch(torch.nn.Module):
    def forward(self, bank: Tensor, turn: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        pack = op("pack")(bank, CODE["cosine"], None, False, INT8, turn, 7)
        return pack, op("topk")(x, bank, pack, 2, CODE["cosine"])[1]


@pytest.mark.parametrize("how", ["compile", "export"])
def test_a_program_packs_with_a_head(how: str) -> None:
    program: torch.nn.Module = PackAndSearch()
    bank, x = gauss(100, 24), gauss(4, 24)
    if how == "export":
        program = torch.export.export(program, (bank, TURN, x)).module()
    else:
        program = torch.compile(program, fullgraph=True, backend="aot_eager")
    pack, indices = program(bank, TURN, x)
    assert torch.equal(pack, packed(bank, "cosine", 7))
    assert torch.equal(indices, op("topk")(x, bank, None, 2, CODE["cosine"])[1])
