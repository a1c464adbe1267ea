"""Forward mode: how the tangents of dual tensors pass through the ops, for `torch.func.jvp`, `jacfwd` and
`torch.autograd.forward_ad`.

`torch.library.register_autograd` knows reverse mode alone: without a look at the tangents first, they would be lost
in silence. The rules are plain torch and our own ops, so that they can be differentiated and mapped like any formula.
They follow the gradients: a norm under the floor is a constant, distance 0 and index -1 have tangent 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._backward import BLOCK_BYTES, inverse_norms, median
from ._codes import METRICS

_ops = torch.ops.vecbank
_LEVEL = 0  # torch has but one level of dual tensors; `torch.func` nests its own within it
# `torch.func.jvp` in a compiled program enters the level without a word to `forward_ad`.
_transformed = torch._C._are_functorch_transforms_active
Tangents: TypeAlias = Sequence[Any]  # one for each argument of the op: its tangent, or None


def _sum(terms: list[Tensor], like: Tensor) -> Tensor:
    return sum(terms[1:], start=terms[0]).to(like.dtype)


def _units(rows: Tensor, tangent: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The rows over their norms, and how that changes: the part of the tangent across the row, over the norm."""
    inverse, alive = inverse_norms(rows)
    unit = rows * inverse
    if tangent is None:
        return unit, None
    return unit, (tangent - unit * ((tangent * unit).sum(-1, keepdim=True) * alive)) * inverse


def _wide(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.to(dtype) for t in tensors]


def _flat(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.reshape(-1, t.shape[-1]) for t in tensors]


def _split(tangent: Tensor | None, step: int, dim: int = 0) -> Iterable[Tensor | None]:
    """As `Tensor.split` (slicing would make aliases, which the older vmap does not know); None for ever for None."""
    return itertools.repeat(None) if tangent is None else tangent.split(step, dim)


def _project(
    tangents: Tangents,
    out: Tensor,
    x: Tensor,
    bank: Tensor,
    pack: Tensor | None,
    metric: int,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    if metric == METRICS["l1"]:
        return _all_pairs(tangents, out, x, bank, metric)
    if metric >= METRICS["l2"]:
        return _distances(tangents, out, x, bank, metric)
    sums = torch.float64 if bank.dtype == torch.float64 else torch.float32
    x, bank, tx, tb = _wide(sums, x, bank, *tangents[:2])
    if metric == METRICS["cosine"]:
        (x, tx), (bank, tb) = _units(x, tx), _units(bank, tb)
    pairs = [(a, b) for a, b in ((tx, bank), (x, tb)) if a is not None and b is not None]
    return _sum([_ops.project(a, b, None, METRICS["dot"], sums) for a, b in pairs], out)


def _exact_scores(
    tangents: Tangents,
    out: Tensor,
    x: Tensor,
    bank: Tensor,
    metric: int,
    out_dtype: torch.dtype | None = None,
    indices: Tensor | None = None,
) -> Tensor:
    if indices is None:
        return _project(tangents, out, x, bank, None, metric)
    return _chosen(tangents, out, x, bank, indices, metric, None)


def _distances(tangents: Tangents, out: Tensor, x: Tensor, bank: Tensor, metric: int) -> Tensor:
    """(x - b).(x' - b') for all pairs, multiplied out about a point within the bank, in float64: what cancels there
    is far below float32's rounding.
    """
    x, bank, tx, tb = _wide(torch.float64, x, bank, *tangents[:2])
    shape = out.shape
    if out.numel() == 0 or bank.shape[-1] == 0:
        return torch.zeros_like(out)
    if bank.dim() == 2:
        x, tx = _flat(x, tx)
    some = bank.detach()[..., :: max(1, bank.shape[-2] // 64), :]
    shift = median(some.reshape(-1, some.shape[-1]))  # a few rows far away, or of NaN, do not move it
    x, bank = x - shift, bank - shift
    of_bank = None if tb is None else (bank * tb).sum(-1).unsqueeze(-2)
    step = max(16, BLOCK_BYTES // (8 * bank.shape[-2] * (bank.shape[0] if bank.dim() == 3 else 1)))
    pieces = []
    for a, ta in zip(x.split(step, -2), _split(tx, step, -2), strict=False):
        terms = [] if of_bank is None else [of_bank, -(a @ tb.mT)]
        if ta is not None:
            terms += [(a * ta).sum(-1, keepdim=True), -(ta @ bank.mT)]
        along = sum(terms[1:], start=terms[0])
        if metric == METRICS["l2"]:
            score = torch.cdist(a, bank, compute_mode="donot_use_mm_for_euclid_dist")
            same = score == 0  # not so where it is NaN
            along = torch.where(same, 0.0, along / torch.where(same, 1.0, score))
        else:
            along = along * 2
        pieces.append(along.to(out.dtype))
    return torch.cat(pieces, -2).reshape(shape)


def _all_pairs(tangents: Tangents, out: Tensor, x: Tensor, bank: Tensor, metric: int) -> Tensor:
    """Of all pairs by direct differences, on blocks of rows."""
    x, bank, tx, tb = _wide(torch.float64, x, bank, *tangents[:2])
    if out.numel() == 0 or bank.shape[-1] == 0:
        return torch.zeros_like(out)
    if bank.dim() == 2:
        x, tx = _flat(x, tx)
    step, pieces = max(1, BLOCK_BYTES // (8 * bank.numel())), []
    bank, tb = bank.unsqueeze(-3), None if tb is None else tb.unsqueeze(-3)
    for a, ta in zip(x.split(step, -2), _split(tx, step, -2), strict=False):
        ta = None if ta is None else ta.unsqueeze(-2)
        pieces.append(_pair_terms(metric, a.unsqueeze(-2), bank, ta, tb)[0].to(out.dtype))
    return torch.cat(pieces, -2).reshape(out.shape)


def _chosen(
    tangents: Tangents, values: Tensor, x: Tensor, bank: Tensor, indices: Tensor, metric: int, tbias: Tensor | None
) -> Tensor:
    """Of the chosen pairs alone, by direct differences, on blocks of rows."""
    tx, tb = tangents[:2]
    k, d, m = indices.shape[-1], x.shape[-1], bank.shape[-2]
    if values.numel() == 0 or m * d == 0:
        return torch.zeros_like(values)
    missing = (indices < 0).reshape(-1, k)
    place = indices.clamp_min(0)
    if bank.dim() == 3:
        place = place + torch.arange(0, bank.shape[0] * m, m, device=bank.device).reshape(-1, 1, 1)
    place = place.reshape(-1, k)
    (x, tx), (bank, tb) = _flat(x, tx), _flat(bank, tb)
    step, pieces = max(1, BLOCK_BYTES // (8 * k * d)), []
    for at, absent, own, change in zip(
        place.split(step), missing.split(step), x.split(step), _split(tx, step), strict=False
    ):
        a, ta = _wide(torch.float64, *(None if t is None else t.unsqueeze(-2) for t in (own, change)))
        b, tb_rows = _wide(torch.float64, *(None if t is None else t[at] for t in (bank, tb)))
        terms = _pair_terms(metric, a, b, ta, tb_rows)
        if tbias is not None:
            terms.append(tbias.double()[at])
        pieces.append(torch.where(absent, 0.0, sum(terms[1:], start=terms[0])))
    return torch.cat(pieces).reshape(values.shape).to(values.dtype)


def _pair_terms(metric: int, x: Tensor, b: Tensor, tx: Tensor | None, tb: Tensor | None) -> list[Tensor]:
    if tx is None and tb is None:
        return []
    if metric >= METRICS["l2"]:
        apart = x - b
        change = tx - tb if tx is not None and tb is not None else tx if tx is not None else -tb  # type: ignore[operator]
        if metric == METRICS["l1"]:
            return [(apart.sign() * change).sum(-1)]
        along = (apart * change).sum(-1)
        if metric == METRICS["sqeuclidean"]:
            return [along * 2]
        squares = apart.square().sum(-1)
        same = squares == 0
        return [torch.where(same, 0.0, along / torch.where(same, 1.0, squares).sqrt())]
    if metric == METRICS["cosine"]:
        (x, tx), (b, tb) = _units(x, tx), _units(b, tb)
    return [(p * q).sum(-1) for p, q in ((tx, b), (x, tb)) if p is not None and q is not None]


def _topk(
    tangents: Tangents,
    out: tuple[Tensor, Tensor],
    x: Tensor,
    bank: Tensor,
    pack: Tensor | None,
    k: int,
    metric: int,
    mask: Tensor | None = None,
    exact: bool = True,
    bias: Tensor | None = None,
) -> Tensor:
    return _chosen(tangents, out[0], x, bank, out[1], metric, tangents[7] if len(tangents) > 7 else None)


def _nearest(
    tangents: Tangents,
    out: tuple[Tensor, Tensor],
    x: Tensor,
    bank: Tensor,
    pack: Tensor | None,
    metric: int,
    exact: bool = True,
) -> Tensor:
    return _chosen(tangents, out[0], x, bank, out[1].unsqueeze(-1), metric, None)


def _linear(name: str, *places: int) -> Callable[..., Tensor]:
    """Linear in the arguments at `places`: the op itself with each tangent in turn in its argument's place."""

    def rule(tangents: Tangents, out: Tensor, *args: Any) -> Tensor:
        op = getattr(_ops, name)
        return _sum([op(*args[:i], tangents[i], *args[i + 1 :]) for i in places if tangents[i] is not None], out)

    return rule


_RULES: dict[str, Callable[..., Tensor]] = {
    "project": _project,
    "exact_scores": _exact_scores,
    "topk": _topk,
    "nearest": _nearest,
    "lookup": _linear("lookup", 1, 2),
    "lookup_dot": _linear("lookup_dot", 0, 2),
    "segment_sum": _linear("segment_sum", 0, 3),
}


def _unpack(arg: Any) -> tuple[Any, Any]:
    """An argument and its tangent; a list of tensors has one (a list) if any of them has."""
    if isinstance(arg, Tensor) and arg.is_floating_point():
        return tuple(forward_ad.unpack_dual(arg, level=_LEVEL))
    if isinstance(arg, (list, tuple)):
        pairs = [_unpack(a) for a in arg]
        tangents = [t for _, t in pairs]
        return [p for p, _ in pairs], tangents if any(t is not None for t in tangents) else None
    return arg, None


def _refuse_reverse(name: str) -> Callable[..., None]:
    def hook(grads: Any) -> None:
        if forward_ad._current_level >= 0:
            raise NotImplementedError(
                f"vecbank: {name} has no forward mode of its gradient; call backward after the level of dual tensors"
            )

    return hook


def _no_forward(operation: str) -> NotImplementedError:
    return NotImplementedError(
        f"vecbank: {operation} has no forward-mode derivative; use reverse mode, or detach its inputs"
    )


def refuse_tangents(operation: str, *inputs: Any) -> None:
    """For an operation without forward mode: an error that names it where an input has a tangent, which would be lost
    or refused without a name.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0 or not torch._C._is_fwd_grad_enabled():
        return
    if any(_unpack(a)[1] is not None for a in inputs):
        raise _no_forward(operation)


class Function(torch.autograd.Function):
    """An autograd function that refuses tangents by the name of its operation. It does so before the call, as the
    compiler does not take a function with a `jvp` of its own.
    """

    operation: ClassVar[str]

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        refuse_tangents(cls.operation, *args)
        return super().apply(*args, **kwargs)


class Registrar(torch.library.Library):
    """What `torch.library.register_autograd` registers with: its kernels, behind a look at the tangents."""

    def impl(self, op_name: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        op, rule = getattr(_ops, op_name).default, _RULES.get(op_name)

        def forward(args: tuple[Any, ...]) -> Any:
            """None where no argument has a tangent."""
            pairs = [_unpack(a) for a in args]
            if all(t is None for _, t in pairs):
                return None
            if rule is None:
                raise _no_forward(op_name)
            primals = [p for p, _ in pairs]
            out = op(*primals)
            first = out if isinstance(out, Tensor) else out[0]
            # The graph holds no tangents: a gradient worked out within this level would lack its own.
            if first.grad_fn is not None:
                first.grad_fn.register_prehook(_refuse_reverse(op_name))
            tangent = rule([t for _, t in pairs], out, *primals)
            dual = forward_ad.make_dual(first, tangent, level=_LEVEL)
            return dual if isinstance(out, Tensor) else (dual, *out[1:])

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            if (forward_ad._current_level >= 0 or _transformed()) and torch._C._is_fwd_grad_enabled():
                out = forward(args)
                if out is not None:
                    return out
            return fn(keyset, *args, **kwargs)

        super().impl(op_name, kernel, *args, **kwargs)
