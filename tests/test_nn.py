"""RelativeProjection and the anchor choosers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from cases import METRICS
from helpers import seeded
from torch import Tensor

import vecbank
from vecbank import anchors
from vecbank.nn import RelativeProjection


def rotation(d: int, dtype: torch.dtype) -> Tensor:
    q = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=seeded(9))).Q
    return q.to(dtype)


# --- RelativeProjection ---


@pytest.mark.parametrize("metric", METRICS)
def test_equals_project(metric: str) -> None:
    x, a = torch.randn(3, 5, 12), torch.randn(7, 12)
    got = RelativeProjection(a, metric=metric)(x)
    assert got.shape == (3, 5, 7) and got.dtype == torch.float32
    torch.testing.assert_close(got, vecbank.reference.project(x, a, metric), rtol=1e-5, atol=1e-5)


def test_batched_anchors() -> None:
    x, a = torch.randn(4, 5, 12), torch.randn(4, 7, 12)
    got = RelativeProjection(a)(x)
    assert got.shape == (4, 5, 7)
    torch.testing.assert_close(got, vecbank.reference.project(x, a, "cosine"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_a_rotated_and_scaled_space_gives_the_same_rows(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(200, 48, dtype=dtype)
    moved = 3.7 * x @ rotation(48, dtype)
    before, after = RelativeProjection(x[:32])(x), RelativeProjection(moved[:32])(moved)
    assert (before - after).abs().max().item() <= tolerance


def test_gradients_reach_x_and_learnable_anchors() -> None:
    module = RelativeProjection(torch.randn(6, 8, dtype=torch.float64), learnable=True)
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 6, dtype=torch.float64)
    (module(x) * weight).sum().backward()
    a = module.anchors.detach().clone().requires_grad_()
    y = x.detach().clone().requires_grad_()
    (vecbank.reference.project(y, a, "cosine") * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(module.anchors.grad, a.grad)
    assert [name for name, _ in module.named_parameters()] == ["bank.vectors"]


def test_gradient_reaches_anchors_given_per_call() -> None:
    """The encoder is trained through the anchors it encodes in the same step."""
    encoder = torch.nn.Linear(8, 5)
    samples, x = torch.randn(6, 8), torch.randn(4, 8)
    module = RelativeProjection(encoder(samples))  # stored detached: a buffer with a graph could not be saved
    assert not module.anchors.requires_grad and not list(module.parameters())
    module(torch.randn(4, 5), encoder(samples)).square().sum().backward()
    assert encoder.weight.grad is not None and encoder.weight.grad.abs().sum() > 0
    torch.testing.assert_close(module(encoder(x), encoder(samples)), module(encoder(x)))


def test_gradcheck_in_both_arguments() -> None:
    module = RelativeProjection(torch.ones(1, 4, dtype=torch.float64))
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    a = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x, a))


@pytest.mark.parametrize("learnable", [False, True])
def test_update_anchors(learnable: bool) -> None:
    old, new, x = torch.randn(6, 8), torch.randn(6, 8), torch.randn(4, 8)
    kept = old.clone()
    module = RelativeProjection(old, learnable=learnable)
    before = module(x)
    assert module.update_anchors_(new.double().requires_grad_()) is module
    after = module(x)
    assert torch.equal(old, kept), "the caller's tensor was written to"
    assert torch.equal(module.anchors, new) and module.anchors.dtype == torch.float32
    assert not torch.equal(before, after)
    torch.testing.assert_close(after.detach(), RelativeProjection(new)(x))
    assert after.requires_grad == learnable


@pytest.mark.parametrize("learnable", [False, True])
def test_state_dict_round_trip(learnable: bool) -> None:
    x, a = torch.randn(4, 8), torch.randn(6, 8)
    module = RelativeProjection(a, metric="l2", learnable=learnable)
    state = module.state_dict()
    assert list(state) == ["bank.vectors"]
    other = RelativeProjection(torch.zeros(6, 8), metric="l2", learnable=not learnable)
    other(x)  # whatever was prepared for the zeros has to go
    other.load_state_dict(state)
    assert torch.equal(other(x), module(x))
    for same in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(same(x), module(x))


def test_moves_with_the_model() -> None:
    x, a = torch.randn(4, 8), torch.randn(6, 8)
    model = torch.nn.Sequential(RelativeProjection(a), torch.nn.Linear(6, 2)).double()
    assert model[0].anchors.dtype == torch.float64
    torch.testing.assert_close(model[0](x.double()), vecbank.reference.project(x.double(), a.double()))


@pytest.mark.parametrize("learnable", [False, True])
def test_compiles_and_exports(learnable: bool) -> None:
    module = RelativeProjection(torch.randn(6, 8), learnable=learnable)
    x, a = torch.randn(4, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))
    compiled(x, a).sum().backward()
    assert x.grad is not None and a.grad is not None
    saved = io.BytesIO()
    torch.export.save(torch.export.export(module, (x.detach(),)), saved)
    saved.seek(0)
    torch.testing.assert_close(torch.export.load(saved).module()(x), module(x))


def test_repr_says_what_it_is() -> None:
    text = repr(RelativeProjection(torch.randn(6, 8), metric="dot", learnable=True))
    assert "anchors=6, width=8, metric='dot', learnable=True" in text
    assert "batch=(2,)" in repr(RelativeProjection(torch.randn(2, 6, 8)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: RelativeProjection([1.0]), TypeError, "anchors.*list"),  # type: ignore[arg-type]
        (lambda: RelativeProjection(torch.ones(3)), ValueError, r"anchors.*\(3,\)"),
        (lambda: RelativeProjection(torch.ones(3, 4).long()), TypeError, "anchors.*int64"),
        (lambda: RelativeProjection(torch.ones(3, 4), metric="hamming"), ValueError, "hamming"),
        (lambda: RelativeProjection(torch.ones(3, 4))(torch.ones(2, 5)), ValueError, "5"),
        (
            lambda: RelativeProjection(torch.ones(3, 4))(torch.ones(2, 4), torch.ones(4)),
            ValueError,
            "anchors",
        ),
        (
            lambda: RelativeProjection(torch.ones(3, 4)).update_anchors_(torch.ones(2, 4)),
            ValueError,
            r"anchors.*\(3, 4\).*\(2, 4\)",
        ),
    ],
)
def test_kind_errors(call: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


# --- anchor choosers ---

Chooser = Callable[[Tensor, int], Tensor]


def by_label(x: Tensor, num: int) -> Tensor:
    return anchors.stratified((x[:, 0] > 0).long(), num, generator=seeded())


CHOOSERS: dict[str, Chooser] = {
    "random": lambda x, n: anchors.random(x, n, generator=seeded()),
    "stride": anchors.stride,
    "stratified": by_label,
    "farthest_point": lambda x, n: anchors.farthest_point(x, n, generator=seeded()),
    "farthest_point cosine": lambda x, n: anchors.farthest_point(x, n, metric="cosine", generator=seeded()),
    "kmeans_medoids": lambda x, n: anchors.kmeans_medoids(x, n, generator=seeded()),
}


@pytest.mark.parametrize("name", CHOOSERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("num", [1, 7, 60])
def test_choosers_give_distinct_indices_and_the_same_again(name: str, dtype: torch.dtype, num: int) -> None:
    x = torch.randn(60, 5, generator=seeded(1)).to(dtype)
    index = CHOOSERS[name](x, num)
    assert index.shape == (num,) and index.dtype == torch.int64
    assert index.unique().numel() == num and 0 <= index.min() and index.max() < 60
    assert torch.equal(index, CHOOSERS[name](x, num))
    torch.set_num_threads(1)
    assert torch.equal(index, CHOOSERS[name](x, num))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_choosers_do_not_depend_on_the_processor(metric: str) -> None:
    x = torch.randn(500, 33, generator=seeded(3))

    def choose() -> list[Tensor]:
        return [
            anchors.farthest_point(x, 20, metric=metric, first=0),
            anchors.kmeans_centroids(x, 20, generator=seeded()),
            anchors.kmeans_medoids(x, 20, generator=seeded()),
        ]

    expected = choose()
    for isa in vecbank._C.available_isas():
        vecbank._C.set_isa(isa)
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, choose(), expected)), (isa, threads)


@pytest.mark.parametrize("name", CHOOSERS)
def test_choosers_on_copies_of_one_row(name: str) -> None:
    assert CHOOSERS[name](torch.ones(20, 3), 12).unique().numel() == 12


@pytest.mark.parametrize("name", ["random", "stratified", "farthest_point"])
def test_fewer_anchors_are_a_prefix(name: str) -> None:
    x = torch.randn(60, 5)
    assert torch.equal(CHOOSERS[name](x, 10), CHOOSERS[name](x, 30)[:10])


def test_generators_matter_and_the_default_one_is_torchs() -> None:
    one, two = (anchors.random(100, 50, generator=seeded(seed)) for seed in (0, 1))
    assert not torch.equal(one, two)
    torch.manual_seed(3)
    first = anchors.random(100, 50)
    torch.manual_seed(3)
    assert torch.equal(first, anchors.random(100, 50))


def test_nn_has_the_same_module() -> None:
    from vecbank.nn.anchors import stride  # the place that they had

    assert vecbank.nn.anchors is anchors and stride is anchors.stride


def test_kmeans_is_that_of_cluster() -> None:
    x = torch.randn(100, 4, generator=seeded(8))
    want = vecbank.cluster.kmeans(x, 6, init="random", iterations=7, tolerance=0.0, generator=seeded())
    assert torch.equal(anchors.kmeans_centroids(x, 6, iterations=7, generator=seeded()), want.centroids)


def test_stride() -> None:
    assert anchors.stride(10, 4).tolist() == [0, 2, 5, 7]
    assert anchors.stride(torch.ones(3, 2), 3).tolist() == [0, 1, 2]


def test_stratified_shares() -> None:
    labels = torch.tensor([4] * 600 + [-2] * 300 + [9] * 100)[torch.randperm(1000, generator=seeded())]

    def seats(num: int) -> list[int]:
        chosen = labels[anchors.stratified(labels, num, generator=seeded())]
        return [int((chosen == label).sum()) for label in (4, -2, 9)]

    assert seats(1) == [1, 0, 0]
    assert seats(3) == [1, 1, 1]
    assert seats(1000) == [600, 300, 100]
    for num in (10, 100, 500):
        assert all(abs(got - num * share) <= 1 for got, share in zip(seats(num), (0.6, 0.3, 0.1), strict=True))


def test_farthest_point_follows_the_definition() -> None:
    x = torch.randn(80, 4, dtype=torch.float64)
    chosen = anchors.farthest_point(x, 12, first=5).tolist()
    assert chosen[0] == 5
    for step in range(1, 12):
        gap = torch.cdist(x, x[chosen[:step]], compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        assert gap[chosen[step]] == pytest.approx(gap.max().item(), abs=1e-12)
    assert chosen == anchors.farthest_point(x, 12, metric="sqeuclidean", first=5).tolist()


def test_farthest_point_covers_every_cluster() -> None:
    centroids = 100 * torch.eye(6)
    x = (centroids.repeat_interleave(30, 0) + torch.randn(180, 6)).requires_grad_()
    assert sorted((anchors.farthest_point(x, 6, generator=seeded()) // 30).tolist()) == list(range(6))
    ray = torch.tensor([[1.0, 0.0], [50.0, 0.1], [0.0, 1.0], [-3.0, 0.0]])
    assert anchors.farthest_point(ray, 3, metric="cosine", first=0).tolist() == [0, 3, 2]


def test_kmeans_finds_the_clusters() -> None:
    means = 20 * torch.randn(8, 6, generator=seeded(4))
    x = means.repeat_interleave(40, 0) + 0.1 * torch.randn(320, 6, generator=seeded(5))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        centroids = anchors.kmeans_centroids(x.to(dtype), 8, iterations=50, generator=seeded())
        assert centroids.shape == (8, 6)
        assert centroids.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Every centroid is the mean of what is nearest to it: the fixed point of Lloyd's iteration.
    centroids = anchors.kmeans_centroids(x.double(), 8, iterations=50, generator=seeded())
    codes = vecbank.nearest(x.double(), centroids).indices
    for code in codes.unique():
        torch.testing.assert_close(centroids[code], x.double()[codes == code].mean(0))


def test_kmeans_loses_no_code_and_does_not_get_worse() -> None:
    x = torch.cat([torch.zeros(200, 3), torch.randn(50, 3, generator=seeded(2)) + 5])

    def loss(iterations: int) -> float:
        centroids = anchors.kmeans_centroids(x, 10, iterations=iterations, generator=seeded(0))
        values, codes = vecbank.nearest(x, centroids, "sqeuclidean")
        assert iterations == 0 or codes.unique().numel() == 10
        return values.sum().item()

    losses = [loss(n) for n in (0, 2, 5, 20)]
    assert losses[-1] < losses[0] / 2 and losses[-1] <= losses[1]


def test_medoids_are_the_nearest_samples_of_their_clusters() -> None:
    x = torch.randn(200, 5, generator=seeded(6))
    centroids = anchors.kmeans_centroids(x, 9, generator=seeded())
    values, codes = vecbank.nearest(x, centroids)
    medoids = anchors.kmeans_medoids(x, 9, generator=seeded())
    assert codes[medoids].tolist() == codes.unique().tolist()
    for medoid in medoids:
        assert values[medoid] == values[codes == codes[medoid]].min()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: anchors.random(x, 0), ValueError, "num must lie between 1 and 10 .*got 0"),
        (lambda x: anchors.random(x, 11), ValueError, "num must lie between 1 and 10 .*got 11"),
        (lambda x: anchors.random(x, 2.0), TypeError, "num.*float"),
        (lambda x: anchors.random("abc", 1), TypeError, "samples.*str"),
        (lambda x: anchors.stride(torch.tensor(3), 1), ValueError, "samples must have shape .*without dimensions"),
        (lambda x: anchors.stride(x, 11), ValueError, "num"),
        (lambda x: anchors.stratified(x, 2), ValueError, r"labels.*\(10, 3\)"),
        (lambda x: anchors.stratified(x[:, 0], 2), TypeError, "labels.*float32"),
        (lambda x: anchors.stratified([1, 2], 2), TypeError, "labels.*list"),
        (lambda x: anchors.stratified(x[:, 0].long(), 11), ValueError, "num must lie between 1 and 10 .*labels"),
        (lambda x: anchors.farthest_point(x[0], 1), ValueError, r"samples.*\(3,\)"),
        (lambda x: anchors.farthest_point(x.long(), 1), TypeError, "samples.*int64"),
        (lambda x: anchors.farthest_point(x / 0, 1), ValueError, "samples.*finite"),
        (lambda x: anchors.farthest_point(x, 2, metric="dot"), ValueError, "metric.*'dot'"),
        (lambda x: anchors.farthest_point(x, 2, first=10), IndexError, "first.*10"),
        (lambda x: anchors.kmeans_centroids(x, 11), ValueError, "num"),
        (lambda x: anchors.kmeans_centroids(x, 2, iterations=-1), ValueError, "iterations.*-1"),
        (lambda x: anchors.kmeans_medoids(x[:0], 1), ValueError, "num must lie between 1 and 0 "),
    ],
)
def test_choosers_kind_errors(call: Callable[[Tensor], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(torch.ones(10, 3))
