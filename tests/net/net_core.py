"""What a case of the net is, and how one is built, called, trained and copied.

A case is (module, options, layout, dtype). `net_modules` and `net_tables` say what there is; checks take a case and
raise AssertionError.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import random
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Options = Mapping[str, Any]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "autocast": torch.float32}


@dataclass(frozen=True)
class Make:
    """A constructor argument that must be made anew for every module: a network, a generator, vectors."""

    text: str
    make: Callable[[], Any]

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Layout:
    """How positions and features lie in an input: (b, *positions, d), or (b, d, *positions) for `first`."""

    name: str
    rank: int = 1  # axes of positions
    first: bool = False
    options: Options = field(default_factory=dict)

    def shape(self, width: int, size: int | None = None) -> tuple[int, ...]:
        """An input's shape; with `size` the batch and every position count are that number."""
        batch, positions = (2, (5, 3, 2)[: self.rank]) if size is None else (size, (size,) * self.rank)
        return (batch, width, *positions) if self.first else (batch, *positions, width)

    def last(self, x: Tensor) -> Tensor:
        """Features on the last axis."""
        return x.movedim(1, -1) if self.first else x

    def back(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1) if self.first else x


TOKENS = Layout("tokens")
DEEP = Layout("tokens of two axes", 2)
VECTORS = Layout("vectors", 0)


@dataclass
class Result:
    """What a module returned, in one form for all of them."""

    output: Tensor | None  # in the layout of the input
    codes: Tensor | None = None  # (b, *positions, ...)
    losses: list[Tensor] = field(default_factory=list)
    raw: Any = None  # the codes as they were returned, or whatever `decode` takes
    grad: Tensor | None = None  # of the input, after a step

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.output, self.codes, *self.losses) if t is not None]


@dataclass(frozen=True)
class Entry:
    """One module of the table.

    Args:
        base: constructor arguments of every case. options: for every other argument of the constructor, the arguments
            to try: a non-default value, and what it needs beside it. inner: the class that takes ``**kwargs``.
        refused: arguments of `inner` that do not apply, and why.
        call: (module, x, keywords of forward) to Result. decode: (module, Result.raw) to features on the last axis.
        width: of the input's features, from the constructor's arguments.
        masked: forward takes a mask (b, n). ids: the input is integers below this, not features.
        sizes: also tried as the size of every axis: those of features, stages, heads, groups.
        clash: pairs of options that mean different shapes.
        curved: what second derivatives are compared by finite differences of: "input", "parameters" or nothing.
        calls: keywords of forward that leave state behind, for steps before a checkpoint.
        plain: whether a row's output is all there is, and what it does to gradients is the caller's.
        curved_options: constructor arguments that keep float64 for it. bent: options, or their values, under which a
            first derivative is not of a function (straight through a table, a moving average): not compared.
    """

    name: str
    cls: type[nn.Module]
    base: Options
    options: Mapping[str, list[dict[str, Any]]]
    call: Callable[..., Result]
    decode: Callable[[Any, Any], Tensor] | None = None
    layouts: tuple[Layout, ...] = (TOKENS,)
    width: Callable[[Options], int] = lambda args: int(args["dim"])
    inner: tuple[Any, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    masked: bool = False
    ids: int = 0
    sizes: tuple[int, ...] = (8,)
    clash: tuple[frozenset[str], ...] = ()
    curved: str = ""
    plain: bool = False
    calls: tuple[Options, ...] = ()
    curved_options: Options = field(default_factory=dict)
    bent: frozenset[str] = frozenset()

    def arguments(self) -> set[str]:
        """Every argument that the constructor takes, with those it passes on."""
        names: set[str] = set()
        for function in (self.cls.__init__, *self.inner):
            for name, p in inspect.signature(function).parameters.items():
                if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name != "self":
                    names.add(name)
        return names

    def named(self) -> set[str]:
        """Every argument that the table speaks of."""
        layouts = {name for layout in self.layouts for name in layout.options}
        return {*self.options, *self.base, *self.refused, *layouts}


@dataclass(frozen=True)
class Case:
    entry: Entry
    options: Options
    layout: Layout
    dtype: str = "float32"

    def __str__(self) -> str:
        options = ", ".join(f"{k}={_text(v)}" for k, v in self.options.items())
        return f"{self.entry.name}({options}) | {self.layout.name} | {self.dtype}"

    @property
    def arguments(self) -> dict[str, Any]:
        return {**self.entry.base, **self.layout.options, **self.options}

    @property
    def width(self) -> int:
        return self.entry.width(self.arguments)


def _text(value: Any) -> str:
    function = getattr(value, "func", value)
    return str(getattr(function, "__name__", value))


def seed_of(text: str) -> int:
    """The same number for a text in every process."""
    return zlib.crc32(text.encode()) % 2**31


def build(case: Case, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    made = {k: v.make() if isinstance(v, Make) else v for k, v in case.arguments.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = case.entry.cls(**made)
    return module.to(DTYPES[case.dtype]) if case.dtype in ("bfloat16", "float16") else module


def make_input(case: Case, seed: int, size: int | None = None, shape: tuple[int, ...] | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed_of(str(case)) + seed)
    shape = case.layout.shape(case.width, size) if shape is None else shape
    if case.entry.ids:
        return torch.randint(0, case.entry.ids, shape, generator=generator)
    return torch.randn(shape, generator=generator).to(DTYPES[case.dtype])


@contextlib.contextmanager
def cast(case: Case) -> Iterator[None]:
    """Autocast, for cases that run under it; and no warnings of small batches."""
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "autocast"):
        warnings.simplefilter("ignore")
        yield


def call(case: Case, module: nn.Module, x: Tensor, **options: Any) -> Result:
    with cast(case):
        result = case.entry.call(module, x, **options)
    result.raw = result.codes if result.raw is None else result.raw
    return result


def total(case: Case, result: Result, seed: int = 0) -> Tensor | None:
    """A fixed random combination of everything that has a gradient."""
    generator = torch.Generator().manual_seed(seed)
    terms = []
    for t in (result.output, *result.losses):
        if t is not None and t.requires_grad:
            t = t if t.dtype == torch.float64 else t.float()
            terms.append((t * torch.randn(t.shape, generator=generator)).sum().double())
    return torch.stack(terms).sum() if terms else None


def learn(case: Case, result: Result, rows: Tensor | None = None) -> Tensor | None:
    """What an optimiser would lower: all losses, and the distance of the output (of some `rows`) to 0.1."""
    terms = [t.float().sum() for t in result.losses if t.requires_grad]
    if result.output is not None and result.output.requires_grad:
        output = case.layout.last(result.output).float()
        output = output.reshape(-1, output.shape[-1])
        terms.append(((output if rows is None else output[rows]) - 0.1).square().mean())
    return torch.stack(terms).sum() if terms else None


def optimiser_of(module: nn.Module) -> torch.optim.Optimizer | None:
    parameters = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.5) if parameters else None


def step(
    case: Case,
    module: nn.Module,
    x: Tensor,
    optimiser: torch.optim.Optimizer | None = None,
    rows: Tensor | None = None,
    **options: Any,
) -> Result:
    """One step of training; only some `rows` of the output are in its goal."""
    module.zero_grad()
    if not case.entry.ids:
        x = x.clone().requires_grad_()
    result = call(case, module, x, **options)
    goal = learn(case, result, rows)
    if goal is not None:
        goal.backward()
        result.grad = x.grad
    if optimiser is not None:
        optimiser.step()
    return result


_trained: dict[str, nn.Module] = {}


def trained(case: Case, steps: int = 3) -> nn.Module:
    """A module after a few steps; the caller's own copy."""
    key = str(case)
    if key not in _trained:
        module = build(case)
        optimiser = optimiser_of(module)
        for i in range(steps):
            step(case, module, make_input(case, i), optimiser)
        module.zero_grad()
        _trained[key] = module
    torch.manual_seed(7)
    return clone(_trained[key])


def clone(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module)


def forget() -> None:
    _trained.clear()


def state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, persistent or not."""
    return {name: t.detach() for name, t in (*module.named_parameters(), *module.named_buffers())}


def generators(module: nn.Module) -> list[torch.Generator]:
    found: dict[int, torch.Generator] = {}
    for m in module.modules():
        for value in vars(m).values():
            if isinstance(value, torch.Generator):
                found[id(value)] = value
    return list(found.values())


# ---- comparison ---------------------------------------------------------------------------------------------------


def scale_of(t: Tensor) -> float:
    t = t.detach()
    return max(1.0, float(t.float().abs().nan_to_num(0.0, 0.0, 0.0).max())) if t.numel() else 1.0


def same(got: Tensor, want: Tensor, what: str, tolerance: float = 0.0) -> None:
    """Equal, NaN to NaN, up to a tolerance relative to the largest entry (0: bit for bit)."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, want {tuple(want.shape)}"
    got, want = got.detach(), want.detach()
    if tolerance == 0 or not want.is_floating_point():
        equal = (got == want) | ((got != got) & (want != want))
        if not bool(equal.all()):
            off = ~equal
            at = tuple(int(i) for i in off.nonzero()[0])
            raise AssertionError(
                f"{what}: {int(off.sum())} of {off.numel()} differ, at {at} {got[at].item()}, want {want[at].item()}"
            )
        return
    got, want = got.double(), want.double()
    gap = torch.where(got == want, 0.0, (got - want).abs())
    gap = torch.where((got != got) & (want != want), 0.0, gap)
    worst = float(gap.nan_to_num(torch.inf).max()) if gap.numel() else 0.0
    assert worst <= tolerance * scale_of(want), f"{what}: off by {worst:.3g} (largest entry {scale_of(want):.3g})"


def same_state(got: nn.Module, want: nn.Module, what: str, tolerance: float = 0.0) -> None:
    a, b = state(got), state(want)
    assert set(a) == set(b), f"{what}: state of other names: {sorted(set(a) ^ set(b))}"
    for name, value in b.items():
        same(a[name], value, f"{what}: {name}", tolerance)


def same_result(got: Result, want: Result, what: str, tolerance: float = 0.0) -> None:
    assert len(got.tensors()) == len(want.tensors()), f"{what}: another number of results"
    for i, (a, b) in enumerate(zip(got.tensors(), want.tensors(), strict=True)):
        same(a, b, f"{what}: result {i}", tolerance)


def finite(tensors: Mapping[str, Tensor], what: str) -> None:
    for name, t in tensors.items():
        assert not t.is_floating_point() or bool(t.isfinite().all()), f"{what}: {name} is not finite"


def tolerance_of(case: Case) -> float:
    return 2e-5 if case.dtype == "float32" else 3e-2


# ---- cases --------------------------------------------------------------------------------------------------------


def singles(entry: Entry) -> list[dict[str, Any]]:
    """No options, then every option alone."""
    return [{}, *(option for values in entry.options.values() for option in values)]


def legal(case: Case) -> bool:
    """Whether the constructor takes the case."""
    try:
        build(case)
    except (ValueError, TypeError, AssertionError):
        return False
    return True


def pairs(entry: Entry, count: int, seed: int) -> list[dict[str, Any]]:
    """Random pairs of options, without those that contradict each other by name."""
    drawn: list[dict[str, Any]] = []
    rng, names = random.Random(f"{entry.name} {seed}"), sorted(entry.options)
    if len(names) < 2:
        return drawn
    for _ in range(20 * count):
        if len(drawn) == count:
            break
        one, two = rng.sample(names, 2)
        a, b = rng.choice(entry.options[one]), rng.choice(entry.options[two])
        if any(a[k] != b[k] for k in a.keys() & b.keys()) or any(c <= {*a, *b} for c in entry.clash):
            continue
        drawn.append({**a, **b})
    return drawn
