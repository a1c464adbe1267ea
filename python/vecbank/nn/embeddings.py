"""Embedding modules on compressed tables: `vecbank.embedding` with parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .. import embedding as store
from .. import pq
from ..codes import pack_bits, packed_bytes
from ..functional import lookup
from ._arguments import drawn_by, floats, integers, memory_for, number, numbers, whole, wholes
from ._arguments import rows as row_numbers
from ._derived import Derived

METHODS = ("full", "hashed", "two_table", "low_rank", "integer", "product", "pruned", "ragged")


class HashedEmbedding(Derived):
    """One table for all features: `e_f(v) = concat_u table[h_{f, u}(v)]` (Unified Embedding).

    Feature f reads `probes[f]` hashed rows of width `width`, so that its embedding is `probes[f] * width` wide; the
    layers that follow tell the features apart.

    Args:
        rows, width: number of rows of the shared table, and their width.
        probes: rows read for each feature; their number is the number of features.
        seed: seed of the hashes.
        std: standard deviation of the first table, which is normal.
        generator: draws the table.

    Shapes:
        ids (..., features) integers, any value from 0, negative for none (zeros).

    Returns:
        (..., out_features), features side by side.

    Raises:
        TypeError, ValueError: an argument of another kind, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> embedding = vecbank.nn.HashedEmbedding(rows=1000, width=8, probes=[1, 2])
        >>> embedding(torch.tensor([[7, 123456789], [8, -1]])).shape
        torch.Size([2, 24])

    Source: Coleman et al., "Unified embedding: battle-tested feature representations for web-scale ML systems",
    NeurIPS 2023.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        probes: Sequence[int],
        *,
        seed: int = 0,
        std: float = 0.01,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        rows, width, probes = whole("rows", rows), whole("width", width), wholes("probes", probes)
        numbers(std=std)
        generator = drawn_by(generator)
        self.probes, self.seed = tuple(probes), whole("seed", seed, -(2**63))
        with memory_for(f"a table of {rows} x {width} numbers"):
            self.table = nn.Parameter(std * torch.randn(rows, width, generator=generator))
        self._hold()

    _used: Tensor

    def _derive(self) -> dict[str, Tensor]:
        most = torch.arange(max(self.probes), device="cpu")
        used = most < torch.tensor(self.probes, device="cpu").unsqueeze(1)
        return {"_used": used.flatten().nonzero().squeeze(1)}

    @property
    def out_features(self) -> int:
        """Width of the result."""
        return sum(self.probes) * self.table.shape[1]

    @property
    def stored_bytes(self) -> int:
        """Bytes of the table."""
        return store.stored_bytes([self.table])

    def forward(self, ids: Tensor) -> Tensor:
        ids = integers(ids, "ids")
        if ids.dim() == 0 or ids.shape[-1] != len(self.probes):
            raise ValueError(f"ids must have shape (..., {len(self.probes)}), got {tuple(ids.shape)}")
        features = torch.arange(len(self.probes), device=ids.device)
        codes = store.hash_rows(ids, self.table.shape[0], max(self.probes), feature=features, seed=self.seed)
        return lookup(codes.flatten(-2)[..., self._used], self.table).flatten(-2)

    def extra_repr(self) -> str:
        return f"{self.table.shape[0]} x {self.table.shape[1]}, probes={self.probes}, {self.stored_bytes} bytes"


class CompressedEmbedding(nn.Module):
    """`nn.Embedding` from a smaller store: ids below `num_embeddings` to rows of width `dim`.

    The methods, what row(id) is, and their options (with defaults):

    * "full": `table[id]`.
    * "hashed": concat (or "sum", "mean") of hashed rows. rows, probes (2), reduce ("concat"), seed (0).
    * "two_table": `table_1[id mod R] * table_2[id div R]`. base R (about sqrt V), combine ("mul", "add" or
      "concat").
    * "low_rank": `factors[id] @ basis`. rank.
    * "integer": `scale[id] * q[id]`, q integers of `bits` bits. bits (8).
    * "product": concat of the rows that codes name. parts (dim / 4), bits (8).
    * "pruned": `table[remap[id]]`, zeros where pruned. keep: (V,) bool, or a share (of largest norms).
    * "ragged": the columns of the id's block, zeros elsewhere. block (V,), keep (blocks, dim).

    "integer" and "product" train a full table: each forward quantises the rows it reads and the gradient passes
    straight through; scales and codebooks learn too. `freeze_` drops the table and keeps the integers or codes alone;
    scales and codebooks still learn after that. "pruned" and "ragged" are made from a trained table: `from_table`.

    `codebooks` (parts, 2^bits, width) of "product" is the parameter that a state_dict names `books`. A state loads into
    a module made in the same way (and frozen, if that one was).

    Args:
        num_embeddings, dim: V and the width of a row.
        method: the name of one of these methods.
        std: standard deviation of the first tables, which are normal.
        generator: draws the first tables.
        options: the options of the method.

    Shapes:
        ids (...) integers; -1 gives a zero row with every method.

    Returns:
        (..., dim).

    Raises:
        TypeError, ValueError: an argument of another kind, shape or value, by its name.

    Example:
        >>> import torch, vecbank
        >>> embedding = vecbank.nn.CompressedEmbedding(1000, 16, "integer", bits=4).freeze_()
        >>> embedding(torch.tensor([3, -1])).shape, embedding.stored_bytes
        (torch.Size([2, 16]), 12000)

    Sources: Zhang et al., "Experimental analysis of large-scale learnable vector storage compression", VLDB 2023,
    compares these methods; help(vecbank.embedding) names the source of each.
    """

    packed: Tensor
    remap: Tensor
    start: Tensor
    block: Tensor
    columns: Tensor
    values: nn.Parameter
    books: nn.Parameter  # `codebooks`, by the name that it has in states

    def __init__(
        self,
        num_embeddings: int,
        dim: int,
        method: str = "full",
        *,
        std: float = 0.01,
        generator: Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if method in ("pruned", "ragged"):
            raise ValueError(f"method {method!r} is made from a trained table: CompressedEmbedding.from_table")
        num_embeddings, dim = whole("num_embeddings", num_embeddings), whole("dim", dim)
        numbers(std=std)
        generator = drawn_by(generator)
        self.num_embeddings, self.dim, self.method = num_embeddings, dim, method
        self.frozen = False

        def table(rows: int, width: int, scale: float = std) -> nn.Parameter:
            with memory_for(f"a table of {rows} x {width} numbers"):
                return nn.Parameter(scale * torch.randn(rows, width, generator=generator))

        if method == "hashed":
            self.probes, self.reduce = whole("probes", options.pop("probes", 2)), options.pop("reduce", "concat")
            if self.reduce not in ("concat", "sum", "mean"):
                raise ValueError(f"reduce must be concat, sum or mean, got {self.reduce!r}")
            self.seed = whole("seed", options.pop("seed", 0), -(2**63))
            if self.reduce == "concat" and dim % self.probes:
                raise ValueError(f"dim must be a multiple of probes, got {dim} and {self.probes}")
            width = dim // self.probes if self.reduce == "concat" else dim
            self.table = table(whole("rows", _needed(options, "rows", method)), width)
        elif method == "two_table":
            base = whole("base", options.pop("base", max(1, round(num_embeddings**0.5))))
            self.combine = options.pop("combine", "mul")
            if self.combine not in store.COMBINE:
                raise ValueError(f"combine must be one of {', '.join(store.COMBINE)}, got {self.combine!r}")
            if self.combine == "concat" and dim < 2:
                raise ValueError(f"dim must be at least 2 for combine='concat', got {dim}")
            left = dim // 2 if self.combine == "concat" else dim
            self.remainders = table(base, left)
            self.quotients = table(-(-num_embeddings // base), dim - left if self.combine == "concat" else dim)
            if self.combine == "mul":  # a product of two small numbers would be too small: the second starts near 1
                with torch.no_grad():
                    self.quotients.div_(max(std, 1e-12)).mul_(0.1).add_(1)
        elif method == "low_rank":
            rank = whole("rank", _needed(options, "rank", method), 1, min(num_embeddings, dim))
            self.factors, self.basis = table(num_embeddings, rank), table(rank, dim, rank**-0.5)
        else:
            self.table = table(num_embeddings, dim)
        if method == "integer":
            self.bits = whole("bits", options.pop("bits", 8), 2, 16)
            self.scale = nn.Parameter(store.row_scale(self.table.detach(), self.bits))
        elif method == "product":
            self.bits = whole("bits", options.pop("bits", 8), 1, 16)
            parts = whole("parts", options.pop("parts", max(1, dim // 4)), 1, dim)
            width = -(-dim // parts)
            self.books = nn.Parameter(std * torch.randn(parts, 1 << self.bits, width, generator=generator))
        if options:
            raise TypeError(f"method {method!r} has no option {', '.join(sorted(options))}")

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__("books" if name == "codebooks" else name, value)

    @property
    def codebooks(self) -> Tensor:
        """(parts, 2^bits, width) of the method "product"."""
        return self.books

    @classmethod
    def from_table(cls, table: Tensor, method: str, *, generator: Generator | None = None, **options: Any) -> Any:
        """A trained table (V, dim) compressed: any method but "hashed" and "two_table", which cannot take one over.

        "integer" and "product" come frozen.
        """
        floats("table", table)
        if table.dim() != 2:
            raise ValueError(f"table must have shape (V, dim), got {tuple(table.shape)}")
        rows, dim = table.shape
        table = table.detach()
        if method in ("low_rank", "integer", "product"):
            _finite(table, method)
        if method in ("pruned", "ragged"):
            self = cls(1, dim, "full")
            self.num_embeddings, self.method, self.frozen = rows, method, True
            del self.table
            keep = _needed(options, "keep", method)
            if method == "pruned":
                if not isinstance(keep, Tensor):
                    order = torch.linalg.vector_norm(table, dim=1).argsort(descending=True, stable=True)
                    kept = torch.zeros(rows, dtype=torch.bool, device=table.device)
                    kept[order[: round(number("keep", keep, 0, 1) * rows)]] = True
                    keep = kept
                pruned = store.prune_rows(table, keep)
                self.table = nn.Parameter(pruned.table)
                self.register_buffer("remap", pruned.remap)
            else:
                ragged = store.ragged_rows(table, _needed(options, "block", method), keep)
                self.values = nn.Parameter(ragged.values)
                for name in ("start", "block", "columns"):
                    self.register_buffer(name, getattr(ragged, name))
        elif method in ("full", "low_rank", "integer", "product"):
            iterations = options.pop("iterations", 25)
            self = cls(rows, dim, method, generator=generator, **options)
            options = {}
            with torch.no_grad():
                if method == "low_rank":
                    u, s, v = torch.linalg.svd(table.double(), full_matrices=False)
                    rank = self.basis.shape[0]
                    self.factors.copy_(u[:, :rank] * s[:rank])
                    self.basis.copy_(v[:rank])
                else:
                    self.table.copy_(table)
                if method == "integer":
                    self.scale.copy_(store.row_scale(table, self.bits))
                elif method == "product":
                    if rows < 1 << self.bits:
                        raise ValueError(
                            f"table must have at least 2^bits = {1 << self.bits} rows for product codes, got {rows}: "
                            f"take fewer bits than {self.bits}"
                        )
                    codec = pq.train(
                        table.to(self.codebooks.dtype),
                        self.codebooks.shape[0],
                        self.bits,
                        iterations=iterations,
                        generator=generator,
                    )
                    self.codebooks.copy_(codec.codebooks)
            self.freeze_()
        else:
            raise ValueError(f"method must be full, low_rank, integer, product, pruned or ragged, got {method!r}")
        if options:
            raise TypeError(f"method {method!r} has no option {', '.join(sorted(options))}")
        return self

    @torch.no_grad()
    def freeze_(self) -> CompressedEmbedding:
        """Drops the full table that "integer" and "product" train, keeping its integers or codes; nothing else
        changes.
        """
        if self.frozen or self.method not in ("integer", "product"):
            return self
        _finite(self.table, self.method)
        if self.method == "integer":
            packed = store.quantize_rows(self.table, self.bits, self.scale).packed
        else:
            packed = pack_bits(pq.encode(self.table, self.codebooks), self.bits)
        del self.table
        self.register_buffer("packed", packed)
        self.frozen = True
        return self

    def forward(self, ids: Tensor) -> Tensor:
        method = self.method
        ids = row_numbers(ids, self.num_embeddings, "ids")
        if method == "full":
            return lookup(ids, self.table)
        if method == "hashed":
            return store.hashed_lookup(ids, self.table, self.probes, seed=self.seed, reduce=self.reduce)
        if method == "two_table":
            return store.two_table_lookup(ids, self.remainders, self.quotients, self.combine)
        if method == "low_rank":
            return store.low_rank_lookup(ids, self.factors, self.basis)
        if method == "pruned":
            return store.pruned_lookup(ids, store.PrunedRows(self.table, self.remap))
        if method == "ragged":
            return store.ragged_lookup(ids, store.RaggedRows(self.values, self.start, self.block, self.columns))
        if method == "integer":
            if not self.frozen:
                return store.fake_integer_lookup(ids, self.table, self.scale, self.bits)
            return store.integer_lookup(ids, store.IntegerRows(self.packed, self.scale), self.dim, self.bits)
        if self.frozen:
            return store.coded_lookup(ids, self.packed, self.codebooks, self.bits, self.dim)
        rows = lookup(ids, self.table)
        codes = pq.encode(rows.detach(), self.codebooks.detach())
        coded = pq.decode(torch.where(ids.unsqueeze(-1) < 0, -1, codes), self.codebooks, width=self.dim)
        return coded + (rows - rows.detach())  # the codes' value bit for bit; the gradient goes to codebooks and table

    @property
    def stored_bytes(self) -> int:
        """Bytes of what is deployed, exactly (before `freeze_`: what will be)."""
        tensors: list[Tensor | None] = [*self.parameters(), *self.buffers()]
        if self.frozen or self.method not in ("integer", "product"):
            return store.stored_bytes(tensors)
        count = self.dim if self.method == "integer" else self.codebooks.shape[0]
        others = store.stored_bytes(t for t in tensors if t is not self.table)
        return others + self.num_embeddings * packed_bytes(count, self.bits)

    @property
    def ratio(self) -> float:
        """Bytes of a full float32 table over `stored_bytes`."""
        return 4 * self.num_embeddings * self.dim / self.stored_bytes

    def extra_repr(self) -> str:
        size = f"{self.stored_bytes} bytes (1/{self.ratio:.1f})"
        return f"{self.num_embeddings} x {self.dim}, method={self.method!r}, {size}"


def _finite(table: Tensor, method: str) -> None:
    """NaN and inf have no integers and no codes."""
    lost = (~table.isfinite().all(1)).nonzero().squeeze(1).tolist()
    if lost:
        where = f"{len(lost)} rows, the first {lost[0]}"
        raise ValueError(f"table must be finite for method {method!r}, got NaN or inf in {where}")


def _needed(options: dict[str, Any], name: str, method: str) -> Any:
    if name not in options:
        raise TypeError(f"method {method!r} needs the option {name}")
    return options.pop(name)
