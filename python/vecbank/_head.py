"""The head of a Bank: how many coordinates of turned rows a search looks at first, chosen by a cost model.

A rotation that gathers the vectors' lengths in few coordinates lets the 8-bit screen look at these alone, with a bound
for the rest (csrc/cpu/search/screens/head.h). What that leaves, the survivors, costs more than a product. So the model
counts survivors in a sample, and adds up what everything costs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from . import _C, _checks
from ._ops import METRICS

_SAMPLE, _QUERIES = 8192, 128
_LEAST_WIDTH, _MOST_WIDTH = 96, 2048  # below, there is little to save; above, eigenvectors take seconds
_LEAST_ROWS = 40  # per coordinate of the width: the rotation takes a fortieth of the vectors' memory then
_LEAST_GAIN = 1.1  # what the model may be wrong by
_LINES, _HEAD_LINES = 16.0, 30.0  # what a pair costs besides its products: of all coordinates, and of a head
_WARM_UP = 6.0  # the threshold of an average pair is that of so many times k rows: it rises while rows are scanned
_SAMPLED = 1 / 16  # of the rows are scanned twice, for a first threshold (sample_panels in csrc/cpu/search/worker.cpp)
_SAMPLED_PER_RANK, _MOST_SAMPLED = 384, 1 / 4  # where k asks for more
_LEAST_LEFT = 1e-3  # a share of survivors below which the measured and the predicted one are not compared
FEW = 4  # queries for which memory limits the speed, not products


class _Costs(NamedTuple):
    """Of an instruction set, in picoseconds of one thread; measured, see bench/NOTES.md."""

    product: float  # of two 8-bit codes
    turn: float  # a float32 product of a query's rotation
    margin: float  # not a cost: how far the upper bound of a head lies above its score, in proportion to both lengths


_COSTS = {
    "avx512vnni": _Costs(2.2, 13, 0.019),
    "avx512": _Costs(3.5, 13, 0.038),
    "avx2vnni": _Costs(4.2, 20, 0.019),
    "avx2": _Costs(7.2, 20, 0.038),
    "scalar": _Costs(100.0, 100, 0.019),
}
_SURVIVOR, _TAIL_BYTE = 6_000.0, 85.0  # picoseconds: a row that the head leaves, and a byte of its other codes
_REPEATED = 2.5  # what a pair costs that a head leaves to the next screen, in proportion to all coordinates in 8 bits
_QUERY = 6e6  # what a query costs besides
_READ = _Costs(25.0, 100, 0.019)  # few queries: of a byte, and of a float32 number, as memory gives them


def width_of(head: object, vectors: Tensor, screen: str) -> int:
    """The width of a head, as the Bank was told it."""
    width = _checks.integer("head", head)
    if not 1 <= width <= vectors.shape[-1]:
        raise ValueError(f"head must lie between 1 and the width of the vectors, {vectors.shape[-1]}, got {width}")
    if width < vectors.shape[-1] and screen not in ("auto", "int8"):
        raise ValueError(f'a head is screened in 8 bits: screen must be "auto" or "int8", got {screen!r}')
    return width


@contextmanager
def _one_thread() -> Iterator[None]:
    """Eigenvectors take many short steps, at whose ends threads wait for each other: seconds on a busy machine."""
    if threading.active_count() > 1:  # others that begin to use torch meanwhile would keep to one thread
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Head(NamedTuple):
    """What was chosen for a pack: a head, or all coordinates."""

    width: int  # of the head; d: all coordinates, as they are
    rotation: Tensor | None  # (d, d) float32; None: all coordinates
    predicted: float | None  # coordinates of a row that a query looks at, on average; None: nobody asked the model
    gain: float | None  # how many times as long all coordinates are predicted to take as the best head


def possible(rows: int, width: int) -> bool:
    """Whether the model is worth asking."""
    return _LEAST_WIDTH <= width <= _MOST_WIDTH and rows >= _LEAST_ROWS * width


def worth_choosing_after(width: int) -> int:
    """So many queries save about what turning the bank costs, with a head of three quarters."""
    costs = _COSTS[_C.isa()]
    return int(4 * width * costs.turn / costs.product)


def few(queries: int) -> bool:
    """Whether memory limits the speed of a call with so many queries, not products."""
    return 0 < queries <= FEW


class Searches(NamedTuple):
    """What a head is chosen for."""

    queries: Tensor | None = None  # (..., d); None: the vectors themselves stand for them
    k: int = 10
    few: bool = False  # to a call, so that memory limits the speed
    # The share of the bank that a head of this width left to such queries, where it is known. If it is larger than the
    # sample says, because of masks for instance, the shares of other widths are taken to be as much larger.
    measured: tuple[int, float] | None = None


_LIKE_THE_BANK = Searches()


def _costs_of(few: bool) -> _Costs:
    costs = _COSTS[_C.isa()]
    return _READ._replace(margin=costs.margin) if few else costs


def _whole(costs: _Costs, width: int) -> float:
    """Picoseconds for a pair by all coordinates."""
    return (width + _LINES) * costs.product


def _by_head(
    costs: _Costs, width: int, head: int, rows: int, left: float, sampled: float, scanned: float = 1.0
) -> float:
    """Picoseconds for a pair by a head that scans so many of the pairs, a part of them twice, and leaves so many."""
    return (
        scanned * (1 + sampled) * (head + _HEAD_LINES) * costs.product
        + left * (_SURVIVOR + _TAIL_BYTE * (width - head))
        + costs.turn * width * width / rows
    )


class Prediction(NamedTuple):
    """What searches cost with each head, in picoseconds for a pair."""

    whole: float  # of all coordinates
    costs: dict[int, float]  # by the head's width
    left: dict[int, float]  # the share of the bank that it leaves to the other coordinates
    axes: Tensor  # (d, d) float64


@_one_thread()
def predict(vectors: Tensor, code: int, searches: Searches = _LIKE_THE_BANK) -> Prediction | None:
    """The costs of such searches. None: too few rows."""
    rows, width = vectors.shape
    bank, asked = _samples(vectors, code, searches.queries)
    if len(bank) < 256 or len(asked) == 0:
        return None
    axes = _principal_axes(bank)
    if axes is None:
        return None
    k, measured, costs = searches.k, searches.measured, _costs_of(searches.few)
    left = _survivors(asked @ axes.T.float(), bank @ axes.T.float(), METRICS["l2"] == code, k, rows, costs.margin)
    if measured is not None and measured[0] in left:
        more = (measured[1] + _LEAST_LEFT) / (left[measured[0]] + _LEAST_LEFT)
        left = {head: min(1.0, share * max(1.0, more)) for head, share in left.items()}
    query = (0.0 if searches.few else _QUERY) / rows
    sampled = max(_SAMPLED, min(_MOST_SAMPLED, _SAMPLED_PER_RANK * k / rows))
    cost = {head: _by_head(costs, width, head, rows, share, sampled) + query for head, share in left.items()}
    return Prediction(_whole(costs, width) + query, cost, left, axes)


class Use(NamedTuple):
    """What searches with a head did (HeadUse of csrc/cpu/api.h), in pairs of a query and a row of the bank."""

    searches: int = 0
    pairs: int = 0
    scanned: int = 0  # by the head
    survivors: int = 0  # whose other coordinates were looked at
    repeated: int = 0  # by other screens, because the head left too many

    @property
    def left(self) -> float:
        """The share of the bank that the head left to the other coordinates."""
        return self.survivors / max(1, self.scanned)

    def plus(self, more: Use) -> Use:
        return Use(*(a + b for a, b in zip(self, more, strict=True)))

    def cost(self, width: int, head: int, rows: int) -> float:
        """What it cost by the model, in proportion to all coordinates of all pairs; the bank has so many rows."""
        if self.pairs == 0:
            return 0.0
        costs = _costs_of(self.pairs <= FEW * rows * self.searches)
        left, scanned, repeated = (n / self.pairs for n in (self.survivors, self.scanned, self.repeated))
        return _by_head(costs, width, head, rows, left, _SAMPLED, scanned) / _whole(costs, width) + repeated * _REPEATED


@_one_thread()
def choose(vectors: Tensor, code: int, searches: Searches = _LIKE_THE_BANK) -> Head:
    """The head with the smallest predicted cost, or all coordinates."""
    width = vectors.shape[-1]
    told = predict(vectors, code, searches)
    if told is None:
        return all_of(width)
    best = min(told.costs, key=lambda head: told.costs[head])
    gain = told.whole / told.costs[best]
    if gain < _LEAST_GAIN:
        return all_of(width, gain)
    return Head(best, _flattened(told.axes, best), best + told.left[best] * (width - best), gain)


def all_of(width: int, gain: float | None = None) -> Head:
    return Head(width, None, None if gain is None else float(width), gain)


@_one_thread()
def fixed(vectors: Tensor, code: int, width: int) -> Head:
    """A head of this width, whatever it costs."""
    d = vectors.shape[-1]
    if width >= d:
        return all_of(d)
    bank, _ = _samples(vectors, code, None)
    axes = _principal_axes(bank) if len(bank) else None
    if axes is None:
        axes = torch.eye(d, dtype=torch.float64, device="cpu")
    return Head(width, _flattened(axes, width), None, None)


def _samples(vectors: Tensor, code: int, queries: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows of the bank and queries in float32, as a screen sees them: of unit length, or less their centre."""
    rows = len(vectors)
    step = max(1, rows // _SAMPLE)
    bank = _plain(vectors[: step * _SAMPLE : step])
    if queries is None:
        # between the rows of the sample, so that few queries are among them
        of_queries = torch.arange(_QUERIES, device=vectors.device) * max(1, rows // _QUERIES) + step // 2
        asked = _plain(vectors[of_queries[of_queries < rows]])
    else:
        flat = queries.reshape(-1, queries.shape[-1])
        asked = _plain(flat[:: max(1, len(flat) // _QUERIES)][:_QUERIES])
    if code == METRICS["cosine"]:
        return torch.nn.functional.normalize(bank), torch.nn.functional.normalize(asked)
    centre = bank.mean(0) if len(bank) else bank.new_zeros(bank.shape[-1])
    shifted = bank - centre
    if code == METRICS["l2"] or bool(shifted.norm(dim=1).median() < 0.5 * bank.norm(dim=1).median()):
        return shifted, asked - centre if code == METRICS["l2"] else asked
    return bank, asked


def _plain(rows: Tensor) -> Tensor:
    """Finite rows in float32 on the CPU, without zero ones and those whose squares overflow or underflow."""
    wide = rows.detach().to("cpu", torch.float32)
    norms = wide.norm(dim=1)
    return wide[(norms > 1e-18) & (norms < 1e18)].contiguous()


def _principal_axes(sample: Tensor) -> Tensor | None:
    """(d, d) float64: the eigenvectors of the sample's second moments, the largest first; None: there are none."""
    wide = sample.double()
    wide = wide / wide.norm(dim=1).median().clamp_min(1e-30)
    try:
        axes = torch.linalg.eigh(wide.T @ wide).eigenvectors.flip(1).T
    except RuntimeError:  # it did not converge
        return None
    return axes if bool(axes.isfinite().all()) else None


def _flattened(axes: Tensor, head: int) -> Tensor:
    """The same head and the same tail, each mixed within itself, so that no coordinate is much larger than others."""
    generator = torch.Generator("cpu").manual_seed(0)

    def mixed(part: Tensor) -> Tensor:
        drawn = torch.randn(len(part), len(part), generator=generator, dtype=torch.float64, device="cpu")
        return torch.linalg.qr(drawn).Q @ part

    return torch.cat([mixed(axes[:head]), mixed(axes[head:])]).float().contiguous()


def _survivors(y: Tensor, c: Tensor, distances: bool, k: int, rows: int, margin: float) -> dict[int, float]:
    """For each width of a head, which share of the bank it leaves to the other coordinates."""
    width = y.shape[1]
    step = max(16, width // 24 // 16 * 16)
    length_y, length_c = y.norm(dim=1), c.norm(dim=1)
    start = -0.5 * length_c.square() if distances else torch.zeros_like(length_c)
    rank = min(len(c), max(1, round(_WARM_UP * k * len(c) / rows)))
    threshold = (y @ c.T + start).topk(rank, dim=1).values[:, -1:]
    rest_y, rest_c = length_y.square(), length_c.square()
    known = start.expand(len(y), -1).clone()
    left = {}
    for head in range(step, width - step // 2, step):
        part = slice(head - step, head)
        known += y[:, part] @ c[:, part].T
        rest_y, rest_c = rest_y - y[:, part].square().sum(1), rest_c - c[:, part].square().sum(1)
        tails = rest_y.clamp_min(0).sqrt()[:, None] * rest_c.clamp_min(0).sqrt()
        left[head] = float((known + tails + margin * length_y[:, None] * length_c >= threshold).float().mean())
    return left
