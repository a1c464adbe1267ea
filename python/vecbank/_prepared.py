"""What a bank is below the verbs: vectors, perhaps a bias, and the packed copies of them, kept up to date."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import _C, _checks, _head, _head_choice, metrics
from ._deprecated import warn
from ._numpy import entry_point
from ._ops import METRICS, ops
from ._ops.names import SCREENED, metric_name
from ._ops.pack import USES
from ._packable import _capturing, _pack_family, _packable, codes_tell_apart
from ._packs import Kind, Made, Pack, use_of
from ._progress import watched
from ._written import Snapshot, foreign, last_of_each, own, share_memory

Self = TypeVar("Self", bound="PreparedBank")


_int8_panels = _C.int8_panels  # names of this module: every call pays for looking them up
_AUTO = USES.index("auto")


class PreparedBank(nn.Module):
    """The base of `vecbank.Bank`, whose docstring says what it promises. Functions that take a bank know it by this."""

    vectors: Tensor
    bias: Tensor | None
    _packs: dict[Kind, Pack]
    _mapped: dict[bool, tuple[Snapshot, PreparedBank, bool]]  # by a metric that maps rows: the mapped rows
    _inside: Snapshot | None = None  # of vectors that were seen to lie in the unit ball
    _warned: set[str]  # what the Bank has warned of, once
    _watching = True  # the queries of calls
    _coded = True  # 8-bit codes tell the scores of these vectors apart

    @entry_point
    def __init__(
        self,
        vectors: Tensor,
        metric: str | metrics.Metric | None = None,
        learnable: bool = False,
        *,
        bias: Tensor | None = None,
        screen: str = "auto",
        head: int | None = None,
    ) -> None:
        super().__init__()
        self._use = use_of(screen)
        if isinstance(metric, str) and metric == "hamming":
            raise ValueError('"hamming" is of packed bits, which go into vecbank.BitBank(words, bits=...)')
        _checks.vectors("vectors", vectors)
        self._head = None if head is None else _head.width_of(head, vectors, screen)
        if isinstance(metric, str):
            metric = metrics.NAMED.get(metric, metric)
        known = isinstance(metric, metrics.Metric) or (isinstance(metric, str) and metric in METRICS)
        if metric is not None and not known:
            raise ValueError(f"metric must be one of {metrics.names()}, got {metric!r}")
        if metric is None and bias is not None:
            metric = "dot"  # the only metric that goes with a bias
        self._metric = metric
        self.learnable = learnable
        self._biased = bias is not None
        self._packs, self._mapped, self._warned = {}, {}, set()
        if isinstance(metric, metrics.Metric):
            if bias is not None:
                raise ValueError(f'bias goes with the "dot" metric, got {metric.name!r}')
            metric.check("vectors", vectors)
        elif metric == "poincare":
            _checks.inside_ball("vectors", vectors)
        self.map = getattr(metric, "map", None)  # a module moves with the Bank, which has its parameters
        if bias is not None:
            _checks.bias(bias, vectors, METRICS[str(metric)])
        if learnable:
            self.vectors = nn.Parameter(vectors.detach().clone())
            self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
        else:
            self.register_buffer("vectors", own(vectors))
            self.register_buffer("bias", None if bias is None else own(bias))

    def _held(self) -> Tensor:
        """The vectors, without the search of `nn.Module` for an attribute where they are the buffer they began as."""
        held = self._buffers.get("vectors")
        return self.vectors if held is None else held

    @property
    def screen(self) -> str:
        """The screen that searches on the CPU begin with: "auto", "float32", "int16" or "int8". Read-only."""
        return USES[self._use]

    @screen.setter
    def screen(self, value: object) -> None:
        raise AttributeError(
            f"the screen of a Bank is fixed at {self.screen!r}: make another one, Bank(bank.vectors, screen={value!r})"
        )

    @property
    def metric(self) -> str | metrics.Metric | None:
        """The metric that the Bank was made for; None leaves each verb its own. Read-only."""
        own = self._metric
        return metrics.named(own) if isinstance(own, metrics.Metric) else own

    @metric.setter
    def metric(self, value: object) -> None:
        raise AttributeError(
            f"the metric of a Bank is fixed at {self.metric!r}: make another one, Bank(bank.vectors, {value!r})"
        )

    @property
    def _native(self) -> str | None:
        """The metric of the Bank, if it has a kernel."""
        return None if isinstance(self._metric, metrics.Metric) else self._metric

    @entry_point
    def update_(self: Self, rows: Tensor, vectors: Tensor) -> Self:
        """Overwrite rows (integers, (R,)) with vectors (R, d) in place, and renew the packs there are; returns self.

        The cost follows R, not M: of the packed copy, only the blocks of 16 rows that hold one of them are written.
        After M rows in all, for R > M / 16, and on a CUDA device always, everything is prepared again.

        A row that is named more than once keeps the last of its vectors, as assignment in numpy does. Both arguments
        may be on any device, and are moved to the bank's.

        Raises:
            RuntimeError: the bank is learnable (an optimiser owns it). TypeError: rows that are not integers, or
                vectors of another dtype than the bank's. ValueError: shapes. IndexError: rows outside 0..M-1.

        Example:
            >>> import torch, vecbank
            >>> bank = vecbank.Bank(torch.zeros(3, 2), "l2")
            >>> bank.update_(torch.tensor([1]), torch.tensor([[5.0, 5.0]])).lookup(torch.tensor(1)).tolist()
            [5.0, 5.0]
        """
        held, bias = self.vectors, self.bias
        if held.requires_grad:
            raise RuntimeError("update_ cannot write into a learnable bank: its vectors are a leaf that requires grad")
        if held.dim() != 2:
            raise ValueError(f"update_ needs a bank (M, d), this one is {tuple(held.shape)}")
        rows = _checks.integers(rows, "rows")
        _checks.floating("vectors", vectors)
        if rows.dim() != 1 or vectors.shape != (rows.shape[0], held.shape[1]):
            raise ValueError(
                f"update_ needs rows (R,) and vectors (R, {held.shape[1]}), "
                f"got {tuple(rows.shape)} and {tuple(vectors.shape)}"
            )
        if vectors.dtype != held.dtype:
            raise TypeError(f"vectors must be {held.dtype} like the bank, got {vectors.dtype}")
        if rows.numel():
            low, high = (int(end) for end in rows.aminmax())
            if low < 0 or high >= held.shape[0]:
                raise IndexError(f"rows must lie between 0 and {held.shape[0] - 1}, got values from {low} to {high}")
        rows, vectors = last_of_each(rows, vectors.detach())
        rows, vectors = rows.to(held.device), vectors.to(held.device)
        if share_memory(vectors, held):
            vectors = vectors.clone()  # rows of the bank itself, perhaps
        current = {kind: made for kind, made in self._packs.items() if made.is_of(held, bias)}
        with torch.no_grad():
            held.index_copy_(0, rows, vectors)  # bumps the version that autograd checks
            many = rows.numel() > held.shape[0] // 16  # everything is packed anew, and perhaps unlike what was there
            if not current or many or held.is_cuda or torch.compiler.is_compiling():
                return self.repack()
            self._packs.clear()  # an error leaves none that is half written
            made_of = Snapshot.of(held), None if bias is None else Snapshot.of(bias)
            for kind, made in current.items():
                ops.repack_(made.pack, held, kind.family, rows, bias, True)
                self._packs[kind] = Pack(made.pack, *made_of, head=made.head, chooser=made.chooser)
        return self

    @property
    def head(self) -> int | None:
        """The head that the Bank was made with; None: searches choose one, which `explain` tells. Read-only."""
        return self._head

    @head.setter
    def head(self, value: object) -> None:
        raise AttributeError(
            f"the head of a Bank is fixed at {self._head}: make another one, Bank(bank.vectors, head={value!r})"
        )

    @entry_point
    def prepare(
        self: Self,
        what: str = "search",
        metric: str | None = None,
        *,
        queries: Tensor | None = None,
        k: int = 10,
        progress: bool = False,
    ) -> Self:
        """Prepare the vectors now for what a verb would prepare them for at its first call; returns self.

        For searches on the CPU the head is chosen now too (see the class), which otherwise happens after some thousands
        of queries.

        A Bank that is first used inside a compiled program should be prepared before. A bank that is packed at every
        call (a learnable one, or vectors that require a gradient) is left as it is.

        Args:
            what: "search" (`topk`, `nearest`, `quantize` and all that search), or "project".
            metric: of a Bank that names none.
            queries: (..., d): some of those that will be searched for, to choose the head by. Without any, it is chosen
                for queries that are like the vectors.
            k: how many rows such a search asks for. As many queries as one call has decide what a product costs: give
                four or fewer where calls have so few (which may need a pack of their own, of vectors wider than 2048).
            progress: on the CPU, draw a bar on stderr from the first second on. It counts all packing of this process.

        Raises:
            ValueError: another word, an unknown metric, none where the Bank names none, or one whose packs are not
                those of the Bank's own ("l2" and "sqeuclidean" share theirs); queries of another width, or for
                "project"; k below 1. TypeError: queries that are no floating-point tensor.

        Example:
            >>> import torch, vecbank
            >>> bank = vecbank.Bank(torch.randn(1000, 64), "l2", screen="int8").prepare("search")
            >>> "packed as int8" in repr(bank)
            True
        """
        if what not in ("search", "project"):
            raise ValueError(f'what must be "search" (topk, nearest, quantize) or "project", got {what!r}')
        name = self._metric if metric is None else metric
        if (mapped := metrics.mapping(metric, self)) is not None:
            return self._prepare_mapped(mapped, what, queries, k=k, progress=progress)
        if name is None:
            raise ValueError(f'this Bank names no metric: say which, as in prepare("{what}", "l2")')
        if isinstance(name, Tensor):
            raise TypeError("metric must be a name, got a tensor: queries go by their name, prepare(queries=...)")
        if not isinstance(name, str) or name not in METRICS:
            raise ValueError(f"metric must be one of {metrics.names()}, got {metric!r}")
        k = _checks.integer("k", k)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if queries is not None:
            _checks.floating("queries", queries)
            if what != "search":
                raise ValueError('queries choose the head of searches, which "project" does not have')
            if not _checks.concrete(queries) or queries.is_meta:
                raise ValueError("queries must hold values: they choose the head")
            if queries.dim() < 1 or queries.shape[-1] != self.vectors.shape[-1]:
                wanted = self.vectors.shape[-1]
                raise ValueError(f"queries must be (..., {wanted}) like the bank, got {tuple(queries.shape)}")
        own = self._native
        if self._metric is not None and (own is None or _pack_family(METRICS[name]) != _pack_family(METRICS[own])):
            raise ValueError(f'this Bank is for "{self.metric}", got metric {metric!r}: make a Bank for that')
        if self._biased and what == "project":
            return self  # it uses no pack
        vectors = self.vectors
        few = queries is not None and _head.few(queries.shape[:-1].numel())
        kind = self._kind(what, vectors, METRICS[name], few, look=True)
        held = self._packs.get(kind)
        if held is not None and not held.is_of(vectors, self.bias):
            held = None
        undecided = held is None or held.head is None or queries is not None
        chosen = self._choose(kind, vectors, _head.Searches(queries, k, few)) if undecided else None
        if held is None or (chosen is not None and chosen.width != held.width):
            title = f"preparing {' x '.join(map(str, vectors.shape))}"
            panels = vectors.shape[:-2].numel() * -(-vectors.shape[-2] // 16)  # rows are packed by sixteen
            with watched(title, 16 * panels, progress, _C.packed_rows):
                self._prepare(kind, vectors, self.bias, chosen)
        elif chosen is not None and held.head is None:
            chooser = _head_choice.Chooser(vectors.shape[-1], chosen)
            self._packs[kind] = held._replace(head=chosen, chooser=chooser)
        return self

    def _choose(self, kind: Kind, vectors: Tensor, searches: _head.Searches) -> _head.Head | None:
        """The head for a pack that would be kept; None: there can be none."""
        if not self._may_choose(kind, vectors):
            return None
        with torch.inference_mode(False), torch.no_grad():
            return _head.choose(vectors, kind.family, searches)

    def _may_choose(self, kind: Kind, vectors: Tensor) -> bool:
        rows, width = vectors.shape[-2:]
        if self._head is not None or not kind.int8 or vectors.dim() != 2 or not _head.possible(rows, width):
            return False
        return not self.learnable and not self._biased and _packable(vectors)  # the model does not know biases

    @entry_point
    def repack(self: Self) -> Self:
        """Prepare the vectors again; returns self. Needed only after writes that torch does not count (see the class).

        What no call has needed yet is not prepared (see `prepare`), and a head that was chosen is chosen anew later.

        Example:
            >>> import torch, vecbank
            >>> bank = vecbank.Bank(torch.zeros(3, 2), "l2")
            >>> bank.vectors.data[1] = 5.0
            >>> bank.repack().nearest(torch.tensor([5.0, 5.0])).indices.item()
            1
        """
        held, self._packs, self._mapped = self._packs, {}, {}
        for kind in held:
            self._prepare(kind, self.vectors, self.bias)
        return self

    def _kind(self, verb: str, vectors: Tensor, code: int, few: bool = False, look: bool = False) -> Kind:
        """The pack that a verb needs, of "project" and all others; `look`: at vectors that have changed, perhaps."""
        family, shape = _pack_family(code), vectors.shape
        int8 = verb != "project" and vectors.is_cpu and _int8_panels(shape[-2], shape[-1], family, self._use)
        if look and int8 and self._use == _AUTO:
            self._coded = not _packable(vectors) or codes_tell_apart(vectors, family)
        # For few queries memory limits the speed, and codes are a quarter of it.
        return Kind(family, int8 and (self._coded or few))

    def _prepare(
        self,
        kind: Kind,
        vectors: Tensor,
        bias: Tensor | None,
        head: _head.Head | None = None,
        last: _head_choice.Chooser | None = None,
    ) -> Tensor | None:
        """Packs the vectors, if the pack can be held to what it was made of; `last`: who chose the head."""
        if self.learnable or not _packable(vectors) or (bias is not None and not _packable(bias)):
            return None
        # before packing: a write in between makes the pack stale
        made_of = Snapshot.of(vectors), None if bias is None else Snapshot.of(bias)
        with torch.inference_mode(False), torch.no_grad():  # a pack is written into by update_
            # Float32 panels serve `project` too, so a screen that needs them shares them.
            use = self._use if kind.int8 or self.screen in ("float32", "int16") else 0
            if self._head is not None and kind.int8 and vectors.dim() == 2:
                head = _head.fixed(vectors, kind.family, self._head)
            turned = None if head is None else head.rotation
            pack: Tensor = ops.pack(
                vectors, kind.family, bias, True, use, turned, 0 if head is None or turned is None else head.width
            )
        if _checks.concrete(pack):  # a tracer's own tensor is for that tracer alone
            made = None
            if pack.is_cuda:
                stream = torch.cuda.current_stream(pack.device)
                made = Made(stream, stream.record_event())
            chooser = _head_choice.Chooser(vectors.shape[-1], head, last) if self._may_choose(kind, vectors) else None
            self._packs[kind] = Pack(pack, *made_of, made, head, chooser)
        return pack

    def _packed(
        self, verb: str, vectors: Tensor, code: int, queries: Tensor | None = None, k: int = 10
    ) -> Tensor | None:
        """The pack for a metric, current; None where the op has to pack for itself."""
        if self._biased and verb == "project":
            return None  # the op adds the bias to a product of its own
        family = _pack_family(code)
        if torch.compiler.is_compiling():
            held = (verb != "project" and self._packs.get(Kind(family, True))) or self._packs.get(Kind(family, False))
            # The op itself holds the stamp in the pack against the vectors. An exported program keeps no pack. Which
            # stream a compiled program reads it on is the caller's to order, as for every tensor of the program.
            return None if held is None or torch.compiler.is_exporting() else held.pack
        if _capturing(vectors):
            return None  # a replay could not see that the vectors have changed, so the graph packs for itself
        bias = self._buffers.get("bias") if self._biased else None
        shape = vectors.shape
        int8 = verb != "project" and vectors.is_cpu and _int8_panels(shape[-2], shape[-1], family, self._use)
        int8 = int8 and (self._coded or (queries is not None and _head.few(queries.shape[:-1].numel())))
        held = self._packs.get((family, int8))  # type: ignore[call-overload]  # equal to the Kind, and quicker made
        if held is not None and held.is_of(vectors, bias):
            if held.chooser is not None and queries is not None:
                return self._with_head(self._kind(verb, vectors, code), held, held.chooser, vectors, queries, k)
            return held.for_current_stream()
        if self._buffers.get("vectors") is not vectors:
            return None
        if self._metric is not None and (self._native is None or family != _pack_family(METRICS[self._native])):
            self._warn_of_metric(verb, code)
            return None
        few = queries is not None and _head.few(queries.shape[:-1].numel())
        kind = self._kind(verb, vectors, code, few, look=True)
        if kind.int8 != int8:
            self._packs.pop(Kind(family, int8), None)  # of other values, which are no longer there
        return self._prepare(kind, vectors, bias)

    def _with_head(
        self, kind: Kind, held: Pack, chooser: _head_choice.Chooser, vectors: Tensor, queries: Tensor, k: int
    ) -> Tensor:
        """The pack, made anew where another head is due."""
        rows, width = vectors.shape
        counts = self._watching and _head_choice.watchable(queries) and 1 <= k <= rows  # the op refuses another k
        if not counts or not chooser.due(queries, held.pack, rows):
            return held.pack
        made = failed = None
        try:
            chosen = self._choose(kind, vectors, chooser.searches(k)) or _head.all_of(width)
            if chosen.width != held.width:
                made = self._prepare(kind, vectors, self.bias, chosen, chooser)
        except (MemoryError, RuntimeError) as error:  # there is no room for a second pack, for instance
            chosen, failed = held.head or _head.all_of(width), error
        if made is None:
            self._packs[kind] = held._replace(head=chosen, chooser=_head_choice.Chooser(width, chosen, chooser))
        if failed is not None:
            warn(f"no other head could be prepared, and searches go on as before: {failed}", RuntimeWarning)
        return held.pack if made is None else made

    def _mapped_by(self, m: metrics.Metric, *, room: bool = False) -> tuple[Tensor | PreparedBank, bool]:
        """The mapped rows, and whether they have room: by the Bank's own metric a Bank that is kept until the vectors
        change, else a tensor.
        """
        vectors = self._held()
        kept = m == self._metric and not self.learnable and not m.learned and _packable(vectors)
        if not kept or torch.compiler.is_compiling():
            m.check("bank", vectors)
            room = room or m.needs_room(vectors)
            return m.rows(vectors, room=room), room
        held = self._mapped.get(room)
        if held is None or not held[0].shows(vectors):
            made_of = Snapshot.of(vectors)
            with torch.inference_mode(False), torch.no_grad():
                m.check("bank", vectors)
                needs = room or m.needs_room(vectors)
                rows = PreparedBank(m.rows(vectors, room=needs), m.base, screen=self.screen, head=self._head)
            held = made_of, rows, needs
            self._mapped[room] = self._mapped[needs] = held
        return held[1], held[2]

    def _check_inside(self, vectors: Tensor) -> None:
        """The vectors lie inside the unit ball, which is looked at once."""
        if self._inside is None or not self._inside.shows(vectors):
            _checks.inside_ball("bank", vectors)
            self._inside = Snapshot.of(vectors) if _packable(vectors) else None

    def _prepare_mapped(
        self: Self, m: metrics.Metric, what: str, queries: Tensor | None, *, k: int, progress: bool
    ) -> Self:
        if m != self._metric:
            raise ValueError(f"this Bank is for {self.metric!r}, got metric {m!r}: make a Bank for that")
        if what == "search":  # a projection maps the vectors at every call
            room = queries is not None and m.needs_room(queries)
            rows, room = self._mapped_by(m, room=room)
            if isinstance(rows, PreparedBank):
                mapped = None if queries is None else m.rows(queries, room=room)
                rows.prepare(what, queries=mapped, k=k, progress=progress)
        return self

    def _warn_of_metric(self, verb: str, code: int) -> None:
        if "metric" in self._warned or code not in SCREENED:  # then there is next to nothing to pack
            return
        self._warned.add("metric")
        wanted = metric_name(code)
        warn(
            f'{verb} by "{wanted}" packs the vectors of this Bank at every call, because the Bank is prepared for '
            f'"{self.metric}": make a Bank for "{wanted}", or one without a metric',
            UserWarning,
        )

    def _code_for(self, verb: str, default: str) -> int:
        """The metric of a call that names none."""
        if self._metric is not None:
            if self._native is None:
                raise ValueError(
                    f"{verb} has no form by {self.metric!r}, the metric of this Bank: it takes {', '.join(METRICS)}"
                )
            return METRICS[self._native]
        if default != "cosine" and "default" not in self._warned:
            if not torch.compiler.is_compiling():
                self._warned.add("default")
            warn(
                f'{verb} scores by "{default}", its default metric, because this Bank names none (earlier '
                f'releases took "cosine"): name the metric, Bank(vectors, "{default}")'
            )
        return METRICS[default]

    # The pack follows whatever torch does to the vectors, and is never carried along.

    def _apply(self: Self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        return self._own_all().repack()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._own_all().repack()

    def _own_all(self: Self) -> Self:
        """Copies what torch may have put into the buffers and would not count the writes of."""
        for name, held in self._buffers.items():
            if held is not None and (held.is_inference() or foreign(held)):
                self._buffers[name] = own(held)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("vectors", "bias") and "_packs" in self.__dict__:
            # of another tensor; a compiled program could take an alias of it for the same
            self._packs, self._mapped = {}, {}

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.update(_packs={}, _mapped={}, _inside=None, _warned=set())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state.update(_packs={}, _mapped={}, _inside=None, _warned=set())  # earlier releases kept other things there
        if "_metric" not in state:  # written before the metric was read-only
            state["_metric"] = state.pop("metric")
        state.setdefault("_use", USES.index("auto"))
        state.setdefault("_head", None)
        state.pop("_asked", None)
        super().__setstate__(state)
        if "_biased" not in state:  # written before there was a bias
            self._biased = False
            self.register_buffer("bias", None)
