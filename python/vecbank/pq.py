"""Product quantisation: a vector cut into parts, each part replaced by the nearest row of its own small codebook.

`x ~ concat_i codebooks[i][code_i]`; m parts of b bits stand for 2^(m * b) vectors in m * b / 8 bytes. Optionally
the vector is rotated first so that the parts are as independent and as even as they can be (optimised
product quantisation). Distances to codes are sums of m table entries: exact query against code
(asymmetric), or code against code (symmetric).

Sources: Jegou, Douze, Schmid, "Product quantization for nearest neighbor search", PAMI 33, 2011; Ge, He,
Ke, Sun, "Optimized product quantization", CVPR 2013 (start by eigenvalue allocation, then alternating).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor

from . import _checks
from ._deprecated import old_attribute, old_names, renamed
from ._numpy import entry_point, tensor_of
from ._ops import ops
from ._pq_parts import check_codebooks, check_pair, check_width, rotated, split_parts
from ._progress import Progress
from .cluster import kmeans
from .codes import pack_bits, packed_bytes, unpack_bits
from .functional import lookup, project

__all__ = ["ProductCodec", "decode", "encode", "scores", "symmetric_tables", "tables", "train"]

if not TYPE_CHECKING:  # a type checker would take any name for one of the module
    __getattr__ = old_names(
        __name__, {f"pq_{name}": name for name in ("decode", "encode", "scores", "symmetric_tables", "tables", "train")}
    )

_METRICS = ("sqeuclidean", "dot")


@entry_point(books="codebooks")
def encode(x: Tensor, codebooks: Tensor, rotation: Tensor | None = None) -> Tensor:
    """The codes of vectors: per part the nearest row of its codebook, exactly, ties to the lower number.

    Args:
        x: (..., d), of the codebooks' dtype (or 16-bit with float32 codebooks).
        codebooks: (m, K, w) with w = ceil(d / m); a d that m does not divide is filled up with zeros.
        rotation: (m * w, m * w) orthogonal; `x @ R` is what is coded.

    Returns:
        Codes (..., m) int64; -1 for a part with NaN.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or device, by its name.

    Example:
        >>> import torch, vecbank
        >>> codebooks = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [2.0, 2.0]]])
        >>> vecbank.pq.encode(torch.tensor([[0.9, 1.2, 0.3, 0.1], [0.1, 0.0, 1.8, 2.5]]), codebooks).tolist()
        [[1, 0], [0, 1]]
    """
    y = rotated(x, codebooks, rotation)
    check_pair(y, codebooks)
    codes: Tensor = ops.product_quantize(y, codebooks, None)
    return codes


@entry_point(books="codebooks")
def decode(codes: Tensor, codebooks: Tensor, rotation: Tensor | None = None, width: int | None = None) -> Tensor:
    """The vectors that codes stand for. Differentiable in the codebooks.

    Args:
        codes: (..., m) integers; -1 gives zeros for its part.
        codebooks: (m, K, w).
        rotation: (m * w, m * w) orthogonal, the one of `encode`.
        width: d of the vectors that were coded, m * w by default.

    Returns:
        (..., d) in the codebooks' dtype.

    Raises:
        IndexError: a code of K or more.
        TypeError, ValueError: an argument of another dtype, shape or device, by its name.

    Example:
        >>> import torch, vecbank
        >>> codebooks = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [2.0, 2.0]]])
        >>> vecbank.pq.decode(torch.tensor([[1, 0], [0, 1]]), codebooks).tolist()
        [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 2.0]]
    """
    m, k, w = check_codebooks(codebooks)
    codes = _checks.integers(codes)
    if codes.dim() == 0 or codes.shape[-1] != m:
        raise ValueError(f"codes must have shape (..., {m}), got {tuple(codes.shape)}")
    width = None if width is None else check_width("width", width, m * w)
    rows = _checks.stacked_rows(codes, k, m, torch.arange(m, device=codes.device))
    y = lookup(rows, codebooks.reshape(m * k, w)).flatten(-2)
    if rotation is not None:
        _checks.shaped("rotation", rotation, (m * w, m * w))
        _checks.pair(y, rotation, "rotation", "codebooks")
        y = project(y, rotation, "dot")
    return y if width is None else y[..., :width]


@entry_point(books="codebooks")
def tables(x: Tensor, codebooks: Tensor, metric: str = "sqeuclidean", rotation: Tensor | None = None) -> Tensor:
    """Asymmetric tables: the score of each part of a query with each row of its codebook. `scores` adds them up.

    Args:
        x: queries (..., d).
        codebooks: (m, K, w).
        metric: "sqeuclidean" or "dot", which are sums over parts.
        rotation: (m * w, m * w) orthogonal, the one of `encode`.

    Returns:
        (..., m, K) in the queries' dtype.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape, device or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> codebooks = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [2.0, 2.0]]])
        >>> vecbank.pq.tables(torch.ones(1, 4), codebooks).tolist()
        [[[2.0, 0.0], [2.0, 2.0]]]
    """
    if metric not in _METRICS:
        raise ValueError(f"metric must be one of {', '.join(_METRICS)} (a sum over parts), got {metric!r}")
    y = rotated(x, codebooks, rotation).reshape(-1, codebooks.shape[0] * codebooks.shape[2])
    check_pair(y, codebooks)
    pairs = project(split_parts(y, codebooks.shape[0]), codebooks, metric, out_dtype=x.dtype)
    return pairs.transpose(0, 1).reshape(*x.shape[:-1], *codebooks.shape[:2])


@entry_point(books="codebooks")
def symmetric_tables(codes: Tensor, codebooks: Tensor, metric: str = "sqeuclidean") -> Tensor:
    """Tables of queries that are known by their codes: rows of the m tables (K, K) of a codebook against itself.

    Args:
        codes: (..., m) integers; -1 gives NaN.
        codebooks: (m, K, w).
        metric: "sqeuclidean" or "dot".

    Returns:
        (..., m, K) in the codebooks' dtype.

    Raises:
        IndexError: a code of K or more.
        TypeError, ValueError: an argument of another dtype, shape, device or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> codebooks = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [2.0, 2.0]]])
        >>> vecbank.pq.symmetric_tables(torch.tensor([[1, 0]]), codebooks).tolist()
        [[[2.0, 0.0], [0.0, 8.0]]]
    """
    m, k, _ = check_codebooks(codebooks)
    if metric not in _METRICS:
        raise ValueError(f"metric must be one of {', '.join(_METRICS)} (a sum over parts), got {metric!r}")
    codes = _checks.integers(codes)
    if codes.dim() == 0 or codes.shape[-1] != m:
        raise ValueError(f"codes must have shape (..., {m}), got {tuple(codes.shape)}")
    _checks.in_range(codes, k)
    pairs = project(codebooks, codebooks, metric)
    rows = pairs[torch.arange(m, device=codes.device), codes.clamp_min(0)]
    return rows.masked_fill((codes < 0).unsqueeze(-1), torch.nan)


@entry_point
def scores(tables: Tensor, codes: Tensor) -> Tensor:
    """Distances or products of Q queries to N codes: `sum_i tables[q, i, codes[n, i]]`, i ascending.

    Args:
        tables: (Q, m, K), from `tables` or `symmetric_tables`.
        codes: (N, m) integers; -1 (a part without a valid row) makes the vector's scores NaN.

    Returns:
        (Q, N) in the tables' dtype.

    Raises:
        IndexError: a code of K or more.
        TypeError, ValueError: an argument of another dtype or shape, by its name.

    Example:
        >>> import torch, vecbank
        >>> codebooks = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [2.0, 2.0]]])
        >>> tables = vecbank.pq.tables(torch.ones(1, 4), codebooks)
        >>> vecbank.pq.scores(tables, torch.tensor([[0, 0], [1, 0], [1, 1]])).tolist()
        [[4.0, 2.0, 2.0]]
    """
    _checks.floating("tables", tables)
    codes = _checks.integers(codes)
    if tables.dim() != 3 or codes.dim() != 2 or codes.shape[1] != tables.shape[1]:
        packed = " (packed codes: unpack them with codes.unpack_bits)" if codes.dtype == torch.uint8 else ""
        raise ValueError(
            f"tables must be (Q, m, K) and codes (N, m), got {tuple(tables.shape)} and {tuple(codes.shape)}{packed}"
        )
    seen = _checks.in_range(codes, tables.shape[2])
    sums, rows = tables.new_zeros(tables.shape[0], codes.shape[0]), codes if seen else codes.clamp_min(0)
    for table, part in zip(tables.unbind(1), rows.unbind(1), strict=True):
        sums += table.index_select(1, part)
    return sums if seen else sums.masked_fill_((codes < 0).any(1), torch.nan)


@dataclass(frozen=True, init=False)
class ProductCodec:
    """Trained codebooks, and the rotation if there is one: `train` makes it.

    It may be made of numpy arrays, holds tensors, and its methods take and return tensors or numpy arrays.

    Args:
        codebooks: (m, K, w).
        width: d of the vectors that it codes, m * w at most.
        rotation: (m * w, m * w) orthogonal, or None.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> codec = vecbank.ProductCodec(torch.arange(32.0).view(4, 4, 2), width=7)
        >>> codec.encode(torch.zeros(3, 7), packed=True).shape, codec.bytes_per_vector
        (torch.Size([3, 1]), 1)
    """

    codebooks: Tensor
    width: int
    rotation: Tensor | None = None

    @renamed(books="codebooks")
    def __init__(self, codebooks: Tensor, width: int, rotation: Tensor | None = None) -> None:
        if isinstance(codebooks, np.ndarray):
            codebooks = tensor_of(codebooks, "codebooks").clone()
        if isinstance(rotation, np.ndarray):
            rotation = tensor_of(rotation, "rotation").clone()
        m, _, w = check_codebooks(codebooks)
        width = check_width("width", width, m * w)
        if rotation is not None:
            _checks.shaped("rotation", rotation, (m * w, m * w))
        self.__setstate__({"codebooks": codebooks, "width": width, "rotation": rotation})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The fields, of which older files call the first one `books`."""
        self.__dict__.update({"codebooks" if name == "books" else name: value for name, value in state.items()})

    books = old_attribute("books", "codebooks")

    @property
    def bits(self) -> int:
        """Bits of one part's code."""
        return max(1, (self.codebooks.shape[1] - 1).bit_length())

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of one packed row of codes."""
        return packed_bytes(self.codebooks.shape[0], self.bits)

    def _check_width(self, x: Tensor) -> None:
        _checks.floating("x", x)
        if x.dim() == 0 or x.shape[-1] != self.width:
            raise ValueError(f"x must have the codec's width {self.width} as its last axis, got {tuple(x.shape)}")

    @entry_point
    def encode(self, x: Tensor, *, packed: bool = False) -> Tensor:
        """Codes of vectors.

        Args:
            x: (..., d).
            packed: return bytes, the bits of all parts' codes in one string.

        Returns:
            (..., m) int64, or (..., bytes_per_vector) uint8.

        Example:
            >>> import torch, vecbank
            >>> codec = vecbank.ProductCodec(torch.tensor([[[0.0], [1.0]], [[0.0], [2.0]]]), width=2)
            >>> x = torch.tensor([[0.9, 0.2], [0.1, 1.8]])
            >>> codec.encode(x).tolist(), codec.encode(x, packed=True).tolist()
            ([[1, 0], [0, 1]], [[1], [2]])
        """
        self._check_width(x)
        codes = encode(x, self.codebooks, self.rotation)
        return pack_bits(codes, self.bits) if packed else codes

    @entry_point
    def codes(self, codes: Tensor) -> Tensor:
        """Codes as numbers, whether packed or not.

        Args:
            codes: (..., bytes_per_vector) uint8, or (..., m) integers of another dtype.

        Returns:
            (..., m) int64.

        Example:
            >>> import torch, vecbank
            >>> codec = vecbank.ProductCodec(torch.tensor([[[0.0], [1.0]], [[0.0], [2.0]]]), width=2)
            >>> codec.codes(torch.tensor([[1], [2]], dtype=torch.uint8)).tolist()
            [[1, 0], [0, 1]]
        """
        _checks.tensor("codes", codes)
        if codes.dtype == torch.uint8:
            return unpack_bits(codes, self.codebooks.shape[0], self.bits)
        return _checks.integers(codes)

    @entry_point
    def decode(self, codes: Tensor) -> Tensor:
        """The vectors (..., d) of codes, packed or not.

        Example:
            >>> import torch, vecbank
            >>> codec = vecbank.ProductCodec(torch.tensor([[[0.0], [1.0]], [[0.0], [2.0]]]), width=2)
            >>> codec.decode(torch.tensor([[1, 0], [0, 1]])).tolist()
            [[1.0, 0.0], [0.0, 2.0]]
        """
        return decode(self.codes(codes), self.codebooks, self.rotation, self.width)

    @entry_point
    def tables(self, x: Tensor, metric: str = "sqeuclidean") -> Tensor:
        """Asymmetric tables (..., m, K) of queries (..., d), as `vecbank.pq.tables`.

        Example:
            >>> import torch, vecbank
            >>> codec = vecbank.ProductCodec(torch.tensor([[[0.0], [1.0]], [[0.0], [2.0]]]), width=2)
            >>> codec.tables(torch.tensor([3.0, 1.0])).tolist()
            [[9.0, 4.0], [1.0, 1.0]]
        """
        self._check_width(x)
        return tables(x, self.codebooks, metric, self.rotation)

    @entry_point
    def symmetric_tables(self, codes: Tensor, metric: str = "sqeuclidean") -> Tensor:
        """Symmetric tables (..., m, K) of queries given by their codes, as `vecbank.pq.symmetric_tables`.

        Example:
            >>> import torch, vecbank
            >>> codec = vecbank.ProductCodec(torch.tensor([[[0.0], [1.0]], [[0.0], [2.0]]]), width=2)
            >>> codec.symmetric_tables(torch.tensor([1, 1])).tolist()
            [[1.0, 0.0], [4.0, 0.0]]
        """
        return symmetric_tables(self.codes(codes), self.codebooks, metric)

    def to(self, *args: Any, **kwargs: Any) -> ProductCodec:
        """The codec with its tensors moved or cast, as `torch.Tensor.to`.

        Example:
            >>> import torch, vecbank
            >>> codec = vecbank.ProductCodec(torch.tensor([[[0.0], [1.0]], [[0.0], [2.0]]]), width=2)
            >>> codec.to(torch.float64).codebooks.dtype
            torch.float64
        """
        rotation = None if self.rotation is None else self.rotation.to(*args, **kwargs)
        return ProductCodec(self.codebooks.to(*args, **kwargs), self.width, rotation)


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


def _refine(y: Tensor, codebooks: Tensor, iterations: int) -> Tensor:
    """The codebooks after some more steps of k-means from where they are."""
    m, k, _ = codebooks.shape
    pairs = zip(split_parts(y, m), codebooks, strict=True)
    return torch.stack([kmeans(part, k, init=start, iterations=iterations).centroids for part, start in pairs])


@entry_point
@torch.no_grad()
def train(
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
    """Codebooks for product quantisation, by k-means on each part.

    Args:
        x: (N, d) samples, finite, N >= 2^bits. 16-bit samples are read as float32.
        parts: the number m of parts, 1 to d.
        bits: the number of bits of the code of one part, 1 to 16: each codebook has 2^bits rows.
        rotation: also learn an orthogonal matrix R that makes `x @ R` cheaper to code. Start: the better of none and
            eigenvalue allocation; then `rotations` times one k-means step and the best R for the decoded vectors
            (an orthogonal Procrustes problem). The linear algebra is torch's: repeatable, but not the same bits on
            every machine.
        iterations: the number of k-means steps for each part.
        rotations: the number of steps that improve the rotation.
        samples_per_code: train on at most this many samples per row of a codebook, drawn without replacement.
        generator: source of all draws, or the seed of one.
        progress: draw a bar on stderr.

    Returns:
        ProductCodec.

    Raises:
        TypeError, ValueError: an argument of another dtype, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> x = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
        >>> codec = vecbank.pq.train(x, parts=4, bits=4, generator=0)
        >>> codec.codebooks.shape, codec.encode(x, packed=True).shape
        (torch.Size([4, 16, 4]), torch.Size([500, 2]))
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
            for part in split_parts(y, parts):
                found.append(kmeans(part, k, iterations=iterations, local_trials=1, generator=generator))
                bar.step()
            tried.append((sum(f.inertia for f in found), turn, torch.stack([f.centroids for f in found])))
        # neither start is best for all data: parts that belong together already are worth keeping
        _, turn, codebooks = min(tried, key=lambda t: t[0])
        y = x if turn is None else x @ turn
        for _ in range(turns):
            codebooks = _refine(y, codebooks, 1)
            decoded = decode(encode(y, codebooks), codebooks)
            u, _, v = torch.linalg.svd((x.T @ decoded).double())
            turn = (u @ v).to(x.dtype)
            y = x @ turn
            bar.step()
        if turns:
            codebooks = _refine(y, codebooks, iterations)
            bar.step()
    if rotation and turn is None:
        turn = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return ProductCodec(codebooks, d, turn)
