"""What every module must hold under torch's own machinery: export, second derivatives, forward-mode derivatives."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from net_core import Case, Result, call, cast, clone, make_input, same_result, total, trained
from torch import Tensor, nn


class _Called(nn.Module):
    """A module whose forward is the case's call, as a tuple of tensors."""

    def __init__(self, case: Case, module: nn.Module) -> None:
        super().__init__()
        self.inner, self.case = module, case

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.case.entry.call(self.inner, x).tensors())


# ---- 5. export ----------------------------------------------------------------------------------------------------


def export(case: Case) -> None:
    """torch.export, saved and loaded, gives what the module gives in evaluation."""
    arguments = case.arguments
    as_long_as_needed = arguments.get("activation", "topk") != "topk" and "max_k" not in arguments  # not to be traced
    if case.dtype == "autocast" or as_long_as_needed:
        return
    module = trained(case).eval()
    x = make_input(case, 100)
    for grad in (True,) if case.entry.name.startswith("Grouped") else (True, False):
        note = f"exported with grad {'enabled' if grad else 'disabled'}"
        with warnings.catch_warnings(), torch.set_grad_enabled(grad):
            warnings.simplefilter("ignore")
            try:
                program = torch.export.export(_Called(case, clone(module)), (x,))
                file = io.BytesIO()
                torch.export.save(program, file)
                file.seek(0)
                loaded = torch.export.load(file).module()
            except Exception as e:
                raise AssertionError(f"{note}: {type(e).__name__}: {str(e).strip().splitlines()[0][:160]}") from None
        with torch.no_grad():
            torch.manual_seed(5)
            got = loaded(make_input(case, 101))
            torch.manual_seed(5)
            want = call(case, module, make_input(case, 101))
        same_result(Result(None, losses=list(got)), Result(None, losses=want.tensors()), note, 1e-6)


# ---- 8. second derivatives ----------------------------------------------------------------------------------------

WORDS = (RuntimeError, NotImplementedError)


def _losses(case: Case, module: nn.Module, x: Tensor) -> Tensor | None:
    """A combination of what is differentiable by rights: the losses, or the output where there are none."""
    torch.manual_seed(6)
    with cast(case):
        result = case.entry.call(module, x)
    losses = [t for t in result.losses if t.requires_grad]
    if result.losses and not losses:
        return None
    kept = Result(None if losses else result.output, losses=losses)
    found = total(case, kept)
    return found if found is None or losses else found.square()


def double_backward(case: Case) -> None:
    """A second derivative is right (by finite differences of the first), or refused with words."""
    if case.dtype != "float32":
        return
    case = replace(case, options={**case.options, **case.entry.curved_options})
    module, x = trained(case).double(), make_input(case, 110)
    x = x if case.entry.ids else x.double()
    bent = case.entry.bent & {*case.options, *(v for v in case.options.values() if isinstance(v, str))}
    where = "" if bent else case.entry.curved
    _second(case, module, x, "input" if not case.entry.ids else "parameters", compared=False)
    if where:
        _second(case, module, x, where, compared=True)


def _dot(ones: Sequence[Tensor | None], others: Sequence[Tensor]) -> Tensor:
    """The sum of all products; nothing counts as zero."""
    parts = [(a.double() * b).sum() for a, b in zip(ones, others, strict=True) if a is not None]
    return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64)


def _second(case: Case, module: nn.Module, x: Tensor, where: str, compared: bool) -> None:
    generator = torch.Generator().manual_seed(9)

    def first(shift: float, keep: bool = False) -> tuple[Tensor | None, list[Tensor]]:
        """Sum of the gradient along a direction, at a point moved by `shift` along another."""
        own = clone(module)
        parameters = [p for p in own.parameters() if p.requires_grad]
        point = x.clone().requires_grad_() if where == "input" else x
        moved = [point] if where == "input" else parameters
        generator.manual_seed(9)
        along = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in moved]
        by = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in moved]
        with torch.no_grad():
            for t, u in zip(moved, along, strict=True):
                t.add_(shift * u)
        loss = _losses(case, own, point)
        if loss is None:
            return None, []
        grads = torch.autograd.grad(loss, moved, create_graph=keep, allow_unused=True)
        value = _dot(grads, by)
        if not keep:
            return value.detach(), []
        if not value.requires_grad:
            return torch.zeros(()), []
        value.backward()  # not autograd.grad, which walks past what refuses if nothing behind it leads to `moved`
        second = [t.grad for t in moved]
        return _dot(second, along), [h for h in second if h is not None]

    try:
        got, parts = first(0.0, keep=True)
    except WORDS as e:
        assert len(str(e)) > 10 and "INTERNAL ASSERT" not in str(e), f"refused without words: {e}"
        return
    if got is None:
        return
    assert all(bool(h.isfinite().all()) for h in parts), f"second derivative along the {where} is not finite"
    if not compared:
        return
    step = 1e-6
    high, low = first(step)[0], first(-step)[0]
    assert high is not None and low is not None
    want = (high - low) / (2 * step)
    gap = abs(float(got) - float(want))
    assert gap <= 1e-4 * max(1.0, abs(float(want))), (
        f"along the {where}: {float(got):.6g}, differences say {float(want):.6g}"
    )


# ---- 10. forward mode ---------------------------------------------------------------------------------------------


def forward_mode(case: Case) -> None:
    """A tangent agrees with the gradient, <w, Jv> = <J'w, v>, or is refused; it is not zero in silence."""
    if case.dtype != "float32" or case.entry.ids:
        return
    module, x = trained(case).eval(), make_input(case, 120)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    def floats(point: Tensor) -> list[Tensor]:
        torch.manual_seed(6)
        result = case.entry.call(clone(module), point)
        return [t for t in (result.output, *result.losses) if t is not None]

    weights = [torch.randn(t.shape, generator=torch.Generator().manual_seed(2)) for t in floats(x)]
    point = x.clone().requires_grad_()
    try:
        wanted = _reverse(floats, point, weights, v)
    except WORDS:
        return
    try:
        tangents = _tangents(floats, x, v)
    except WORDS as e:
        assert "INTERNAL ASSERT" not in str(e), f"refused without words: {e}"
        return
    for i, (t, w, want) in enumerate(zip(tangents, weights, wanted, strict=True)):
        got = float((t * w).sum())
        assert abs(got - want) <= 1e-3 * max(1.0, abs(want)), f"result {i}: <w, Jv> = {got:.6g}, <J'w, v> = {want:.6g}"


def _reverse(floats: Callable[[Tensor], list[Tensor]], point: Tensor, weights: list[Tensor], v: Tensor) -> list[float]:
    found = []
    for i, w in enumerate(weights):
        t = floats(point)[i]
        if not t.requires_grad:
            found.append(0.0)
            continue
        grad = torch.autograd.grad((t * w).sum(), point, allow_unused=True)[0]
        found.append(0.0 if grad is None else float((grad * v).sum()))
    return found


def _tangents(floats: Callable[[Tensor], list[Tensor]], x: Tensor, v: Tensor) -> list[Tensor]:
    with torch.autograd.forward_ad.dual_level():
        outputs = floats(torch.autograd.forward_ad.make_dual(x, v))
        both = [torch.autograd.forward_ad.unpack_dual(t) for t in outputs]
        return [torch.zeros_like(p) if t is None else t for p, t in both]
