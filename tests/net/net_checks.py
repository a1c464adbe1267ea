"""What every module must hold: decoding, rows that are not finite, small batches, integer dtypes, resuming, copies."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from net_core import (
    Case,
    Options,
    Result,
    build,
    call,
    clone,
    finite,
    generators,
    make_input,
    optimiser_of,
    same,
    same_result,
    same_state,
    scale_of,
    state,
    step,
    tolerance_of,
    trained,
)
from torch import Tensor, nn

INTEGERS = (
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


def decoded(case: Case, module: nn.Module, result: Result) -> Tensor:
    assert case.entry.decode is not None
    with torch.no_grad():
        return case.entry.decode(module, result.raw)


# ---- 1. codes say what forward gave -------------------------------------------------------------------------------


def decode(case: Case) -> None:
    """`decode(codes)` is forward's output, also where batch, positions and features are as many as stages or heads."""
    if case.entry.decode is None:
        return
    for size in (None, *case.entry.sizes):
        module = trained(case).eval()
        x = make_input(case, 50, size)
        with torch.no_grad():
            result = call(case, module, x)
        if result.codes is None or result.output is None:
            return
        want, got = case.layout.last(result.output), decoded(case, module, result)
        if got.shape != want.shape and got.shape == result.output.shape:
            got = case.layout.last(got)
        note = f"input {tuple(x.shape)}: decoded"
        if case.layout.first and got.shape == want.shape == result.output.shape:  # a decoder may use either layout
            try:
                same(got.to(want.dtype), result.output, note, tolerance_of(case))
                return
            except AssertionError:
                pass
        same(got.to(want.dtype), want, note, tolerance_of(case))


def integers(case: Case) -> None:
    """Codes of any integer dtype decode alike, or a TypeError names the argument."""
    if case.entry.decode is None:
        return
    module = trained(case).eval()
    with torch.no_grad():
        result = call(case, module, make_input(case, 51))
    if result.codes is None:
        return
    raw, want = result.raw, decoded(case, module, result)
    codes = raw[-1] if isinstance(raw, tuple) else raw
    low, high = int(codes.min()), int(codes.max())
    failures = []
    for dtype in INTEGERS:
        info = torch.iinfo(dtype)
        if low < info.min or high > info.max:
            continue
        other = codes.to(dtype)
        try:
            with torch.no_grad():
                assert case.entry.decode is not None
                got = case.entry.decode(module, (*raw[:-1], other) if isinstance(raw, tuple) else other)
            same(got, want, str(dtype))
        except TypeError as e:
            if not any(name in str(e) for name in ("indices", "codes")):
                failures.append(f"{dtype}: TypeError without the argument's name: {e}")
        except Exception as e:
            failures.append(f"{dtype}: {type(e).__name__}: {str(e).splitlines()[0]}")
    assert not failures, "; ".join(failures)


def missing(case: Case) -> None:
    """Code -1 is a zero row (where nothing follows that adds to it) and changes no other; other numbers are errors."""
    if case.entry.decode is None or case.entry.name in ("BinaryMapper", "SparseAutoencoder"):
        return
    module = trained(case).eval()
    with torch.no_grad():
        result = call(case, module, make_input(case, 52))
    if result.codes is None or result.output is None:
        return
    raw, batch = result.raw, 1 if case.entry.name.startswith("Grouped") else 0
    spoiled = raw.clone()
    spoiled.select(batch, 0).fill_(-1)
    want, other = decoded(case, module, result), Result(None, raw=spoiled)
    got = decoded(case, module, other)
    same(got[1:], want[1:], "rows beside those of code -1")
    out = getattr(module, "project_out", nn.Identity())
    inner = [m for name, m in module.named_modules() if name.endswith("project_out")]
    if isinstance(out, nn.Identity) and all(isinstance(m, nn.Identity) for m in inner):
        same(got[:1], torch.zeros_like(got[:1]), "the row of code -1")
    for number in (2**20, -2):
        spoiled = raw.clone()
        spoiled.select(batch, 0).fill_(number)
        try:
            got = decoded(case, module, Result(None, raw=spoiled))
        except (IndexError, ValueError, RuntimeError):
            continue
        raise AssertionError(f"code {number} decodes to {got.flatten()[0]:.4g}")


# ---- 2. rows that are not finite ----------------------------------------------------------------------------------

BAD = (torch.nan, torch.inf, -torch.inf)


def _random(case: Case) -> bool:
    """Whether a step on other rows is another step for the rest.

    It draws numbers, looks at how rows are arranged, or rounds to 16 bit by another product, so that codes decided by a
    hair are others.
    """
    names = {
        "stochastic_sample_codes",
        "sample_codebook_temp",
        "threshold_ema_dead_code",
        "directional_reparam",
        "directional_reparam_variance",
        "diveq",
        "rare",
        "noise_dropout",
        "frac_per_sample_entropy",
        "orthogonal_reg_max_codes",
        "kmeans_init",
        "kmeans_iters",
        "sync_kmeans",
        "codebook_diversity_loss_weight",  # of every position by itself: another arrangement is another loss
        "codebook_diversity_temperature",
    }
    return bool(names & set(case.options)) or case.entry.name == "BinaryMapper" or case.dtype != "float32"


def bad_rows(case: Case) -> None:
    """A row with NaN or infinities moves nothing: all is as if it were not there."""
    if case.entry.ids:
        return
    width = case.width
    shape = case.layout.shape(width) if case.layout.rank else (6, width)
    rows = case.layout.last(make_input(case, 60, shape=shape))
    whole = rows.reshape(-1, width)
    others = torch.arange(whole.shape[0]) != 1
    less = whole[others]  # the same rows without it: one batch entry of all the others
    less = less.view(1, -1, *[1] * (case.layout.rank - 1), width) if case.layout.rank else less
    failures = []
    for fresh in (True, False):  # on the first step (k-means starts) and later
        two = build(case) if fresh else trained(case)
        first = clone(two)
        want = _attempt(case, two, case.layout.back(less))
        for bad in BAD:
            for features in ("all features", "one feature"):
                # one feature is bad for one group of several alone, and the others go on with their part of the row
                if features == "one feature" and (fresh or case.entry.name.startswith("Grouped")):
                    continue
                one, spoiled = clone(first), whole.clone()
                spoiled[1, slice(None) if features == "all features" else 0] = bad
                got = _attempt(case, one, case.layout.back(spoiled.view(rows.shape)), others)
                note = f"{bad} in {features}, {'first' if fresh else 'fourth'} step"
                if isinstance(got, str) or isinstance(want, str):
                    failures.append(f"{note}: {got if isinstance(got, str) else f'without the row {want}'}")
                    continue
                for part in (_others, _losses, _gradients, _state):
                    try:
                        part(case, one, two, got, want)
                    except AssertionError as e:
                        failures.append(f"{note}: {e}")
    assert not failures, " ;; ".join(failures)


def _attempt(case: Case, module: nn.Module, x: Tensor, rows: Tensor | None = None) -> Result | str:
    torch.manual_seed(3)
    try:
        return step(case, module, x, rows=rows)
    except Exception as e:
        return f"{type(e).__name__}: {str(e).splitlines()[0]}"


def _others(case: Case, one: nn.Module, two: nn.Module, got: Result, want: Result) -> None:
    """Outputs and codes of the rows 0, 2, 3, ..., and the gradients to them."""
    tolerance, exact = 10 * tolerance_of(case), not _random(case)
    for name in ("output", "codes", "gradient of the input"):
        a, b = ({"output": r.output, "codes": r.codes}.get(name, r.grad) for r in (got, want))
        if a is None or b is None:
            continue
        if name != "codes":
            a, b = case.layout.last(a), case.layout.last(b)
        count = b.shape[: max(1, case.layout.rank + 1)].numel()
        a, b = a.reshape(count + 1, -1), b.reshape(count, -1)
        a = torch.cat([a[:1], a[2:]])
        if name == "codes" and case.entry.name == "SparseAutoencoder":  # lists are as long as the batch needs
            most = max(a.shape[1], b.shape[1])
            a, b = (nn.functional.pad(t, (0, most - t.shape[1]), value=-1) for t in (a, b))
        if exact:
            same(a, b, f"{name} of the other rows", tolerance)
        elif name != "codes":
            finite({f"{name} of the other rows": a}, "the step")
        else:
            assert bool((a >= 0).any()), "all other rows have code -1"


def _losses(case: Case, one: nn.Module, two: nn.Module, got: Result, want: Result) -> None:
    for i, (a, b) in enumerate(zip(got.losses, want.losses, strict=True)):
        finite({f"loss {i}": a}, "the step")
        if not _random(case):
            same(a, b, f"loss {i}", 10 * tolerance_of(case))


def _gradients(case: Case, one: nn.Module, two: nn.Module, got: Result, want: Result) -> None:
    if case.entry.plain:
        return
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        if p.grad is None or q.grad is None:
            assert (p.grad is None) == (q.grad is None), f"gradient of {name}: only one of the two has it"
            continue
        finite({f"gradient of {name}": p.grad}, "the step")
        if (
            not _random(case) and case.dtype == "float32"
        ):  # a sign that 16 bit decide by a hair has gradients of its own
            same(p.grad, q.grad, f"gradient of {name}", 10 * tolerance_of(case))


def _state(case: Case, one: nn.Module, two: nn.Module, got: Result, want: Result) -> None:
    finite(state(one), "after the step")
    if not _random(case):
        same_state(one, two, "after the step", 10 * tolerance_of(case))
    result = step(case, one, make_input(case, 61))
    finite({f"result {i}": t for i, t in enumerate(result.tensors())}, "the step after")
    if result.codes is not None and result.codes.numel():
        assert bool((result.codes >= 0).any()), "all codes of the step after are -1"


def masked_rows(case: Case) -> None:
    """A masked row holds anything: output, losses, state and gradients are those of zeros in its place."""
    if not case.entry.masked or case.layout.rank != 1:
        return
    x = make_input(case, 62)
    rows = case.layout.last(x)
    mask = torch.ones(rows.shape[:2], dtype=torch.bool)
    mask[0, 1] = mask[1, 3] = False
    failures, counted = [], mask.flatten()
    for fresh in (True, False):
        for bad in (*BAD, 1e4 if case.dtype == "float32" else 100.0):
            one = build(case) if fresh else trained(case)
            two = clone(one)
            note = f"{bad} under the mask, {'first' if fresh else 'fourth'} step"
            try:
                torch.manual_seed(3)
                spoiled, zeros = (
                    case.layout.back(torch.where(mask.unsqueeze(-1), rows, value)) for value in (bad, 0.0)
                )
                got = step(case, one, spoiled, rows=counted, mask=mask)
                torch.manual_seed(3)
                want = step(case, two, zeros, rows=counted, mask=mask)
                for name, a, b in (("output", got.output, want.output), ("codes", got.codes, want.codes)):
                    if a is not None and b is not None:
                        a, b = (case.layout.last(t) if name == "output" else t for t in (a, b))
                        same(a[mask], b[mask], f"{name} of the rows that count")
                for i, (a, b) in enumerate(zip(got.losses, want.losses, strict=True)):
                    same(a, b, f"loss {i}", tolerance_of(case))
                same_state(one, two, "after the step", tolerance_of(case))
                for (name, p), q in zip(one.named_parameters(), two.named_parameters(), strict=True):
                    if p.grad is not None and q[1].grad is not None:
                        finite({f"gradient of {name}": p.grad}, "the step")
                        if case.dtype == "float32":
                            same(p.grad, q[1].grad, f"gradient of {name}", tolerance_of(case))
            except AssertionError as e:
                failures.append(f"{note}: {e}")
            except Exception as e:
                failures.append(f"{note}: {type(e).__name__}: {str(e).splitlines()[0]}")
    assert not failures, " ;; ".join(failures)


# ---- 3. small batches ---------------------------------------------------------------------------------------------


def small_batches(case: Case) -> None:
    """One row, and equal rows: finite and in scale, in training and in evaluation."""
    one = case.layout.shape(case.width, 1)
    first = 1 if case.layout.first else len(one) - 1
    one = tuple(case.width if i == first else 1 for i in range(len(one)))
    equal = case.layout.shape(case.width)
    failures = []
    for fresh in (True, False):
        for name, shape in (("one row", one), ("equal rows", equal)):
            note = f"{name} {shape}, {'first' if fresh else 'fourth'} step"
            module = build(case) if fresh else trained(case)
            x = make_input(case, 63, shape=one).expand(shape).contiguous()
            try:
                for training in (True, False):
                    module.train(training)
                    result = step(case, module, x)
                    finite({f"result {i}": t for i, t in enumerate(result.tensors())}, note)
                    for loss in result.losses:
                        assert scale_of(loss) < 1e4, f"{note}: loss {float(loss.detach().abs().max()):.3g}"
                    finite(state(module), note)
                    grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
                    finite(grads, f"{note}: gradients")
                    for n, g in grads.items():
                        assert scale_of(g) < 1e5, f"{note}: gradient of {n} {scale_of(g):.3g}"
            except AssertionError as e:
                failures.append(str(e))
            except Exception as e:
                failures.append(f"{note}: {type(e).__name__}: {str(e).splitlines()[0]}")
    assert not failures, " ;; ".join(failures)


# ---- 4. checkpoints -----------------------------------------------------------------------------------------------


def resume(case: Case) -> None:
    """Two further steps after saving and loading are those of the module that went on, bit for bit."""
    for options in ({}, *(case.entry.calls if not case.options else ())):
        try:
            _resume(case, options)
        except AssertionError as e:
            raise AssertionError(f"steps before it with {options}: {e}" if options else str(e)) from None


def _resume(case: Case, options: Options) -> None:
    module = build(case)
    optimiser = optimiser_of(module)
    for i in range(2):
        step(case, module, make_input(case, 70 + i), optimiser, **options)
    kept = {
        "module": module.state_dict(),
        "optimiser": optimiser.state_dict() if optimiser else None,
        "random": torch.get_rng_state(),
        "generators": [g.get_state() for g in generators(module)],
    }
    file = io.BytesIO()
    torch.save(kept, file)
    file.seek(0)
    kept = torch.load(file)
    other = build(case, seed=99)
    other.load_state_dict(kept["module"])
    its = optimiser_of(other)
    if its is not None:
        its.load_state_dict(kept["optimiser"])
    for g, s in zip(generators(other), kept["generators"], strict=True):
        g.set_state(s)
    same_future(case, module, other, (optimiser, its), kept["random"])


def same_future(
    case: Case,
    one: nn.Module,
    two: nn.Module,
    optimisers: tuple[torch.optim.Optimizer | None, torch.optim.Optimizer | None] = (None, None),
    random: Tensor | None = None,
    steps: int = 2,
) -> None:
    """Both give the same bits in the next steps, and in evaluation after them."""
    random = torch.get_rng_state() if random is None else random
    results: list[list[Result]] = []
    for module, optimiser in zip((one, two), optimisers, strict=True):
        torch.set_rng_state(random)
        module.train()
        done = [step(case, module, make_input(case, 80 + i), optimiser) for i in range(steps)]
        with torch.no_grad():
            done.append(call(case, module.eval(), make_input(case, 90)))
        results.append(done)
    for i, (a, b) in enumerate(zip(results[1], results[0], strict=True)):
        same_result(a, b, f"step {i + 1}" if i < steps else f"evaluation after {steps} steps")
    for name, value in one.state_dict().items():
        same(two.state_dict()[name], value, f"after {steps} steps: {name}")


def _any(module: Any) -> Any:
    return module


# ---- 7. other ways to come by the same module ---------------------------------------------------------------------


def meta(case: Case) -> None:
    """Built on the meta device, emptied and loaded: the source's codes, and its next step."""
    source = trained(case)
    try:
        with torch.device("meta"):
            made = build(case, seed=5)
    except (NotImplementedError, RuntimeError) as e:
        raise AssertionError(f"on the meta device: {type(e).__name__}: {str(e).splitlines()[0]}") from None
    was, memory = torch.are_deterministic_algorithms_enabled(), _any(torch.utils.deterministic)
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = True  # what was not loaded is not there by chance
    try:
        made = made.to_empty(device="cpu")
    finally:
        torch.use_deterministic_algorithms(was)
        memory.fill_uninitialized_memory = filled
    made.load_state_dict(source.state_dict())
    for g, s in zip(generators(made), generators(source), strict=True):
        g.set_state(s.get_state())
    _twins(case, source, made)


def copies(case: Case) -> None:
    """deepcopy, pickle, and torch.save of the whole module."""
    for name in ("deepcopy", "pickle", "torch.save"):
        source = trained(case)
        if name == "deepcopy":
            made = copy.deepcopy(source)
        elif name == "pickle":
            made = pickle.loads(pickle.dumps(source))
        else:
            file = io.BytesIO()
            torch.save(source, file)
            file.seek(0)
            made = torch.load(file, weights_only=False)
        try:
            _twins(case, source, made)
        except AssertionError as e:
            raise AssertionError(f"{name}: {e}") from None


def _twins(case: Case, source: nn.Module, made: nn.Module) -> None:
    x = make_input(case, 91)
    with torch.no_grad():
        torch.manual_seed(4)
        want = call(case, clone(source).eval(), x)
        torch.manual_seed(4)
        got = call(case, clone(made).eval(), x)
    same_result(got, want, "evaluation")
    torch.manual_seed(4)
    same_future(case, source, made, (optimiser_of(source), optimiser_of(made)), steps=1)
