"""Sets of tokens as single vectors whose dot product is about their maxsim."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, SupportsIndex

import torch
from torch import Generator, Tensor, nn

from . import _checks
from ._numpy import entry_point
from ._prepared_documents import PreparedDocuments
from ._token_sets import TokenSets, token_sets
from .functional import lookup, project, segment_sum
from .selections import score_pairs

MOST_BITS = 16
METRICS = ("dot", "cosine")
_PIECE = 1 << 22  # numbers that a piece of the sets may take: temporaries stay small, however many sets there are


class FixedEncoding(nn.Module):
    """Fixed-dimensional encodings (MUVERA): one vector for each set, so that one dot product stands for a maxsim.

        queries(Q) . documents(D)  is about  sum over q in Q of max over p in D of q . p

    In each repetition the signs of `bits` random projections put a token into one of B = 2^bits buckets, so that near
    tokens often meet in one. A query's block for a bucket is the sum of its tokens there (divided by the number of
    repetitions), a document's block is the mean of its own; a bucket in which a document has no token takes the
    document's token at the smallest Hamming distance, of several the first. Blocks are in the order of the Gray code,
    of which neighbours differ by one sign.

    `vecbank.topk` among encoded documents finds candidates, and `maxsim_topk(..., candidates=)` ranks them exactly:
    `encoded_topk` does both.

    Args:
        width: d, of the tokens.
        bits: random projections of a repetition, 0 to 16.
        repetitions: how often buckets are drawn anew; the error falls with their number.
        projection: p, the width to which a random matrix of +1 and -1, divided by sqrt(p), takes the tokens of a
            block; None (default) keeps d.
        final: the width to which a count-sketch takes what all blocks make together (each coordinate goes, with a
            random sign, to one of so many sums); None (default) keeps it.
        metric: "dot" (default) or "cosine", which is that of the tokens divided by their norms.
        generator: what the random numbers are drawn from: a seed (0 by default, so that two encodings of the same
            sizes are the same), a torch.Generator, or None for torch's own.

    Shapes:
        S sets of R tokens in all: a `TokenSets`, a tuple (rows (R, d), offsets (S + 1,)), or a tensor (S, T, d) of sets
        of one size. Encoded: (S, `size`), where `size` is `final` or else repetitions 2^bits p, float32 (float64 for
        float64 tokens). An empty set is encoded as zeros. Differentiable in the tokens; buckets are constants.

    Which bucket a token falls into is decided by float64 dot products in a fixed order, so neither the processor nor
    the other tokens change it; the last bits of a projection are those of `project`. What was drawn lies in buffers,
    and thus in the `state_dict`.

    Raises:
        ValueError: sizes, shapes, devices, metric, offsets that do not fit. TypeError: dtypes.

    Source: Dhulipala, Hadian, Jayaram, Lee and Mirrokni, "MUVERA: Multi-Vector Retrieval via Fixed Dimensional
    Encodings", NeurIPS 2024.

    Example:
        >>> import torch
        >>> from vecbank.multivector import FixedEncoding
        >>> encoding = FixedEncoding(2, bits=1, repetitions=3)
        >>> encoding
        FixedEncoding(2, bits=1, repetitions=3, size=12)
        >>> query = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> document = torch.tensor([[[4.0, 2.0]]])  # of a single token the encoding is exact: 4 + 2
        >>> round((encoding.queries(query) @ encoding.documents(document).T).item(), 4)
        6.0
    """

    planes: Tensor  # (repetitions bits, d)
    projections: Tensor | None  # (repetitions p, d)
    places: Tensor | None  # (repetitions 2^bits p,) int64: where the count-sketch adds each coordinate
    flips: Tensor | None  # the same shape: +1 or -1
    patterns: Tensor  # (2^bits,) int64: the signs of each bucket as a number; the Gray code
    ranks: Tensor  # its inverse

    def __init__(
        self,
        width: int,
        bits: int = 4,
        repetitions: int = 20,
        projection: int | None = None,
        final: int | None = None,
        *,
        metric: str = "dot",
        generator: Generator | SupportsIndex | None = 0,
    ) -> None:
        super().__init__()
        self.width = _checks.at_least(1, "width", width)
        self.bits = _checks.at_least(0, "bits", bits)
        if self.bits > MOST_BITS:
            raise ValueError(f"bits must lie between 0 and {MOST_BITS}, got {bits}")
        self.repetitions = _checks.at_least(1, "repetitions", repetitions)
        self.projection = None if projection is None else _checks.at_least(1, "projection", projection)
        self.final = None if final is None else _checks.at_least(1, "final", final)
        if metric not in METRICS:
            raise ValueError(f'metric must be "dot" or "cosine", got {metric!r}')
        self.metric = metric
        draw = _checks.generator(generator)
        whole = repetitions * self._buckets * self._block
        self.register_buffer("planes", torch.randn(repetitions * self.bits, self.width, generator=draw))
        self.register_buffer("projections", None)
        self.register_buffer("places", None)
        self.register_buffer("flips", None)
        if self.projection is not None:
            signs = _signs((repetitions * self.projection, self.width), draw)
            self.projections = signs / self.projection**0.5
        if self.final is not None:
            self.places = torch.randint(self.final, (whole,), generator=draw)
            self.flips = _signs((whole,), draw)
        number = torch.arange(self._buckets)
        self.register_buffer("patterns", number ^ (number >> 1), persistent=False)
        self.register_buffer("ranks", self.patterns.argsort(), persistent=False)

    @property
    def size(self) -> int:
        """The width of what is encoded."""
        return self.repetitions * self._buckets * self._block if self.final is None else self.final

    @property
    def _buckets(self) -> int:
        return 1 << self.bits

    @property
    def _block(self) -> int:
        return self.width if self.projection is None else self.projection

    def extra_repr(self) -> str:
        given = {"projection": self.projection, "final": self.final}
        shown = "".join(f", {name}={value}" for name, value in given.items() if value is not None)
        metric = "" if self.metric == "dot" else f", metric={self.metric!r}"
        return f"{self.width}, bits={self.bits}, repetitions={self.repetitions}{shown}{metric}, size={self.size}"

    @entry_point
    def queries(self, sets: TokenSets | tuple[Tensor, Tensor] | Tensor) -> Tensor:
        """Sets on the side of the sum, (S, `size`).

        Args:
            sets: S sets of tokens.

        Example:
            >>> import torch
            >>> from vecbank.multivector import FixedEncoding
            >>> FixedEncoding(8, projection=4).queries(torch.ones(3, 5, 8)).shape
            torch.Size([3, 1280])
        """
        return self._encoded("queries", sets, mean=False)

    @entry_point
    def documents(self, sets: TokenSets | tuple[Tensor, Tensor] | Tensor | PreparedDocuments) -> Tensor:
        """Sets on the side of the maximum, (S, `size`).

        Args:
            sets: S sets of tokens; a DocumentBank too.

        Example:
            >>> import torch
            >>> from vecbank.multivector import FixedEncoding
            >>> FixedEncoding(8, final=100).documents((torch.ones(5, 8), torch.tensor([0, 2, 5]))).shape
            torch.Size([2, 100])
        """
        return self._encoded("documents", sets, mean=True)

    def _encoded(self, name: str, sets: Any, *, mean: bool) -> Tensor:
        rows, offsets = sets.documents if isinstance(sets, PreparedDocuments) else token_sets(name, sets)
        if rows.shape[-1] != self.width:
            raise ValueError(f"{name} must have tokens of width {self.width}, got {rows.shape[-1]}")
        if rows.device != self.planes.device:
            raise ValueError(f"{name} must be on the encoding's device {self.planes.device}, got {rows.device}")
        dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
        pieces = self._pieces(rows, offsets, dtype, mean)
        if torch.is_grad_enabled() and rows.requires_grad:  # writes into one tensor would each copy its gradient
            return torch.cat([*pieces, rows.new_empty(0, self.size, dtype=dtype)])
        encoded, filled = rows.new_empty(len(offsets) - 1, self.size, dtype=dtype), 0
        for piece in pieces:
            encoded[filled : filled + len(piece)] = piece
            filled += len(piece)
        return encoded

    def _pieces(self, rows: Tensor, offsets: Tensor, dtype: torch.dtype, mean: bool) -> Iterator[Tensor]:
        """The encodings of some sets at a time."""
        for first, last, begin, end in self._cuts(offsets):
            tokens = rows[begin:end].to(dtype)
            if self.metric == "cosine":
                # In float64, where no square overflows.
                norms = torch.linalg.vector_norm(tokens, dim=1, keepdim=True, dtype=torch.float64)
                tokens = (tokens / norms.clamp_min(1e-8)).to(dtype)
            yield self._sketched(self._blocks(tokens, offsets[first : last + 1].diff(), mean))

    def _cuts(self, offsets: Tensor) -> list[tuple[int, int, int, int]]:
        """Pieces: from which set to which, and the tokens of these."""
        count = len(offsets) - 1
        of_set, of_token = self.repetitions * self._buckets * self._block, self.repetitions * self._block
        cost = torch.arange(count, device=offsets.device) * of_set + offsets[:-1] * of_token
        first = (cost // _PIECE).diff().nonzero().squeeze(1) + 1
        sets = torch.nn.functional.pad(first, (1, 1))
        sets[-1] = count
        firsts, begins = sets.tolist(), offsets[sets].tolist()
        return list(zip(firsts[:-1], firsts[1:], begins[:-1], begins[1:], strict=True)) if count else []

    def _blocks(self, tokens: Tensor, lengths: Tensor, mean: bool) -> Tensor:
        """The blocks of a few sets, (S, repetitions 2^bits p)."""
        sets, device = len(lengths), tokens.device
        repetition = torch.arange(self.repetitions, device=device)
        of_set = torch.repeat_interleave(torch.arange(sets, device=device), lengths, output_size=len(tokens))
        start = (of_set.unsqueeze(1) * self.repetitions + repetition) * self._buckets  # (T, repetitions)
        signs = self._signs_of(tokens)
        bucket, count = start + self.ranks[signs], sets * self.repetitions * self._buckets
        if self.projections is None:
            parts = tokens
        else:
            projected = project(tokens, self.projections.to(tokens.dtype), "dot")
            parts, bucket = projected.view(-1, self._block), bucket.view(-1)
        blocks = segment_sum(parts, bucket, count)
        if not mean:
            return blocks.view(sets, -1) / self.repetitions
        held = torch.bincount(bucket.reshape(-1), minlength=count).unsqueeze(1)
        nearest = self._nearest(start + signs, count)
        if self.projections is not None:  # there every repetition has a row of its own for a token
            nearest = torch.where(nearest < 0, -1, nearest * self.repetitions + repetition.unsqueeze(1))
        nearest = nearest.reshape(-1, 1).where(held == 0, -1).squeeze(1)
        return (blocks / held.clamp_min(1) + lookup(nearest, parts)).view(sets, -1)

    def _signs_of(self, tokens: Tensor) -> Tensor:
        """The signs of every repetition as a number, (T, repetitions), the first sign in its highest bit."""
        if self.bits == 0:
            return torch.zeros(len(tokens), self.repetitions, dtype=torch.int64, device=tokens.device)
        with torch.no_grad():
            planes = self.planes.to(tokens.dtype)
            scores = project(tokens, planes, "dot")
            # A sum of d products in any order is off by at most about d eps / 2 of |x| |plane|. Within twice that of
            # 0, and where it overflows, the float64 score decides.
            kind = torch.finfo(tokens.dtype)
            norms, plane = (torch.linalg.vector_norm(t, dim=1, dtype=torch.float64) for t in (tokens, planes))
            limit = (self.width + 2) * (kind.eps * norms * plane.max() + kind.tiny)
            near = (~(scores.abs() > limit.unsqueeze(1))).any(1).nonzero().squeeze(1)
            every = torch.arange(len(planes), device=tokens.device).expand(len(near), -1)
            scores[near] = score_pairs(tokens[near], planes, every, "dot")
            weights = 1 << torch.arange(self.bits - 1, -1, -1, device=tokens.device)
            return ((scores > 0).view(len(tokens), self.repetitions, self.bits) * weights).sum(2)

    def _nearest(self, signs: Tensor, count: int) -> Tensor:
        """For every set, repetition and bucket the number of the set's token whose signs differ least from those of
        the bucket, of several the first: (S, repetitions, 2^bits), -1 where the set is empty.

        signs (T, repetitions): where each token lies in (S, repetitions, 2^bits), by its signs. The key of a token is
        T times the number of signs that differ, plus its own number. One pass for each sign lets a bucket take the
        least key of the two that differ in this sign, plus T for the other; after all passes every bucket has seen
        every token at its distance.
        """
        tokens = len(signs)
        key = torch.full((count,), (self.bits + 1) * tokens, dtype=torch.int64, device=signs.device)
        number = torch.arange(tokens, device=signs.device).unsqueeze(1).expand_as(signs)
        key.scatter_reduce_(0, signs.reshape(-1), number.reshape(-1), "amin")
        for bit in range(self.bits):
            pairs = key.view(-1, 2, 1 << bit)
            key = torch.minimum(pairs, pairs.flip(1) + tokens).view(-1)
        none = key >= (self.bits + 1) * tokens
        found = torch.where(none, -1, key % max(tokens, 1))
        return found.view(-1, self.repetitions, self._buckets)[..., self.patterns]

    def _sketched(self, blocks: Tensor) -> Tensor:
        if self.places is None or self.flips is None or self.final is None:
            return blocks
        return segment_sum((blocks * self.flips.to(blocks.dtype)).T, self.places, self.final).T


def _signs(shape: tuple[int, ...], draw: Generator | None) -> Tensor:
    """+1 and -1 as floats."""
    return torch.randint(2, shape, generator=draw).float() * 2 - 1
