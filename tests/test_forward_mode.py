"""Forward mode: tangents that are right, by every way to ask for them, or a refusal that names the op."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import METRICS
from helpers import CODE, all_ops, gauss, op
from op_samples import samples
from torch import Tensor
from torch.autograd import forward_ad, gradcheck

import vecbank
from vecbank import _mapped, _reference_roots, _sparse, maps, reference
from vecbank._ops import tangents
from vecbank.nn import LatentQuantize, _bits, _code_entropy, _estimators, binary_mapper
from vecbank.nn._estimators import rotate_to, scale_gradient
from vecbank.nn._vq import ops as _vq_ops
from vecbank.nn._vq import score_terms as _score_terms

F64 = torch.float64
CODES = torch.tensor([[0, 3, 3], [-1, 1, 3], [-1, -1, -1], [2, 0, -1]])
MASK = torch.arange(36).reshape(4, 9) % 4 == 0  # two or three allowed in each row: the third may be missing
RIGHT = {"project", "exact_scores", "topk", "nearest", "lookup", "lookup_dot", "segment_sum"}

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def _functions() -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Everything that has a tangent, with what it is a function of, in float64."""
    x, bank, bias, weights = (gauss(*shape, dtype=F64) for shape in ((4, 5), (9, 5), (9,), (4, 3)))
    batched = gauss(2, 3, 5, dtype=F64), gauss(2, 4, 5, dtype=F64)
    cases: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {}
    for m in METRICS:
        cases[f"project {m}"] = (lambda a, b, m=m: vecbank.project(a, b, m), (x, bank))
        cases[f"project batched {m}"] = (lambda a, b, m=m: vecbank.project(a, b, m), batched)
        cases[f"project a vector {m}"] = (lambda a, b, m=m: vecbank.project(a, b, m), (x[0], bank))
        cases[f"topk {m}"] = (lambda a, b, m=m: vecbank.topk(a, b, 3, m).values, (x, bank))
        cases[f"topk batched {m}"] = (lambda a, b, m=m: vecbank.topk(a, b, 3, m).values, batched)
        cases[f"topk masked {m}"] = (lambda a, b, m=m: _found(vecbank.topk(a, b, 3, m, allowed=MASK)), (x, bank))
        cases[f"nearest {m}"] = (lambda a, b, m=m: vecbank.nearest(a, b, m).values, (x, bank))
        cases[f"nearest batched {m}"] = (lambda a, b, m=m: vecbank.nearest(a, b, m).values, batched)
    cases["topk biased"] = (lambda a, b, c: vecbank.topk(a, b, 3, bias=c).values, (x, bank, bias))
    for r in ("none", "sum", "mean"):
        cases[f"lookup {r}"] = (lambda b, r=r: vecbank.lookup(CODES, b, reduce=r), (bank,))
        cases[f"lookup weighted {r}"] = (lambda b, w, r=r: vecbank.lookup(CODES, b, w, reduce=r), (bank, weights))
    cases["segment_sum"] = (lambda a: vecbank.segment_sum(a, CODES[:, 0], 5), (x,))
    cases["segment_sum weighted"] = (lambda a, w: vecbank.segment_sum(a, CODES, 5, w), (x, weights))
    cases["lookup_dot"] = (lambda a, b: op("lookup_dot")(a, CODES, b), (x, bank))
    return cases


def _found(top: vecbank.TopK) -> Tensor:
    return top.values.masked_fill(top.indices < 0, 0)


CASES = _functions()


def _jvp(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output's tangent for random tangents of the inputs, and those."""
    tangents = tuple(gauss(*t.shape, dtype=t.dtype, seed=7 + i).to(t.device) for i, t in enumerate(inputs))
    return torch.func.jvp(function, inputs, tangents)[1], tangents


@pytest.mark.parametrize("name", CASES)
def test_tangents(name: str) -> None:
    """Against differences of values, in all arguments at once and in each alone."""
    function, inputs = CASES[name]
    options = {"check_forward_ad": True, "check_backward_ad": False, "check_undefined_grad": False}
    assert gradcheck(function, tuple(t.clone().requires_grad_() for t in inputs), **options)
    for i, t in enumerate(inputs):
        assert gradcheck(
            lambda a, i=i: function(*inputs[:i], a, *inputs[i + 1 :]), (t.clone().requires_grad_(),), **options
        )


@pytest.mark.parametrize("name", CASES)
def test_by_every_way(name: str) -> None:
    """`jacfwd`, dual tensors, the older vmap of them: one Jacobian, that of reverse mode."""
    function, inputs = CASES[name]
    x, rest = inputs[0], inputs[1:]

    def one(a: Tensor) -> Tensor:
        return function(a, *rest)

    if name == "lookup_dot":  # which has no reverse mode
        want = torch.stack([torch.func.jvp(one, (x,), (t.view_as(x),))[1] for t in torch.eye(x.numel(), dtype=F64)], -1)
        want = want.reshape(*want.shape[:-1], *x.shape)
    else:
        want = torch.autograd.functional.jacobian(one, x)
    assert want.abs().max() > 0
    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(torch.func.jacfwd(one)(x), want, **close)
    other = torch.autograd.functional.jacobian(one, x, strategy="forward-mode", vectorize=True)
    torch.testing.assert_close(other, want, **close)
    tangent = gauss(*x.shape, dtype=F64, seed=3)
    with forward_ad.dual_level():
        out = forward_ad.unpack_dual(one(forward_ad.make_dual(x, tangent))).tangent
    along = (want * tangent).flatten(-x.dim()).sum(-1)
    torch.testing.assert_close(out, along, **close)


@pytest.mark.parametrize("name", ["project l2", "topk biased", "lookup weighted mean", "segment_sum"])
def test_compiled(name: str) -> None:
    """The compiler enters the level of dual tensors by another door."""
    function, inputs = CASES[name]
    want, tangents = _jvp(function, inputs)
    assert want.abs().max() > 0
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *both: torch.func.jvp(function, both[: len(inputs)], both[len(inputs) :])[1],
        fullgraph=True,
        backend="aot_eager",
    )
    torch.testing.assert_close(compiled(*inputs, *tangents), want)
    torch._dynamo.reset()


@pytest.mark.parametrize("metric", METRICS)
def test_under_vmap(metric: str) -> None:
    x, bank, tangent = gauss(3, 4, 5, dtype=F64), gauss(6, 5, dtype=F64), gauss(3, 4, 5, dtype=F64, seed=1)
    for function in (
        lambda a: vecbank.project(a, bank, metric),
        lambda a: vecbank.topk(a, bank, 2, metric).values,
    ):
        want = torch.func.jvp(function, (x,), (tangent,))[1]
        assert want.abs().max() > 0
        got = torch.vmap(lambda a, t, f=function: torch.func.jvp(f, (a,), (t,))[1])(x, tangent)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.func.jvp(torch.vmap(function), (x,), (tangent,))[1], want)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype: torch.dtype, metric: str, device: str) -> None:
    for bank_dtype in {dtype, torch.float32}:
        x, bank = gauss(9, 20, dtype=dtype).to(device), gauss(12, 20, seed=1, dtype=bank_dtype).to(device)
        chosen = vecbank.topk(x, bank, 4, metric).indices.cpu()
        functions: list[Callable[..., Tensor]] = [
            lambda a, b: vecbank.project(a, b, metric),
            lambda a, b: vecbank.topk(a, b, 4, metric).values,
        ]
        for function in functions:
            got, (tx, tb) = _jvp(function, (x, bank))
            want = _differences(lambda a, b: reference.project(a, b, metric), (x, bank), (tx, tb))
            want = want if function is functions[0] else want.gather(1, chosen)
            assert got.dtype == function(x, bank).dtype and got.device == x.device
            tolerance = 8 * torch.finfo(got.dtype).eps * want.abs().max().item() + 1e-6
            torch.testing.assert_close(got.cpu().double(), want, rtol=0, atol=tolerance)


def _differences(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], tangents: tuple[Tensor, ...], step: float = 1e-6
) -> Tensor:
    ends = [
        function(*(t.cpu().double() + s * v.cpu().double() for t, v in zip(inputs, tangents, strict=True)))
        for s in (step, -step)
    ]
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_product_with_the_gradient(dtype: torch.dtype, metric: str, device: str) -> None:
    """<tangent out, v> is <tangents in, gradients for v>, over several blocks of rows, with a far row."""
    x, bank = gauss(700, 33, dtype=dtype), gauss(2500, 33, dtype=dtype, seed=1)
    bank[7] *= 1e4
    x, bank = x.to(device).requires_grad_(), bank.to(device).requires_grad_()
    for function in (
        lambda a, b: vecbank.project(a, b, metric),
        lambda a, b: vecbank.topk(a, b, 60, metric).values,
        lambda a, b: vecbank.nearest(a, b, metric).values,
    ):
        out = function(x, bank)
        upstream = gauss(*out.shape, dtype=dtype, seed=2).to(device)
        grads = torch.autograd.grad(out, (x, bank), upstream)
        got, tangents = _jvp(function, (x.detach(), bank.detach()))
        left = (got.double() * upstream.double()).sum()
        right = sum((g.double() * t.double()).sum() for g, t in zip(grads, tangents, strict=True))
        size = (got.double() * upstream.double()).norm()
        assert size > 0 and (left - right).abs() <= size * (1e-3 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("metric", METRICS[2:])
def test_distance_zero_has_tangent_zero(metric: str, device: str) -> None:
    bank = gauss(5, 30).to(device)
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda a: vecbank.topk(a, bank, 1, metric).values,
        lambda a: vecbank.nearest(a, bank, metric).values,
        lambda a: vecbank.project(a, bank, metric).diagonal(),
    ]
    for function in functions:
        got, _ = _jvp(function, (bank.clone(),))
        # `project` multiplies the square out, in float64
        assert got.abs().max() <= (1e-12 if function is functions[2] and metric == "sqeuclidean" else 0)


def test_short_norm_is_a_constant(device: str) -> None:
    """Below 1e-8 the cosine is linear in the vector: x.b / (1e-8 |b|)."""
    x = torch.tensor([[3e-10, 4e-10], [0.0, 0.0]], dtype=F64, device=device)
    bank = torch.tensor([[3.0, 4.0]], dtype=F64, device=device)
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda a: vecbank.project(a, bank, "cosine"),
        lambda a: vecbank.nearest(a, bank, "cosine").values.unsqueeze(-1),
    ]
    for function in functions:
        got = torch.func.jvp(function, (x,), (torch.tensor([[5.0, 0.0], [0.0, 5.0]], dtype=F64, device=device),))[1]
        torch.testing.assert_close(got.cpu(), torch.tensor([[3e8], [4e8]], dtype=F64))


@pytest.mark.parametrize("metric", METRICS)
def test_missing_neighbours_have_tangent_zero(metric: str, device: str) -> None:
    bank = gauss(6, 4).to(device)
    bank[5] = torch.nan
    mask = torch.tensor([[True] * 2 + [False] * 4, [False] * 6], device=device)
    got, _ = _jvp(lambda a, b: vecbank.topk(a, b, 4, metric, allowed=mask).values, (gauss(2, 4).to(device), bank))
    assert got[0, :2].abs().min() > 0 and not got[0, 2:].any() and not got[1].any()
    got, _ = _jvp(lambda a, b: vecbank.nearest(a, b, metric).values, (gauss(2, 4).to(device), bank[5:]))
    assert not got.any()


@pytest.mark.parametrize("metric", METRICS)
def test_empty_axes(metric: str, device: str) -> None:
    for n, m, d in ((0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)):
        got, _ = _jvp(
            lambda a, b: vecbank.project(a, b, metric), (gauss(n, d).to(device), gauss(m, d, seed=1).to(device))
        )
        assert got.shape == (n, m) and not got.any()
        got, _ = _jvp(
            lambda a, b: vecbank.nearest(a, b, metric).values, (gauss(n, d).to(device), gauss(m, d, seed=1).to(device))
        )
        assert got.shape == (n,) and not got.any()


OF_BITS = {name for name in all_ops() if name.startswith("hamming")}  # which have no tangents
NO_FLOATS = {"repack_", "sparse_invert"} | OF_BITS


@pytest.mark.parametrize("name", sorted(set(all_ops()) - RIGHT - NO_FLOATS))
def test_the_others_refuse_by_name(name: str) -> None:
    """For a tangent of each argument alone; and what has tangents does not refuse."""
    row = samples()[name][0]
    seen = 0
    with forward_ad.dual_level():
        for i, argument in enumerate(row):
            books = isinstance(argument, list) and len(argument) > 0
            first = argument[0] if books else argument
            if not (isinstance(first, Tensor) and first.is_floating_point()):
                continue
            dual = forward_ad.make_dual(first.detach(), torch.ones_like(first))
            with pytest.raises(NotImplementedError, match=f"vecbank: {name} has no forward-mode derivative"):
                op(name)(*row[:i], [dual, *argument[1:]] if books else dual, *row[i + 1 :])
            seen += 1
        op(name)(*(a.detach() if isinstance(a, Tensor) else a for a in row))  # without tangents it is as ever
    assert seen > 0


def _custom_functions() -> dict[type, Callable[[Tensor], Any]]:
    """Each autograd function of the package, called as the package does, as a function of x (4, 5)."""
    bank, codes = gauss(6, 5, seed=1), torch.tensor([0, 2, 2, 5])
    pairs = codes.unsqueeze(1)
    return {
        _estimators._StraightThrough: lambda x: _estimators.straight_through(x, bank[codes]),
        _estimators._Rotate: lambda x: _estimators.rotate_to(x, bank[codes]),
        _estimators._Once: lambda x: _estimators.once(x, x),
        _estimators._ScaleGradient: lambda x: _estimators.scale_gradient(x, 0.5),
        _estimators._KeepAlive: lambda x: _estimators.keep_alive(x, None),
        _estimators._CodebookLoss: lambda x: _estimators.codebook_loss(
            x, bank, bank[codes], torch.ones(6), bank, torch.ones(()), 0.25, 20
        ),
        _estimators._Round: _estimators.round_through,
        _estimators._Sign: lambda x: _estimators.sign_through(x, 1.0),
        _bits._BitEntropy: lambda x: _bits.bit_entropy(x, torch.ones(4), 1e-3),
        _code_entropy._Entropies: lambda x: _code_entropy.code_entropies(x.unsqueeze(1), torch.ones(4))[0],
        _score_terms._ScoreLoss: lambda x: _score_terms.cross_entropy(x, bank, "l2", codes),
        _vq_ops._Train: lambda x: _vq_ops.train(x, bank, "l2"),
        _vq_ops._Rows: lambda x: _vq_ops.gather_rows(torch.tensor([0, 2, 2]), x),
        binary_mapper._OneHot: lambda x: binary_mapper._OneHot.apply(x, codes, True),
        _sparse.Pairs: lambda x: _sparse.Pairs.apply(x, bank, None, pairs, None),
        _sparse.Jump: lambda x: _sparse.Jump.apply(x, torch.zeros(5), 0.1),
        _mapped._Angles: lambda x: _mapped._Angles.apply(x, bank, vecbank.Angular(), vecbank.project),
        maps._Logarithm: lambda x: maps._Logarithm.apply(x.T @ x + torch.eye(5)),
        vecbank.codes._straight_through._StraightThrough: lambda x: vecbank.codes.straight_through(x, bank[codes]),
    }


CUSTOM = _custom_functions()
PASSED_ON = {_estimators._StraightThrough}  # its tangent is its argument's


@pytest.mark.parametrize(
    "function", [f for f in CUSTOM if f not in PASSED_ON], ids=lambda f: f"{f.__module__}.{f.__name__}"
)
def test_custom_functions_refuse_by_name(function: Any) -> None:
    """A leaf or not, by dual tensors or `jvp`, under vmap: torch's own words would not say whose function it was."""
    x, call = gauss(4, 5), CUSTOM[function]
    match = f"vecbank: {function.operation} has no forward-mode derivative"
    for leaf in (x, x.clone().requires_grad_()):
        with forward_ad.dual_level():
            with pytest.raises(NotImplementedError, match=match):
                call(forward_ad.make_dual(leaf, torch.ones_like(x)))
            call(leaf)
    with pytest.raises(NotImplementedError, match=match):
        torch.func.jvp(call, (x,), (x,))
    with pytest.raises(NotImplementedError, match=match):
        torch.vmap(lambda t: torch.func.jvp(call, (x,), (t,))[1])(torch.stack([x, x]))


def test_every_custom_function_is_listed() -> None:
    def below(kind: type) -> set[type]:
        return {kind}.union(*(below(sub) for sub in kind.__subclasses__()))

    ours = {f for f in below(torch.autograd.Function) if f.__module__.startswith("vecbank")}
    ours -= {f for f in ours if f.__module__ == "vecbank._ops.recording"}  # of ops, which the registrar stands before
    assert ours - {tangents.Function, _reference_roots._Sqrt, _reference_roots._TwiceAsinhRoot} == set(CUSTOM)


@pytest.mark.parametrize("metric", METRICS)
def test_reference(metric: str) -> None:
    inputs = tuple(gauss(*shape, dtype=F64).requires_grad_() for shape in ((4, 5), (9, 5)))
    options = {"check_forward_ad": True, "check_backward_ad": False, "check_undefined_grad": False}
    assert gradcheck(lambda a, b: reference.project(a, b, metric), inputs, **options)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: vecbank.nn.VectorQuantize(dim=8, codebook_size=16),
        lambda: vecbank.nn.VectorQuantize(dim=8, codebook_size=16, rotation_trick=True),
        lambda: vecbank.nn.ResidualVQ(dim=8, codebook_size=16, num_quantizers=2),
        lambda: vecbank.nn.SimVQ(dim=8, codebook_size=16),
        lambda: vecbank.nn.FSQ(levels=[5] * 8),
        lambda: vecbank.nn.LFQ(dim=8, codebook_size=256),
        lambda: vecbank.nn.LatentQuantize(levels=[5] * 8, dim=8),
        lambda: vecbank.nn.BinaryMapper(8),
    ],
    ids=["vq", "rotation", "residual", "sim", "fsq", "lfq", "latent", "binary"],
)
def test_modules_are_right_or_refuse_by_name(make: Callable[[], torch.nn.Module], training: bool) -> None:
    """Right: the products with the gradient agree; that is 0 in some modules' evaluation."""
    module = make().train(training)
    x = gauss(10, 8) if isinstance(module, vecbank.nn.BinaryMapper) else gauss(2, 8, 8)
    v = torch.randn_like(x)

    def first(a: Tensor) -> Tensor:
        out = module(a)
        return out[0] if isinstance(out, tuple) else out

    leaf = x.clone().requires_grad_()
    out = first(leaf)
    w = torch.randn_like(out)
    back = torch.autograd.grad((out * w).sum(), leaf)[0] if out.requires_grad else torch.zeros_like(x)
    try:
        tangent = torch.func.jvp(first, (x,), (v,))[1]
    except NotImplementedError as refusal:
        assert re.match("vecbank: .* has no forward-mode derivative", str(refusal)) and out.requires_grad
    else:
        torch.testing.assert_close((tangent * w).sum(), (back * v).sum())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("metric", ["l2", "sqeuclidean"])
def test_a_row_that_is_not_finite_leaves_the_others_their_tangents(metric: str, bad: float) -> None:
    x, bank, v = gauss(4, 5, dtype=F64), gauss(9, 5, dtype=F64), gauss(4, 5, dtype=F64, seed=1)
    broken = bank.clone()
    broken[3] = bad
    others = torch.arange(9) != 3
    want = torch.func.jvp(lambda a: vecbank.project(a, bank, metric), (x,), (v,))[1]
    got = torch.func.jvp(lambda a: vecbank.project(a, broken, metric), (x,), (v,))[1]
    torch.testing.assert_close(got[:, others], want[:, others])
    x[1, 2] = float("nan")
    got = torch.func.jvp(lambda a: vecbank.project(a, bank, metric), (x,), (v,))[1]
    assert got[1].isnan().all()
    torch.testing.assert_close(got[[0, 2, 3]], want[[0, 2, 3]])


def test_a_beam_passes_tangents_on() -> None:
    x, v, books = (
        gauss(6, 4, dtype=F64),
        gauss(6, 4, dtype=F64, seed=1),
        [gauss(7, 4, dtype=F64, seed=s) for s in (2, 3)],
    )

    def both(a: Tensor) -> tuple[Tensor, Tensor]:
        found = vecbank.residual_quantize(a, books, "l2", beam=3)
        return found.quantized, found.losses

    (_, _), (tangent, losses) = torch.func.jvp(both, (x,), (v,))
    assert torch.equal(tangent, v)
    leaf = x.clone().requires_grad_()
    for s in range(2):
        (grad,) = torch.autograd.grad(both(leaf)[1][s], leaf)
        torch.testing.assert_close(losses[s], (grad * v).sum())


def test_a_parameter_may_be_dual(device: str) -> None:
    """A leaf that requires grad beside its tangent: the tangent is right and has a gradient; a gradient worked out
    within the level, which would need a tangent of its own, refuses; after it, it is right.
    """
    x, tangent = gauss(4, 5, dtype=F64).to(device), gauss(4, 5, dtype=F64, seed=1).to(device)
    bank, leaf = gauss(6, 5, dtype=F64).to(device), x.clone().requires_grad_()
    want = torch.func.jvp(lambda a: vecbank.project(a, bank), (x,), (tangent,))[1]
    plain = torch.autograd.grad(vecbank.project(leaf, bank).square().sum(), leaf)[0]
    with forward_ad.dual_level():
        out = vecbank.project(forward_ad.make_dual(leaf, tangent), bank)
        got = forward_ad.unpack_dual(out).tangent
        torch.testing.assert_close(got, want)
        with pytest.raises(NotImplementedError, match="project has no forward mode of its gradient"):
            torch.autograd.grad(out.square().sum(), leaf, retain_graph=True)
    assert got.requires_grad
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), leaf)[0], plain)

    def tangent_of(a: Tensor) -> Tensor:
        return torch.func.jvp(lambda t: vecbank.project(t, bank), (a,), (tangent,))[1]

    assert gradcheck(tangent_of, (leaf,))


@pytest.mark.parametrize("name", ["project", "topk"])
def test_second_tangent(name: str) -> None:
    """`jvp` of `jvp`: the rules are made of what has tangents itself."""
    bank, x, v = gauss(6, 5, dtype=F64), gauss(4, 5, dtype=F64), gauss(4, 5, dtype=F64, seed=1)

    def first(a: Tensor) -> Tensor:
        if name == "project":
            return torch.func.jvp(lambda t: vecbank.project(t, bank), (a,), (v,))[1]
        return torch.func.jvp(lambda t: vecbank.topk(t, bank, 2, "l2").values, (a,), (v,))[1]

    got = torch.func.jvp(first, (x,), (v,))[1]
    want = (first(x + 1e-5 * v) - first(x - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_within_a_function_with_a_rule_of_its_own() -> None:
    """torch turns forward mode off within a custom function; then an op without a rule has nothing to refuse."""

    class Chosen(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor, bank: Tensor) -> Tensor:
            return op("quantize")(x, bank, None, CODE["l2"])[0]

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            pass

        @staticmethod
        def jvp(ctx: Any, x: Tensor, bank: Tensor | None) -> Tensor:
            return x * 3

    x, bank = gauss(4, 5), gauss(6, 5)
    with forward_ad.dual_level():
        out = Chosen.apply(forward_ad.make_dual(x, x), bank)
        assert torch.equal(forward_ad.unpack_dual(out).tangent, x * 3)


@pytest.mark.parametrize("dim", [3, 5], ids=["no projection", "projection"])
def test_tangents_pass_straight_through_a_latent_quantizer(dim: int) -> None:
    torch.manual_seed(0)
    module = LatentQuantize(levels=[4, 4, 3], dim=dim).eval()
    x, v, w = gauss(2, dim, 7).requires_grad_(), gauss(2, dim, 7, seed=1), gauss(2, dim, 7, seed=2)
    (back,) = torch.autograd.grad((module(x)[0] * w).sum(), x)
    for source in (x, x.detach()):
        out, tangent = torch.func.jvp(lambda t: module(t)[0], (source,), (v,))
        assert torch.equal(out, module(x)[0])
        torch.testing.assert_close((tangent * w).sum(), (back * v).sum())


@pytest.mark.parametrize("function", [lambda t: rotate_to(t, -t), lambda t: scale_gradient(t, 0.5)])
def test_an_estimator_without_a_tangent_refuses_one(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotImplementedError):
        torch.func.jvp(function, (gauss(3, 4),), (gauss(3, 4, seed=1),))
