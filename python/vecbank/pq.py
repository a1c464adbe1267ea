"""Product quantisation: a vector cut into parts, each part replaced by the nearest row of its own small book.

``x ~ concat_i books[i][code_i]``; m parts of b bits stand for 2^(m b) vectors in m b / 8 bytes. Optionally
the vector is rotated first so that the parts are as independent and as even as they can be (optimised
product quantisation). Distances to codes are sums of m table entries: exact query against code
(asymmetric), or code against code (symmetric).

Sources: Jegou, Douze, Schmid, "Product quantization for nearest neighbor search", PAMI 33, 2011; Ge, He,
Ke, Sun, "Optimized product quantization", CVPR 2013 (start by eigenvalue allocation, then alternating).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from . import _checks, _interrupt
from ._codes import METRICS
from ._numpy import entry_point, tensor_of
from ._progress import Progress
from .codes import pack_bits, packed_bytes, unpack_bits
from .functional import lookup, project
from .kmeans import kmeans

_METRICS = ("sqeuclidean", "dot")


def check_books(books: Tensor) -> tuple[int, int, int]:
    """The sizes m, K and w of books."""
    _checks.floating("books", books)
    if books.dim() != 3 or 0 in books.shape:
        raise ValueError(f"books must have shape (m, K, d / m), got {tuple(books.shape)}")
    m, k, width = books.shape
    return m, k, width


def _rotated(x: Tensor, books: Tensor, rotation: Tensor | None) -> Tensor:
    """x (..., d) as (..., m w): zeros to fill the last part, then the rotation."""
    m, _, width = check_books(books)
    _checks.floating("x", x)
    if x.dim() == 0 or not m * (width - 1) < x.shape[-1] <= m * width:  # those d with w = ceil(d / m)
        raise ValueError(f"x must have {m * (width - 1) + 1} to {m * width} columns, got {tuple(x.shape)}")
    if x.shape[-1] < m * width:
        x = torch.nn.functional.pad(x, (0, m * width - x.shape[-1]))
    if rotation is None:
        return x
    _checks.shaped("rotation", rotation, (m * width, m * width))
    return turned(x, rotation)


def turned(x: Tensor, rotation: Tensor) -> Tensor:
    """x R in R's dtype: float64 sums rounded once, so that the same row has the same codes in any batch and on any
    processor. The way back decides nothing and is `project`'s.
    """
    rows = rotation.T.contiguous()
    _checks.pair(x, rows, "rotation")
    result: Tensor = _interrupt.ops.exact_scores(x, rows, METRICS["dot"], rotation.dtype)
    return result


def _pair(y: Tensor, books: Tensor) -> None:
    """Dtype and device of what is coded are those of the books."""
    _checks.pair(y.unflatten(-1, (books.shape[0], books.shape[2])), books[0], "books")


def check_width(name: str, width: object, most: int) -> int:
    found = _checks.integer(name, width)
    if not 1 <= found <= most:
        raise ValueError(f"{name} must lie between 1 and the books' m w = {most}, got {found}")
    return found


def _parts(x: Tensor, m: int) -> Tensor:
    """(n, m w) as (m, n, w)."""
    return x.view(x.shape[0], m, x.shape[1] // m).transpose(0, 1)


@entry_point
def pq_encode(x: Tensor, books: Tensor, rotation: Tensor | None = None) -> Tensor:
    """Codes (..., m) int64: per part the nearest row, exactly, ties to the lower number.

    Args:
        x: (..., d), of the books' dtype (or 16-bit with float32 books).
        books: (m, K, w) with w = ceil(d / m); a d that m does not divide is filled up with zeros.
        rotation: (m w, m w) orthogonal; ``x R`` is what is coded.
    """
    y = _rotated(x, books, rotation)
    _pair(y, books)
    codes: Tensor = _interrupt.ops.product_quantize(y, books, None)
    return codes


@entry_point
def pq_decode(codes: Tensor, books: Tensor, rotation: Tensor | None = None, width: int | None = None) -> Tensor:
    """What codes (..., m) stand for: (..., d) with d = ``width`` (m w by default). Differentiable in the
    books.
    """
    m, k, w = check_books(books)
    codes = _checks.integers(codes)
    if codes.dim() == 0 or codes.shape[-1] != m:
        raise ValueError(f"codes must have shape (..., {m}), got {tuple(codes.shape)}")
    width = None if width is None else check_width("width", width, m * w)
    rows = _checks.stacked_rows(codes, k, m, torch.arange(m, device=codes.device))
    y = lookup(rows, books.reshape(m * k, w)).flatten(-2)
    if rotation is not None:
        _checks.shaped("rotation", rotation, (m * w, m * w))
        _checks.pair(y, rotation, "rotation", "books")
        y = project(y, rotation, "dot")
    return y if width is None else y[..., :width]


@entry_point
def pq_tables(x: Tensor, books: Tensor, metric: str = "sqeuclidean", rotation: Tensor | None = None) -> Tensor:
    """Asymmetric tables (..., m, K): each query part against each row of its book; `pq_scores` adds them
    up.
    """
    if metric not in _METRICS:
        raise ValueError(f"metric must be one of {', '.join(_METRICS)} (a sum over parts), got {metric!r}")
    y = _rotated(x, books, rotation).reshape(-1, books.shape[0] * books.shape[2])
    _pair(y, books)
    tables = project(_parts(y, books.shape[0]), books, metric, out_dtype=x.dtype)
    return tables.transpose(0, 1).reshape(*x.shape[:-1], *books.shape[:2])


@entry_point
def pq_symmetric_tables(codes: Tensor, books: Tensor, metric: str = "sqeuclidean") -> Tensor:
    """Tables (..., m, K) of queries known by their codes (..., m): rows of the m tables (K, K) of book
    against itself; NaN for code -1.
    """
    m, k, _ = check_books(books)
    if metric not in _METRICS:
        raise ValueError(f"metric must be one of {', '.join(_METRICS)} (a sum over parts), got {metric!r}")
    codes = _checks.integers(codes)
    if codes.dim() == 0 or codes.shape[-1] != m:
        raise ValueError(f"codes must have shape (..., {m}), got {tuple(codes.shape)}")
    _checks.in_range(codes, k)
    pairs = project(books, books, metric)
    rows = pairs[torch.arange(m, device=codes.device), codes.clamp_min(0)]
    return rows.masked_fill((codes < 0).unsqueeze(-1), torch.nan)


@entry_point
def pq_scores(tables: Tensor, codes: Tensor) -> Tensor:
    """Distances or products of Q queries to N codes, (Q, N): ``sum_i tables[q, i, codes[n, i]]``, i
    ascending.

    Args:
        tables: (Q, m, K), from `pq_tables` or `pq_symmetric_tables`.
        codes: (N, m) integers; -1 (a part without a valid row) makes the vector's scores NaN.
    """
    _checks.floating("tables", tables)
    codes = _checks.integers(codes)
    if tables.dim() != 3 or codes.dim() != 2 or codes.shape[1] != tables.shape[1]:
        raise ValueError(f"need tables (Q, m, K) and codes (N, m), got {tuple(tables.shape)} and {tuple(codes.shape)}")
    _checks.in_range(codes, tables.shape[2])
    scores, rows = tables.new_zeros(tables.shape[0], codes.shape[0]), codes.clamp_min(0)
    for i in range(codes.shape[1]):
        scores += tables[:, i].index_select(1, rows[:, i])
    return scores.masked_fill_((codes < 0).any(1), torch.nan)


@dataclass(frozen=True)
class ProductCodec:
    """Trained books, and the rotation if there is one: `pq_train` makes it.

    It may be made of numpy arrays, holds tensors, and its methods take and return tensors or numpy arrays.

    Attributes:
        books: (m, K, w).
        width: d of the vectors it codes, m w at most.
        rotation: (m w, m w), or None.
    """

    books: Tensor
    width: int
    rotation: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("books", "rotation"):
            held = getattr(self, name)
            if isinstance(held, np.ndarray):
                object.__setattr__(self, name, tensor_of(held, name).clone())
        m, _, w = check_books(self.books)
        object.__setattr__(self, "width", check_width("width", self.width, m * w))
        if self.rotation is not None:
            _checks.shaped("rotation", self.rotation, (m * w, m * w))

    @property
    def bits(self) -> int:
        """Of one part's code."""
        return max(1, (self.books.shape[1] - 1).bit_length())

    @property
    def bytes_per_vector(self) -> int:
        """Of one packed row of codes."""
        return packed_bytes(self.books.shape[0], self.bits)

    @entry_point
    def encode(self, x: Tensor, *, packed: bool = False) -> Tensor:
        """Codes (..., m) int64, or packed (..., bytes_per_vector) uint8."""
        codes = pq_encode(x, self.books, self.rotation)
        return pack_bits(codes, self.bits) if packed else codes

    @entry_point
    def codes(self, codes: Tensor) -> Tensor:
        """Codes (..., m) int64, whether packed or not."""
        _checks.tensor("codes", codes)
        if codes.dtype == torch.uint8:
            return unpack_bits(codes, self.books.shape[0], self.bits)
        return _checks.integers(codes)

    @entry_point
    def decode(self, codes: Tensor) -> Tensor:
        """Vectors (..., d) of codes, packed or not."""
        return pq_decode(self.codes(codes), self.books, self.rotation, self.width)

    @entry_point
    def tables(self, x: Tensor, metric: str = "sqeuclidean") -> Tensor:
        """Asymmetric tables (..., m, K) of queries (..., d)."""
        return pq_tables(x, self.books, metric, self.rotation)

    @entry_point
    def symmetric_tables(self, codes: Tensor, metric: str = "sqeuclidean") -> Tensor:
        """Symmetric tables (..., m, K) of queries given by their codes."""
        return pq_symmetric_tables(self.codes(codes), self.books, metric)

    def to(self, *args: Any, **kwargs: Any) -> ProductCodec:
        """The codec with its tensors moved or cast, as `torch.Tensor.to`."""
        rotation = None if self.rotation is None else self.rotation.to(*args, **kwargs)
        return ProductCodec(self.books.to(*args, **kwargs), self.width, rotation)


torch.serialization.add_safe_globals([ProductCodec])  # so that torch.load reads one without weights_only=False


def _allocate(x: Tensor, m: int) -> Tensor:
    """Principal axes dealt to m parts so that the products of their variances come out alike (Ge et al.,
    3.2).
    """
    centred = x.double() - x.double().mean(0)
    variance, axes = torch.linalg.eigh(centred.T @ centred / max(1, x.shape[0]))
    room = x.shape[1] // m
    parts: list[list[int]] = [[] for _ in range(m)]
    load = [0.0] * m
    for axis in variance.argsort(descending=True).tolist():
        at = min((i for i in range(m) if len(parts[i]) < room), key=lambda i: (load[i], i))
        parts[at].append(axis)
        load[at] += float(variance[axis].clamp_min(1e-12).log())
    return axes[:, [axis for part in parts for axis in part]].to(x.dtype)


def _refine(y: Tensor, books: Tensor, iterations: int) -> Tensor:
    """The books after some more steps of k-means from where they are."""
    m, k, _ = books.shape
    steps = [kmeans(p, k, init=b, iterations=iterations).centroids for p, b in zip(_parts(y, m), books, strict=True)]
    return torch.stack(steps)


@entry_point
@torch.no_grad()
def pq_train(
    x: Tensor,
    parts: int,
    bits: int = 8,
    *,
    rotation: bool = False,
    iterations: int = 25,
    rotations: int = 20,
    samples_per_code: int = 256,
    generator: Generator | int | None = None,
    progress: bool = False,
) -> ProductCodec:
    """Books for product quantisation, by k-means on each part.

    Args:
        x: (N, d) samples, finite, N >= 2^bits. 16-bit samples are read as float32.
        parts: m, 1 to d.
        bits: 1 to 16 per part: books of 2^bits rows.
        rotation: also learn an orthogonal matrix R that makes ``x R`` cheaper to code. Start: the better of none and
            eigenvalue allocation; then ``rotations`` times one k-means step and the best R for the decoded vectors
            (an orthogonal Procrustes problem). The linear algebra is torch's: repeatable, but not the same bits on
            every machine.
        iterations: k-means steps per part.
        samples_per_code: train on at most this many samples per row of a book, drawn without replacement.
        generator: source of all draws, or the seed of one. progress: draw a bar on stderr.

    Returns:
        ProductCodec.
    """
    _checks.floating("x", x)
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"x must have shape (N, d) with d > 0, got {tuple(x.shape)}")
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    n, d = x.shape
    parts, bits = _checks.integer("parts", parts), _checks.integer("bits", bits)
    iterations, rotations = _checks.at_least(0, "iterations", iterations), _checks.at_least(0, "rotations", rotations)
    samples_per_code = _checks.at_least(1, "samples_per_code", samples_per_code)
    generator = _checks.generator(generator)
    for name, value, high in (("parts", parts, d), ("bits", bits, 16)):
        if not 1 <= value <= high:
            raise ValueError(f"{name} must lie between 1 and {high}, got {value}")
    k = 1 << bits
    if n < k:
        raise ValueError(f"x must have at least 2^bits = {k} rows to train on, got {n}")
    if n > k * samples_per_code:
        source = generator.device if generator is not None else torch.device("cpu")
        chosen = torch.randperm(n, generator=generator, device=source)[: k * samples_per_code]
        x = x[chosen.to(x.device).sort().values]
    width = (d + parts - 1) // parts
    x = torch.nn.functional.pad(x, (0, parts * width - d))
    starts = [None, _allocate(x, parts)] if rotation else [None]
    turns = rotations if rotation else 0
    with Progress(f"product quantiser {parts} x {k}", parts * len(starts) + turns + bool(turns), progress) as bar:
        tried = []
        for turn in starts:
            y = x if turn is None else x @ turn
            found = []
            for part in _parts(y, parts):
                found.append(kmeans(part, k, iterations=iterations, local_trials=1, generator=generator))
                bar.step()
            tried.append((sum(f.inertia for f in found), turn, torch.stack([f.centroids for f in found])))
        # neither start is best for all data: parts that belong together already are worth keeping
        _, turn, books = min(tried, key=lambda t: t[0])
        y = x if turn is None else x @ turn
        for _ in range(turns):
            books = _refine(y, books, 1)
            decoded = pq_decode(pq_encode(y, books), books)
            u, _, v = torch.linalg.svd((x.T @ decoded).double())
            turn = (u @ v).to(x.dtype)
            y = x @ turn
            bar.step()
        if turns:
            books = _refine(y, books, iterations)
            bar.step()
    if rotation and turn is None:
        turn = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return ProductCodec(books, d, turn)
