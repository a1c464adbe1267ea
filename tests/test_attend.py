"""`attend` and `logsumexp` against dense float64: sums, log-sum-exps and gradients are to be
at most twice as far from it as the dense form in the same dtype is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attend_cases import MASKS, SIZES, assert_as_good, dense, gradients, inputs, signed
from helpers import gauss, seeded
from torch import Tensor

import vecbank
from vecbank import Allowed, _select, reference


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("size", SIZES)
def test_softmax(size: str, mask: str, way: str) -> None:
    given, may = inputs(*SIZES[size]), MASKS[mask](*SIZES[size][:2])
    n, _, _, e = SIZES[size]
    slopes = gauss(n, e, seed=5), gauss(n, seed=6)

    def ours(x: Tensor, bank: Tensor, values: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        return vecbank.attend(x, bank, values, beta=beta, allowed=may, return_lse=True)

    def plain(*given: Tensor) -> tuple[Tensor, Tensor]:
        return dense(*given, may)

    wide = tuple(t.double() for t in given)
    truth = gradients(plain, wide, *(t.double() for t in slopes))
    if may is not None:  # torch's own gradient is NaN where a row has nothing
        truth = [t.nan_to_num(0.0, neginf=-torch.inf) for t in truth]
    assert_as_good(gradients(ours, given, *slopes), gradients(plain, given, *slopes), truth)


@pytest.mark.parametrize("metric", ["cosine", "l2", "sqeuclidean", "l1", "pearson"])
def test_metrics(metric: str, way: str) -> None:
    given = inputs(20, 90, 12, 7)
    slopes = gauss(20, 7, seed=5), gauss(20, seed=6)

    def ours(x: Tensor, bank: Tensor, values: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        return vecbank.attend(x, bank, values, metric, beta=beta, return_lse=True)

    def plain(*given: Tensor) -> tuple[Tensor, Tensor]:
        return dense(*given, metric=metric)

    wide = tuple(t.double() for t in given)
    truth = gradients(plain, wide, *(t.double() for t in slopes))
    assert_as_good(gradients(ours, given, *slopes), gradients(plain, given, *slopes), truth)


def test_every_metric_is_that_of_project() -> None:
    x, bank, values, beta = inputs(12, 50, 6, 4)
    x, bank = x * 0.1, bank * 0.1
    others = (vecbank.Mahalanobis(torch.eye(6) * 2), vecbank.Poincare(0.5))
    for metric in (*vecbank.METRICS, "pearson", "angular", *others):
        scores = vecbank.project(x, bank, metric)
        near = metric in ("dot", "cosine", "pearson")
        z = (scores if near else -scores) * beta.unsqueeze(-1)
        got = vecbank.attend(x, bank, values, metric, beta=beta)
        torch.testing.assert_close(got, z.softmax(-1) @ values, rtol=1e-5, atol=1e-6)


def test_the_reference() -> None:
    x, bank, values, beta = inputs(12, 50, 6, 4)
    x, bank = x * 0.1, bank * 0.1
    may = MASKS["none of some"](12, 50)
    for metric in vecbank.METRICS:
        want = reference.attend(x, bank, values, metric, beta=beta, allowed=may)
        got = vecbank.attend(x, bank, values, metric, beta=beta, allowed=may, return_lse=True)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype: torch.dtype, way: str) -> None:
    given = inputs(20, 90, 12, 7, dtype)
    got = vecbank.attend(*given[:3], beta=given[3].to(given[0].dtype), return_lse=True)
    assert got.output.dtype == dtype
    assert got.lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    out, lse = dense(*(t.double() for t in given))
    torch.testing.assert_close(got.output, out.to(dtype))
    torch.testing.assert_close(got.lse.double(), lse, rtol=1e-5, atol=1e-6)
    own = [t.clone().requires_grad_() for t in given]
    vecbank.attend(*own[:3], beta=own[3]).sum().backward()
    assert [t.grad.dtype for t in own if t.grad is not None] == [dtype] * 4


def test_values_of_another_dtype() -> None:
    x, bank, values, _ = inputs(20, 90, 12, 7)
    got = vecbank.attend(x.bfloat16(), bank, values.half())
    assert got.dtype == torch.float16
    torch.testing.assert_close(
        got, dense(x.bfloat16().float(), bank, values, torch.ones(20))[0].half(), rtol=2e-3, atol=2e-3
    )


@pytest.mark.parametrize("weight", ["softmax", "sparsemax", None, torch.relu])
@pytest.mark.parametrize("k", [None, 4])
@pytest.mark.parametrize("metric", ["dot", "cosine", "sqeuclidean"])
def test_gradcheck(weight: Any, k: int | None, metric: str) -> None:
    x, bank, values = (gauss(*s, seed=i, dtype=torch.float64) for i, s in enumerate([(5, 3), (9, 3), (9, 2)]))
    beta, may = torch.tensor(0.7, dtype=torch.float64), torch.rand(5, 9, generator=seeded(1)) > 0.3

    def form(*t: Tensor) -> Tensor:
        return vecbank.attend(*t[:3], metric, beta=t[3], weight=weight, k=k, allowed=may)

    assert torch.autograd.gradcheck(form, [t.requires_grad_() for t in (x, bank, values, beta)])


def sparsemax(z: Tensor) -> Tensor:
    """By bisection: the sum of max(z - t, 0) falls with t."""
    low, high = z.amax(-1, keepdim=True) - 1, z.amax(-1, keepdim=True)
    for _ in range(200):
        middle = (low + high) / 2
        above = (z - middle).clamp_min(0).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (z - low).clamp_min(0)


@pytest.mark.parametrize("beta", [0.0, 1e-4, 0.02, 0.3, 5.0])
def test_sparsemax(beta: float, way: str) -> None:
    """From weights on all rows (looked at densely) to a weight on one (found by a search)."""
    x, bank, values, _ = inputs(21, 700, 12, 5)
    want = sparsemax(beta * x.double() @ bank.double().T) @ values.double()
    torch.testing.assert_close(
        vecbank.attend(x, bank, values, beta=beta, weight="sparsemax").double(), want, rtol=1e-5, atol=2e-6
    )
    may = torch.rand(21, 700, generator=seeded(2)) > 0.5
    z = (beta * x.double() @ bank.double().T).masked_fill(~may, -1e9)
    got = vecbank.attend(x, bank, values, beta=beta, weight="sparsemax", allowed=may)
    torch.testing.assert_close(got.double(), sparsemax(z) @ values.double(), rtol=1e-5, atol=2e-6)


def test_sparsemax_of_ties() -> None:
    x = torch.ones(3, 2)
    got = vecbank.attend(x, torch.ones(40, 2), torch.arange(40.0).unsqueeze(1), weight="sparsemax")
    torch.testing.assert_close(got, torch.full((3, 1), 19.5))


@pytest.mark.parametrize("weight", ["softmax", "sparsemax", None, torch.relu])
def test_the_best_rows_alone(weight: Any, way: str) -> None:
    x, bank, values, beta = inputs(21, 300, 12, 5)
    for metric in ("dot", "l2"):
        may = torch.rand(21, 300, generator=seeded(2)) > 0.5
        indices = vecbank.topk(x, bank, 7, metric, allowed=may).indices
        chosen = torch.zeros(21, 300, dtype=torch.bool).scatter(1, indices, True)
        got = vecbank.attend(x, bank, values, metric, beta=beta, weight=weight, k=7, allowed=may)
        want = vecbank.attend(x, bank, values, metric, beta=beta, weight=weight, allowed=chosen)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)
    lse = vecbank.attend(x, bank, values, beta=beta, k=7, return_lse=True).lse
    best = vecbank.topk(x, bank, 7).values * beta.unsqueeze(1)
    torch.testing.assert_close(lse, best.logsumexp(-1))


def test_candidate_sets_of_every_kind() -> None:
    x, bank, values, beta = inputs(30, 200, 8, 3)
    labels = torch.arange(200) % 5
    sets = [
        Allowed.not_self(3),
        Allowed.exclude(torch.arange(30).unsqueeze(1)),
        Allowed.ranges(torch.arange(30), torch.arange(30) + 40),
        Allowed.same(torch.arange(30) % 5, labels) & ~Allowed.rows(torch.tensor([5, 10])),
        Allowed.mask(torch.arange(200) % 3 == 0),
    ]
    for allowed in sets:
        mask = vecbank.allowed.lowered(allowed, x, bank).holds(0, 30, x.shape[:-1], bank)  # type: ignore[union-attr]
        got = vecbank.attend(x, bank, values, beta=beta, allowed=allowed)
        torch.testing.assert_close(got, dense(x, bank, values, beta, mask)[0], rtol=1e-5, atol=1e-6)


def test_batches(way: str) -> None:
    x, bank, values = gauss(3, 11, 8), gauss(3, 70, 8, seed=1), gauss(3, 70, 5, seed=2)
    beta = torch.rand(3, 11, generator=seeded(3))
    may = torch.rand(3, 11, 70, generator=seeded(4)) > 0.5
    for weight in ("softmax", "sparsemax", None, torch.relu):
        for k in (None, 3):
            options = {"weight": weight, "k": k}
            got = vecbank.attend(x, bank, values, beta=beta, allowed=may, **options)
            for b in range(3):
                one = vecbank.attend(x[b], bank[b], values[b], beta=beta[b], allowed=may[b], **options)
                torch.testing.assert_close(got[b], one, rtol=1e-5, atol=1e-6)
    own = [t.clone().requires_grad_() for t in (x, bank, values)]
    grads = torch.autograd.grad(vecbank.attend(*own, beta=beta, allowed=may).square().sum(), own)
    for b in range(3):
        one = [t[b].detach().clone().requires_grad_() for t in own]
        alone = torch.autograd.grad(vecbank.attend(*one, beta=beta[b], allowed=may[b]).square().sum(), one)
        for of_all, of_one in zip(grads, alone, strict=True):
            torch.testing.assert_close(of_all[b], of_one, rtol=1e-4, atol=1e-5)


def test_bank_and_leading_dimensions() -> None:
    x, bank, values, _ = inputs(24, 90, 12, 7)
    want = vecbank.attend(x, bank, values, "cosine", beta=3.0)
    held = vecbank.Bank(bank, metric="cosine")
    torch.testing.assert_close(vecbank.attend(x.reshape(2, 3, 4, 12), held, values, beta=3.0), want.reshape(2, 3, 4, 7))
    torch.testing.assert_close(vecbank.attend(x, held, beta=3.0), vecbank.attend(x, bank, bank, "cosine", beta=3.0))
    assert torch.equal(held.attend(x, values, beta=3.0, k=5), vecbank.attend(x, held, values, beta=3.0, k=5))
    for n in (3, 24):  # a Bank that names no metric: "dot" by every way, as of topk
        with pytest.warns(FutureWarning, match='attend scores by "dot"'):
            got = vecbank.attend(x[:n], vecbank.Bank(bank), values)
        torch.testing.assert_close(got, vecbank.attend(x[:n], bank, values, "dot"))
    plain = vecbank.Bank(bank, "dot")
    vecbank.attend(x, plain, values)
    assert not plain._packs  # the kernel reads the vectors themselves
    biased = vecbank.Bank(bank, "dot", bias=gauss(90, seed=7))
    z = x @ bank.T + biased.bias
    torch.testing.assert_close(vecbank.attend(x, biased, values), z.softmax(-1) @ values, rtol=1e-5, atol=1e-6)
    assert vecbank.attend(x[0], bank, values).shape == (7,)


def test_own_rows_take_both_gradients() -> None:
    """Without values the bank's rows are summed too: what is stored and what is compared is one."""
    x, bank, _, _ = inputs(24, 90, 12, 7)
    own, wide = bank.clone().requires_grad_(), bank.double().requires_grad_()
    vecbank.attend(x, own, beta=0.5).square().sum().backward()
    dense(x.double(), wide, wide, torch.full((24,), 0.5, dtype=torch.float64))[0].square().sum().backward()
    torch.testing.assert_close(own.grad.double(), wide.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", ["softmax", "sparsemax", None, torch.relu])
@pytest.mark.parametrize("n", [3, 20])
def test_autocast_changes_nothing(weight: Any, n: int) -> None:
    x, bank, values, _ = inputs(n, 300, 16, 5)
    want = vecbank.attend(x, bank, values, beta=0.1, weight=weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vecbank.attend(x, bank, values, beta=0.1, weight=weight), want)


def test_a_learned_metric_keeps_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the map alone has a gradient, blocks are made again on the way back as well."""
    monkeypatch.setattr(_select, "BLOCK_BYTES", 1 << 15)
    x, bank, values, _ = inputs(30, 400, 6, 3)
    layer = torch.nn.Linear(6, 6)
    numbers = 0

    def kept(t: Tensor) -> Tensor:
        nonlocal numbers
        numbers += t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda t: t):
        out = vecbank.attend(x, bank, values, vecbank.Mapped(layer, "l2"))
    assert numbers < 30 * 400
    out.sum().backward()
    layer_grad, layer.weight.grad = layer.weight.grad, None
    z = signed(layer(x.double().float()), layer(bank), "l2")
    (z.softmax(-1) @ values).sum().backward()
    torch.testing.assert_close(layer_grad, layer.weight.grad, rtol=1e-3, atol=1e-4)


def test_the_same_bits_for_every_number_of_threads() -> None:
    before = torch.get_num_threads()
    bits = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found = []
            for n, m in ((40, 5000), (700, 900), (1100, 60)):
                own = [t.requires_grad_() for t in inputs(n, m, 24, 24)]
                out, lse = vecbank.attend(*own[:3], beta=own[3], return_lse=True)
                found += [out, lse, *torch.autograd.grad(out.square().sum() + lse.sum(), own)]
            bits.append(found)
    finally:
        torch.set_num_threads(before)
    for other in bits[1:]:
        assert all(torch.equal(a, b) for a, b in zip(bits[0], other, strict=True))


def test_wide_rows_and_long_lists_of_queries() -> None:
    """Of 1024 coordinates: sums are made of runs, and a chunk of the way back has 1024 queries."""
    x, bank, values, beta = inputs(2100, 40, 1024, 9)
    slopes = gauss(2100, 9, seed=5), gauss(2100, seed=6)

    def ours(*t: Tensor) -> tuple[Tensor, Tensor]:
        return vecbank.attend(*t[:3], beta=t[3], return_lse=True)

    given = (x, bank, values, beta)
    truth = gradients(dense, tuple(t.double() for t in given), *(t.double() for t in slopes))
    assert_as_good(gradients(ours, given, *slopes), gradients(dense, given, *slopes), truth)


@pytest.mark.parametrize("weight", ["softmax", "sparsemax", None, torch.relu])
def test_vmap(weight: Any) -> None:
    x, bank, values, _ = inputs(20, 90, 12, 7)
    got = torch.func.vmap(lambda q: vecbank.attend(q, bank, values, weight=weight))(x.reshape(4, 5, 12))
    want = vecbank.attend(x, bank, values, weight=weight)
    torch.testing.assert_close(got.reshape(20, 7), want, rtol=1e-5, atol=1e-5)


def test_forward_mode() -> None:
    x, bank, values, _ = (t.double() for t in inputs(10, 30, 4, 3))
    for given in ((x, bank, values), (x.float(), bank.float(), values.float())):

        def form(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            return vecbank.attend(a, b, c, beta=0.5)

        tangents = tuple(gauss(*t.shape, seed=i, dtype=t.dtype) for i, t in enumerate(given))
        got = torch.func.jvp(form, given, tangents)[1]
        want = torch.func.jvp(
            lambda a, b, c: dense(a, b, c, torch.full((10,), 0.5, dtype=a.dtype))[0], given, tangents
        )[1]
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_what_is_refused() -> None:
    x, bank, values, _ = inputs(20, 90, 12, 7)
    for bad in (torch.inf, torch.nan, -1e39, torch.tensor([1.0] * 19 + [torch.nan])):
        with pytest.raises(ValueError, match="beta must be finite"):
            vecbank.attend(x, bank, values, beta=bad)
    with pytest.raises(ValueError, match=r"beta must be a number or broadcast to \(20,\), got \(3,\)"):
        vecbank.attend(x, bank, values, beta=torch.ones(3))
    with pytest.raises(TypeError, match="beta must be"):
        vecbank.attend(x, bank, values, beta="large")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"values must have a row for each row of the bank, \(90, e\), got \(89, 7\)"):
        vecbank.attend(x, bank, values[:89])
    for k in (0, 91):
        with pytest.raises(ValueError, match=f"k must lie between 1 and the bank's M = 90, got {k}"):
            vecbank.attend(x, bank, values, k=k)
    with pytest.raises(ValueError, match="weight must be"):
        vecbank.attend(x, bank, values, weight="hardmax")
    with pytest.raises(ValueError, match="weight must return a tensor of the shape of its scores"):
        vecbank.attend(x, bank, values, weight=lambda z: z[:, :3])
    with pytest.raises(ValueError, match='return_lse goes with weight="softmax"'):
        vecbank.attend(x, bank, values, weight="sparsemax", return_lse=True)
    with pytest.raises(ValueError, match="metric must be one of"):
        vecbank.attend(x, bank, values, "manhattan")
    with pytest.raises(ValueError, match="allowed must broadcast"):
        vecbank.attend(x, bank, values, allowed=torch.ones(3, dtype=torch.bool))
