"""A bank prepared once: the vectors, the packed copy that the kernels stream, and the verbs as methods."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import NoReturn, SupportsIndex

import torch
from torch import Tensor

from . import _C, _checks, attention, functional, selections
from ._attend_blocks import Weight
from ._deprecated import old_call, renamed
from ._head import few
from ._head_choice import LOSS, use_of
from ._ops.names import SCREENED, metric_name
from ._packs import Pack
from ._prepared import PreparedBank
from .allowed import Allowed
from .metrics import Metric, mapping
from .results import Explanation, Nearest, Quantized, RadiusHits, TopK, Verified


class Bank(PreparedBank):
    """M vectors of width d, prepared for one metric.

    What a verb needs is prepared at its first call (`prepare` does it before), and saves doing so at every call. On the
    CPU searches need a copy of the vectors in 8 bits a coordinate, 0.25 to 0.40 of the float32 vectors for d from 36 up
    (with a head too, from 128 up), and `project` one in float32; `repr` says what there is. (Searches use the float32
    one for d below 24, without VNNI for fewer than 8192 rows, and for vectors wider than 2048 whose scores lie too
    close to each other for 8 bits, as those of noise do; calls with up to four queries use 8 bits there too.) On a CUDA
    device the copy is of 16 bits a coordinate, and for at most 65,536 rows there is one of 32 bits besides. A packed
    copy is derived state: it is in no state_dict, pickle, exported program or broadcast, and is never cast. It belongs
    to one tensor, its storage and its version: whatever changes the vectors (writing into them, `load_state_dict`,
    `.to()`, another tensor in their place, a second Bank on the same tensor), the next call prepares them again. A
    compiled program notices too, and then packs at every call until a call outside of it, or `repack()`, has prepared
    the bank again. A call that is captured into a CUDA graph packs the vectors anew at every replay, because a replay
    cannot notice a change. torch does not notice writes through an alias made by `.data` (of the bank's vectors, or of
    the tensor that the bank was made of), by `numpy()` or dlpack, nor what the replay of a CUDA graph, collectives of
    `torch.distributed` (DistributedDataParallel's own excepted) or other processes write: call `repack()` after those.

    Args:
        vectors: (M, d), or (B, M, d) for B banks of one shape; float32, float64, bfloat16 or float16; a tensor or a
            numpy array (the Bank holds a tensor, and is searched with either kind). A contiguous tensor is shared, as
            buffers are (`update_` writes into it). It is copied where torch cannot see who else writes into it: memory
            that came from numpy or a file, and tensors made in inference mode. A learnable bank makes a copy of its
            own.
        metric: "cosine", "dot", "l2", "sqeuclidean"; "l1" and "poincare", which need no copy; or one that maps rows
            (`vecbank.metrics`: "pearson", "angular", `Poincare`, `Mahalanobis`), whose mapped rows the Bank keeps, 8
            bytes a coordinate. With None (default) each verb uses its own default: "cosine" for `project`, "dot" for
            `topk`, "l2" for `nearest` and `quantize`, and the vectors are prepared once for each metric that is asked
            for.
        learnable: hold the vectors as a Parameter (then packed at every call, because it changes) rather than a buffer.
        bias: (M,) in the vectors' dtype, added to dot products by `topk` and `project` (metric "dot" and (M, d) only):
            with it the Bank is an encoder, as of a sparse autoencoder (`sparse.encode` takes it). Held as the vectors
            are, and in the state_dict.
        screen: the arithmetic in which searches on the CPU rule out rows before they are scored exactly: "auto"
            (default) for the fastest, or "float32", "int16" (batches alone; AVX2 or AVX-512) or "int8". The answer is
            the same; "float32" and "int16" need the float32 copy. A screen that cannot decide is followed by a finer
            one.
        head: how many coordinates of turned vectors the 8-bit screen looks at first, 1 to d; d: all, as they are. The
            others are looked at for the rows that a bound for them leaves. None (default): searches on the CPU choose,
            by a cost model, as soon as enough queries were asked for it to pay (24 d on AVX-512 with VNNI, 11 d on
            AVX2; about a second for 200,000 x 768 in that call), and again where a head costs more than all coordinates
            would; `prepare` chooses at once, `explain` tells. For d from 96 to 2048 and at least 40 d rows. The answer
            is the same. Ignored where searches use no 8-bit codes: learnable or batched banks, "l1", fewer than 8192
            rows without VNNI, and more than four queries for vectors wider than 2048 that 8 bits do not tell apart.
            With a bias none is chosen, but one may be asked for.

    Raises:
        TypeError: vectors or bias that are no floating-point tensors. ValueError: their shapes, an unknown metric or
            screen, a screen that the processor lacks, a head outside 1..d or beside a screen other than "auto" and
            "int8", or a bias with another metric than "dot".

    Do not change a Bank while another thread searches it, as with any torch module.

    Example:
        >>> import torch, vecbank
        >>> bank = vecbank.Bank(torch.eye(3), metric="cosine")
        >>> bank.topk(torch.tensor([[0.0, 2.0, 1.0]]), k=2).indices.tolist()
        [[1, 2]]
        >>> bank.vectors[0] = torch.tensor([0.0, 2.0, 1.0])  # seen at the next call
        >>> bank.topk(torch.tensor([[0.0, 2.0, 1.0]]), k=2).indices.tolist()
        [[0, 1]]
    """

    def project(self, x: Tensor, *, out_dtype: torch.dtype | None = None, metric: str | Metric | None = None) -> Tensor:
        """`vecbank.project` against this bank: (..., d) -> (..., M).

        Example:
            >>> import torch, vecbank
            >>> vecbank.Bank(torch.eye(2), "cosine").project(torch.tensor([3.0, 0.0])).tolist()
            [1.0, 0.0]
        """
        return functional.project(x, self, metric, out_dtype=out_dtype)

    @old_call(3, "allowed", dropped="exact")
    @renamed(mask="allowed")
    def topk(
        self,
        x: Tensor,
        k: int,
        *,
        allowed: Allowed | Tensor | None = None,
        metric: str | Metric | None = None,
        order: str = "best",
        pad: bool = False,
    ) -> TopK:
        """`vecbank.topk` in this bank: (..., d) -> values and indices (..., k).

        Example:
            >>> import torch, vecbank
            >>> vecbank.Bank(torch.eye(3), "dot").topk(torch.tensor([0.0, 2.0, 1.0]), k=2).values.tolist()
            [2.0, 1.0]
        """
        return functional.topk(x, self, k, metric, allowed=allowed, order=order, pad=pad)

    @old_call(2, "allowed", dropped="exact")
    def nearest(
        self, x: Tensor, *, allowed: Allowed | Tensor | None = None, metric: str | Metric | None = None
    ) -> Nearest:
        """`vecbank.nearest` in this bank: (..., d) -> values and indices (...).

        Example:
            >>> import torch, vecbank
            >>> vecbank.Bank(torch.eye(3), "l2").nearest(torch.tensor([0.0, 2.0, 0.0])).indices.item()
            1
        """
        return functional.nearest(x, self, metric, allowed=allowed)

    def radius(
        self,
        x: Tensor,
        r: Tensor | float,
        *,
        allowed: Allowed | Tensor | None = None,
        metric: str | Metric | None = None,
        max_hits: int | None = None,
    ) -> RadiusHits:
        """`vecbank.radius` in this bank: all rows within r, as (offsets, indices, values).

        Example:
            >>> import torch, vecbank
            >>> bank = vecbank.Bank(torch.tensor([[0.0], [1.0], [5.0]]), "l2")
            >>> bank.radius(torch.tensor([[0.25], [9.0]]), 1.0).indices.tolist()
            [0, 1]
        """
        return selections.radius(x, self, r, metric, allowed=allowed, max_hits=max_hits)

    def radius_count(
        self,
        x: Tensor,
        r: Tensor | float,
        *,
        allowed: Allowed | Tensor | None = None,
        metric: str | Metric | None = None,
    ) -> Tensor:
        """`vecbank.radius_count` in this bank: how many rows lie within r, (...).

        Example:
            >>> import torch, vecbank
            >>> vecbank.Bank(torch.tensor([[0.0], [1.0], [5.0]]), "l2").radius_count(torch.tensor([0.25]), 1.0).item()
            2
        """
        return selections.radius_count(x, self, r, metric, allowed=allowed)

    def attend(
        self,
        x: Tensor,
        values: Tensor | PreparedBank | None = None,
        *,
        beta: Tensor | float = 1.0,
        weight: str | Weight | None = "softmax",
        k: SupportsIndex | None = None,
        allowed: Allowed | Tensor | None = None,
        metric: str | Metric | None = None,
    ) -> Tensor:
        """`vecbank.attend` over this bank: sums of its rows, or of values, weighted by similarity, (..., e).

        Example:
            >>> import torch, vecbank
            >>> bank = vecbank.Bank(torch.tensor([[0.0], [1.0], [5.0]]), "l2")
            >>> bank.attend(torch.tensor([[0.5]]), torch.tensor([[1.0], [3.0], [9.0]]), k=2).tolist()
            [[2.0]]
        """
        return attention.attend(x, self, values, metric, beta=beta, weight=weight, k=k, allowed=allowed)

    def score_pairs(self, x: Tensor, indices: Tensor, *, metric: str | Metric | None = None) -> Tensor:
        """`vecbank.score_pairs` in this bank: the exact scores of chosen rows, (..., k).

        Example:
            >>> import torch, vecbank
            >>> bank = vecbank.Bank(torch.tensor([[0.0], [1.0]]), "l2")
            >>> bank.score_pairs(torch.tensor([3.0]), torch.tensor([1])).tolist()
            [2.0]
        """
        return selections.score_pairs(x, self, indices, metric)

    def verify(
        self, x: Tensor, indices: Tensor, *, allowed: Allowed | Tensor | None = None, metric: str | Metric | None = None
    ) -> Verified:
        """`vecbank.verify` in this bank: whether lists of its rows are the exact answer.

        Example:
            >>> import torch, vecbank
            >>> bank = vecbank.Bank(torch.tensor([[0.0], [1.0]]), "l2")
            >>> bank.verify(torch.tensor([3.0]), torch.tensor([1, 0])).right.item()
            True
        """
        return selections.verify(x, self, indices, metric, allowed=allowed)

    def dims(self, dims: slice) -> Bank:
        """A Bank on some of the dimensions, of the same metric, that shares the memory of this one.

        What is written into either is seen by both. It is prepared on its own, at its first call. The norms of "cosine"
        are those of the chosen dimensions.

        Args:
            dims: a slice of the last axis, as `slice(0, 64)` for the first 64; its step is positive.

        Raises:
            TypeError: no slice. ValueError: a step below 1 (torch has no such views), a bias, or a learnable bank
                (slice its vectors in every step: `vectors[:, :64]`).

        Example:
            >>> import torch, vecbank
            >>> bank = vecbank.Bank(torch.tensor([[1.0, 0.0], [0.0, 9.0]]), "l2")
            >>> first = bank.dims(slice(0, 1))
            >>> bank.vectors[1, 0] = 5.0
            >>> first.nearest(torch.tensor([6.0])).indices.item()
            1
        """
        if not isinstance(dims, slice):
            raise TypeError(f"dims must be a slice, as slice(0, 64), got {type(dims).__name__}")
        if dims.step is not None and _checks.integer("the step of dims", dims.step) < 1:
            raise ValueError(f"dims must have a step of at least 1, got {dims.step}")
        if self.learnable or self._biased:
            kind = "learnable" if self.learnable else "biased"
            raise ValueError(
                f"dims shares the memory of a plain Bank, this one is {kind}: use vectors[..., dims] itself"
            )
        vectors = self.vectors[..., dims]
        part = Bank(vectors[..., :0, :], self._metric, screen=self.screen)
        part._buffers["vectors"] = vectors
        return part

    def quantize(self, x: Tensor, *, metric: str | Metric | None = None) -> Quantized:
        """`vecbank.quantize` by this bank: (..., d) -> quantized (..., d) and codes (...).

        Example:
            >>> import torch, vecbank
            >>> vecbank.Bank(torch.eye(3), "l2").quantize(torch.tensor([0.0, 2.0, 0.0])).quantized.tolist()
            [0.0, 1.0, 0.0]
        """
        return functional.quantize(x, self, metric)

    def explain(
        self,
        x: Tensor,
        k: int = 10,
        allowed: Allowed | Tensor | None = None,
        *,
        metric: str | Metric | None = None,
    ) -> Explanation:
        """How `topk` of these queries goes on the CPU: which screens were used, why, and what they left to float64.

        The search runs twice, so that what is prepared at a first call is not counted. k = 1 is also what `nearest`
        and `quantize` do by the same metric (where the Bank names none, say metric="l2"). The counts are those of the
        process (they begin anew), so no other search should run meanwhile. A screen counts a query once for each part
        of the bank.

        Args:
            x: (..., d), on the CPU.
            k, allowed, metric: as of `topk`.

        Raises:
            ValueError: a Bank that is not on the CPU. RuntimeError: inside a compiled program. Otherwise as `topk`.

        Example:
            >>> import torch, vecbank
            >>> bank = vecbank.Bank(torch.randn(10_000, 64), "dot", screen="int8")
            >>> list(bank.explain(torch.randn(5, 64)).screened)
            ['int8']
        """
        if torch.compiler.is_compiling():
            raise RuntimeError("explain measures a call as it runs, and has no form in a compiled program")
        if self.vectors.device.type != "cpu":
            raise ValueError(f"explain is for a Bank on the CPU, this one is on {self.vectors.device}")
        if (m := mapping(metric, self)) is not None:
            if m != self._metric or m.learned:
                raise ValueError(
                    f"explain is for the Bank's own metric {self.metric!r}, unless that is learned, got {m!r}"
                )
            _checks.pair(x, self.vectors)
            rows, room = self._mapped_by(m, room=m.needs_room(x))
            if not isinstance(rows, PreparedBank):
                raise ValueError("explain needs a Bank whose vectors can be prepared")
            return Bank(rows.vectors, m.base, screen=self.screen, head=self.head).explain(
                m.rows(x, room=room), k, allowed
            )
        for made in list(self._packs.values()):
            if made.chooser is not None:
                made.chooser.keep(made.pack)
        self._watching = False  # who asks how a search goes does not ask the bank
        try:
            functional.topk(x, self, k, metric, allowed=allowed)
            _C.reset_counters()
            start = time.perf_counter()
            functional.topk(x, self, k, metric, allowed=allowed)
            seconds = time.perf_counter() - start
        finally:
            del self._watching
        counted = _C.counters()
        screened = {name: counted[name] for name in ("head", "int8", "int16", "float32") if counted[name]}
        code = self._code_for("topk", "dot") if metric is None else functional.metric_code(metric)
        held = self._packs.get(self._kind("topk", self.vectors, code, few(counted["queries"])))
        why = self._why(list(screened), k, code, counted["queries"], held)
        chosen = None if held is None else held.head
        turned = chosen is not None and chosen.rotation is not None
        return Explanation(
            screened,
            why,
            counted["queries"],
            counted["refined"],
            counted["repeated"],
            counted["bytes"],
            seconds,
            chosen.width if chosen is not None and turned else None,
            counted["dimensions"] / max(1, counted["pairs"]),
            None if chosen is None else chosen.predicted,
            None if chosen is None else chosen.gain,
        )

    def _why(self, screens: list[str], k: int, code: int, queries: int, held: Pack | None) -> str:
        rows, width = self.vectors.shape[-2:]
        bank = f"{rows} rows of width {width} on {_C.isa()}"
        if queries == 0:
            return "there is nothing to search"
        if not screens:
            if code not in SCREENED:
                return f'every row is scored exactly: "{metric_name(code)}" has no screen'
            if 8 * k >= rows:
                return f"every row is scored exactly: k = {k} is an eighth of the {rows} rows or more"
            faster = f"faster than a screen for {queries} queries, k = {k} and {bank}"
            asked = "" if self.screen == "auto" else f", whatever screen={self.screen!r} says"
            return (
                f"every row is scored exactly{asked}: that is predicted to be {faster}, or no screen serves this width"
            )
        chosen = None if held is None else held.head
        cost = 0.0 if held is None else use_of(held.pack).cost(width, held.width, rows)
        if screens[0] == "head" and chosen is not None:
            first = f"a head of {chosen.width} coordinates, "
            if chosen.gain is None:
                first += "because the Bank says so"
            else:
                first += f"predicted to be {chosen.gain:.2f} x as fast, chosen for {bank}"
            if cost > LOSS:
                first += f"; these queries take about {cost:.1f} x as long as with all coordinates"
        elif held is None:
            first = f"{screens[0]}, chosen for {bank}; the vectors are packed at every call, whatever `screen` says"
        elif self.screen == screens[0]:
            first = f'{screens[0]}, because the Bank says screen="{self.screen}"'
        elif self.screen != "auto":
            first = f"{screens[0]}, because {self.screen} does not serve so few queries or this processor"
        else:
            first = f"{screens[0]}, chosen for {bank}"
            if not self._coded and screens[0] != "int8":
                first += ", whose scores lie too close to each other for 8-bit codes"
                if self.head is not None:
                    first += f", so that head={self.head} is not used"
        if chosen is not None and chosen.rotation is None and chosen.gain is not None:
            first += f"; the best head is predicted to be {chosen.gain:.2f} x as fast, which is too little"
            if held is not None and held.chooser is not None and held.chooser.gave_up is not None:
                first += (
                    f"; a head of {held.chooser.gave_up} was given up, because it cost more than all coordinates, and "
                    f"one is tried again after {held.chooser.to_come} queries"
                )
        return "; ".join(
            [first, *(f"{name} where {before} left too much undecided" for before, name in pairwise(screens))]
        )

    def lookup(self, codes: Tensor, weights: Tensor | None = None, *, reduce: str = "none") -> Tensor:
        """`vecbank.lookup` in this bank: codes -> rows.

        Example:
            >>> import torch, vecbank
            >>> vecbank.Bank(torch.eye(3), "l2").lookup(torch.tensor([2, 0])).tolist()
            [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
        """
        return functional.lookup(codes, self, weights, reduce=reduce)

    def forward(self, *args: object, **kwargs: object) -> NoReturn:
        """A Bank has no one thing to do with x: its methods are the verbs."""
        raise TypeError(
            "a Bank is not called: use one of its methods, bank.project(x), bank.topk(x, k), bank.nearest(x), "
            "bank.quantize(x) or bank.lookup(codes)"
        )

    def extra_repr(self) -> str:
        shape = " x ".join(str(s) for s in self.vectors.shape)
        own = self.vectors.numel() * self.vectors.element_size()
        held = [(kind.int8, made.pack.numel()) for kind, made in list(self._packs.items()) if kind.family in SCREENED]
        sizes = {name: sum(size for int8, size in held if int8 == codes) for name, codes in _PANELS.items()}
        packed = "".join(f" + {_bytes(size)} packed as {name}" for name, size in sizes.items() if size)
        mapped = {id(rows): rows for _, rows, _ in list(self._mapped.values())}.values()
        if mapped:
            size = sum(rows.vectors.numel() * 8 + sum(p.pack.numel() for p in rows._packs.values()) for rows in mapped)
            packed += f" + {_bytes(size)} of mapped rows"
        later = ", packed per call" if self.learnable else ", packed at first use"
        dtype = str(self.vectors.dtype).removeprefix("torch.")
        biased = ", biased" if self._biased else ""
        screen = "" if self.screen == "auto" else f", screen={self.screen!r}"
        chosen = [made.head for made in list(self._packs.values()) if made.head and made.head.rotation is not None]
        heads = "" if self.head is None else f"head={self.head}, "
        if self.head is None:
            heads = "".join(f"head of {width} chosen, " for width in sorted({head.width for head in chosen}))
        return (
            f"{shape}, metric={self.metric!r}, dtype={dtype}, learnable={self.learnable}{biased}{screen}, "
            f"{heads}{_bytes(own)}{packed or later}"
        )


_PANELS = {"int8": True, "float32": False}  # what packs hold


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 1024:.1f} KiB"
