"""k-means: against scikit-learn from the same starts, and the promises of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Target, assert_same, seeded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vecbank.cluster import KMeans, kmeans

pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(count: int, groups: int, width: int = 8, spread: float = 0.05, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = seeded(seed)
    centroids = 4 * torch.randn(groups, width, generator=g)
    label = torch.arange(count) % groups
    return centroids[label] + spread * torch.randn(count, width, generator=g), label


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def equal(a: KMeans, b: KMeans) -> bool:
    return torch.equal(a.centroids, b.centroids) and torch.equal(a.codes, b.codes) and a[2:] == b[2:]


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any op returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self.numel = max(self.numel, t.numel())
        return out


# --- against scikit-learn ---


@pytest.mark.parametrize("name", ["digits", "wine"])
def test_same_starts_same_clusters_as_scikit_learn(name: str) -> None:
    sklearn = pytest.importorskip("sklearn")
    from sklearn import cluster, datasets

    del sklearn
    data = torch.from_numpy(getattr(datasets, f"load_{name}")().data)
    # integers tie; the peer rounds
    data += 0.01 * torch.randn(data.shape, generator=seeded(), dtype=data.dtype)
    k = {"digits": 10, "wine": 3}[name]
    for seed in range(3):
        start = data[torch.randperm(len(data), generator=seeded(seed))[:k]]
        peer = cluster.KMeans(k, init=start.numpy(), n_init=1, algorithm="lloyd", max_iter=100).fit(data.numpy())
        ours = kmeans(data, k, init=start)
        assert torch.equal(ours.codes, torch.from_numpy(peer.labels_).long())
        torch.testing.assert_close(ours.centroids, torch.from_numpy(peer.cluster_centers_), rtol=1e-9, atol=1e-9)
        assert ours.inertia == pytest.approx(peer.inertia_, rel=1e-9)
        # one step alone (the assignment and the means of known starts)
        peer = cluster.KMeans(k, init=start.numpy(), n_init=1, max_iter=1, tol=0).fit(data.numpy())
        step = kmeans(data, k, init=start, iterations=1, tolerance=0)
        torch.testing.assert_close(step.centroids, torch.from_numpy(peer.cluster_centers_), rtol=1e-9, atol=1e-9)
        assert torch.equal(step.codes, torch.from_numpy(peer.labels_).long())


def test_as_good_as_scikit_learn_from_its_own_starts() -> None:
    pytest.importorskip("sklearn")
    from sklearn import cluster, datasets

    data = torch.from_numpy(datasets.load_digits().data).float()
    peer = sum(cluster.KMeans(32, n_init=1, random_state=s).fit(data.numpy()).inertia_ for s in range(5))
    assert sum(kmeans(data, 32, generator=seeded(s)).inertia for s in range(5)) < 1.03 * peer


# --- promises ---


@pytest.mark.parametrize("options", [{}, {"metric": "cosine"}, {"batch_size": 700, "iterations": 4}])
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_threads_change_nothing(options: dict[str, Any], init: str) -> None:
    x = torch.randn(2500, 11, generator=seeded(1)) + 3
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(kmeans(x, 37, init=init, generator=seeded(2), restarts=2, **options))
    assert equal(results[0], results[1]) and equal(results[0], results[2])


def test_processor_changes_nothing(target: Target) -> None:
    x = torch.randn(800, 19, generator=seeded(1)).to(target.device)
    got = kmeans(x, 21, generator=seeded(2))
    want = kmeans(x.cpu(), 21, generator=seeded(2))
    assert_same((got.centroids, got.codes), (want.centroids, want.codes))


def test_the_generator_decides() -> None:
    x = torch.randn(500, 6)
    assert equal(kmeans(x, 9, generator=seeded(1)), kmeans(x, 9, generator=seeded(1)))
    assert not equal(kmeans(x, 9, generator=seeded(1)), kmeans(x, 9, generator=seeded(2)))


def test_codes_and_inertia_are_those_of_the_centroids() -> None:
    x = torch.randn(700, 6, dtype=torch.float64)
    for options in ({}, {"iterations": 2}, {"iterations": 0}, {"batch_size": 50, "iterations": 3}):
        got = kmeans(x, 12, generator=seeded(), **options)  # type: ignore[arg-type]
        squares = torch.cdist(x, got.centroids, compute_mode="donot_use_mm_for_euclid_dist").square()
        assert torch.equal(got.codes, squares.argmin(1))
        assert got.inertia == pytest.approx(float(squares.min(1).values.sum()), rel=1e-12)


def test_inertia_never_rises_and_restarts_help() -> None:
    x = torch.randn(600, 5)
    start = x[:20].clone()
    path = [kmeans(x, 20, init=start, iterations=i, tolerance=0).inertia for i in range(8)]
    assert all(after <= before for before, after in zip(path, path[1:], strict=False))
    runs = [kmeans(x, 20, generator=g).inertia for g in [seeded(3)] for _ in range(4)]
    assert kmeans(x, 20, restarts=4, generator=seeded(3)).inertia == min(runs)


def test_careful_starts_find_every_blob() -> None:
    x, label = blobs(1500, 30)
    for seed in range(3):
        first = label[torch.cdist(kmeans(x, 30, iterations=0, generator=seeded(seed)).centroids, x).argmin(1)]
        assert len(first.unique()) == 30  # random starts leave out about ten


def test_given_starts_are_kept_and_completed() -> None:
    x, _ = blobs(400, 8)
    known = x[:3].clone()  # of three different blobs
    start = kmeans(x, 8, init=known, iterations=0, generator=seeded())
    assert torch.equal(start.centroids[:3], known) and start.iterations == 0
    assert len(start.codes.unique()) == 8  # the drawn ones went where the known ones are not


@pytest.mark.parametrize("options", [{}, {"batch_size": 64, "iterations": 20}])
def test_empty_clusters_are_reseeded(options: dict[str, Any]) -> None:
    x, _ = blobs(512, 16)
    start = torch.cat([x[:1], torch.full((15, 8), 1e3)])
    start[1:] += torch.arange(15).unsqueeze(1)
    got = kmeans(x, 16, init=start, generator=seeded(), **options)
    assert (torch.bincount(got.codes, minlength=16) > 0).all()
    assert len(got.codes[:16].unique()) >= 14  # nearly every blob has its own


def test_mini_batches_reseed_from_a_whole_batch() -> None:
    x, _ = blobs(513, 16)  # the last batch of a pass is a single sample
    start = torch.cat([x[:1], torch.full((15, 8), 1e3)])
    got = kmeans(x, 16, init=start, batch_size=64, iterations=2, generator=seeded())
    assert len(got.codes.unique()) >= 10


@pytest.mark.parametrize("options", [{}, {"batch_size": 300, "iterations": 10}])
def test_samples_without_direction_count_for_nothing(options: dict[str, Any]) -> None:
    x, _ = blobs(160, 16)
    x, nothing = x / x.norm(dim=1, keepdim=True), torch.zeros(640, 8)
    start = torch.cat([x[:1], -x[:1].expand(15, 8)])
    got = kmeans(torch.cat([nothing, x]), 16, metric="cosine", init=start, generator=seeded(), **options)
    assert (torch.bincount(got.codes[640:], minlength=16) > 0).sum() >= 14
    assert got.inertia < 10


def test_fewer_different_samples_than_centroids() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat(10, 1)
    for init in ("k-means++", "random"):
        got = kmeans(x, 5, init=init, generator=seeded())
        assert got.inertia == 0 and torch.isfinite(got.centroids).all()


def test_one_centroid_and_as_many_as_samples() -> None:
    x = torch.randn(50, 4, dtype=torch.float64)
    torch.testing.assert_close(kmeans(x, 1, generator=seeded()).centroids[0], x.mean(0))
    assert kmeans(x, 50, generator=seeded()).inertia == 0


def test_cosine_sees_directions_only() -> None:
    x, _ = blobs(900, 6, width=5)
    start = x[:6].clone()
    got = kmeans(x, 6, metric="cosine", init=start)
    torch.testing.assert_close(got.centroids.norm(dim=1), torch.ones(6))
    scaled = kmeans(x * 2.0 ** torch.randint(-3, 4, (900, 1), generator=seeded()), 6, metric="cosine", init=start)
    assert torch.equal(got.codes, scaled.codes)
    similarity = torch.nn.functional.normalize(x.double()) @ got.centroids.double().T
    assert got.inertia == pytest.approx(float((1 - similarity.max(1).values).sum()), abs=1e-3)
    assert torch.isfinite(kmeans(torch.cat([x, torch.zeros(3, 5)]), 6, metric="cosine", init=start).centroids).all()


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_weights_count_as_repetitions(metric: str) -> None:
    x = torch.randn(300, 5, dtype=torch.float64)
    times = torch.randint(0, 4, (300,), generator=seeded(4))
    start = x[:7].clone()
    weighted = kmeans(x, 7, metric=metric, init=start, weights=times.double())
    repeated = kmeans(x.repeat_interleave(times, 0), 7, metric=metric, init=start)
    torch.testing.assert_close(weighted.centroids, repeated.centroids)
    assert weighted.inertia == pytest.approx(repeated.inertia)
    assert weighted.iterations == repeated.iterations


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_half_precision_samples_are_read_exactly(dtype: torch.dtype, metric: str) -> None:
    x = torch.randn(900, 6).to(dtype)
    got = kmeans(x, 8, metric=metric, init=x[:8])
    want = kmeans(x.float(), 8, metric=metric, init=x[:8].float())
    assert got.centroids.dtype == torch.float32
    assert torch.equal(got.codes, want.codes)
    torch.testing.assert_close(got.centroids, want.centroids, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"batch_size": 1000}])
def test_nothing_of_size_n_times_k(options: dict[str, Any]) -> None:
    x = torch.randn(4000, 8)
    with Largest() as seen:
        kmeans(x, 300, iterations=3, generator=seeded(), **options)
    assert seen.numel <= x.numel()


def test_mini_batches_come_close() -> None:
    x, _ = blobs(4000, 12, spread=1.0)
    for seed in range(3):
        start = kmeans(x, 12, iterations=0, generator=seeded(seed)).centroids
        full = kmeans(x, 12, init=start).inertia
        assert kmeans(x, 12, init=start, batch_size=256, generator=seeded(seed)).inertia < 1.1 * full


def test_progress_goes_to_stderr_and_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.randn(100, 3)
    kmeans(x, 4, generator=seeded())
    assert capsys.readouterr() == ("", "")
    kmeans(x, 4, generator=seeded(), progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "100/100" in err and "inertia" in err and err.endswith("\n")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 11}, ValueError, "k must not exceed the number of samples N = 10, got k = 11"),
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"k": 2.0}, TypeError, "k must be an int"),
        ({"metric": "dot"}, ValueError, "metric must be one of"),
        ({"init": "pca"}, ValueError, "init must be one of"),
        ({"init": torch.zeros(4, 3)}, ValueError, r"init must have shape \(r, 3\)"),
        ({"weights": torch.zeros(10)}, ValueError, "weights"),
        ({"weights": torch.ones(9)}, ValueError, "weights"),
        ({"iterations": -1}, ValueError, "iterations"),
        ({"weights": -torch.ones(10)}, ValueError, "weights must not be negative, got -1.0"),
        ({"weights": torch.zeros(10)}, ValueError, "weights must not all be zero"),
        ({"weights": torch.full((10,), torch.nan)}, ValueError, "weights must be finite, got NaN or inf"),
        ({"weights": torch.ones(10, dtype=torch.int64)}, TypeError, "weights must be float32, .* got torch.int64"),
        ({"weights": torch.ones(10, device="meta")}, ValueError, "weights must be on x's device cpu, got meta"),
        (
            {"weights": torch.ones(10).to_sparse()},
            TypeError,
            "weights must be a dense tensor, got one of layout torch.sparse_coo",
        ),
        ({"weights": [1.0] * 10}, TypeError, "weights must be a torch.Tensor"),
        (
            {"x": torch.ones(10, 3).to_sparse()},
            TypeError,
            "x must be a dense tensor, got one of layout torch.sparse_coo",
        ),
        (
            {"init": torch.ones(3, 3).to_sparse()},
            TypeError,
            "init must be a dense tensor, got one of layout torch.sparse_coo",
        ),
        ({"init": 3}, TypeError, "init must be a torch.Tensor"),
        ({"k": torch.tensor(3.0)}, TypeError, "k must be an int, got Tensor"),
        ({"k": torch.tensor([1, 2])}, TypeError, "k must be an int, got Tensor"),
        ({"k": True}, TypeError, "k must be an int, got bool"),
        ({"k": torch.tensor(True)}, TypeError, "k must be an int, got Tensor"),
        ({"k": torch.tensor(-1)}, ValueError, "k must be at least 1, got -1"),
        ({"k": None}, TypeError, "k must be an int, got NoneType"),
        ({"iterations": 2.5}, TypeError, "iterations must be an int, got float"),
        ({"local_trials": 0}, ValueError, "local_trials must be at least 1, got 0"),
        ({"local_trials": 1.5}, TypeError, "local_trials must be an int, got float"),
        ({"generator": "0"}, TypeError, r"generator must be a torch.Generator, a seed \(int\) or None, got str"),
        ({"tolerance": "small"}, TypeError, "tolerance must be a number, got str"),
        ({"tolerance": float("nan")}, ValueError, "tolerance"),
        ({"restarts": 0}, ValueError, "restarts"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an int"),
        ({"x": torch.zeros(10)}, ValueError, r"x must have shape \(N, d\)"),
        ({"x": torch.zeros(10, 3, dtype=torch.int64)}, TypeError, "x must be float32"),
        ({"x": torch.full((10, 3), torch.nan)}, ValueError, "x must be finite"),
    ],
)
def test_refuses_by_name(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kmeans(**{"x": torch.randn(10, 3), "k": 3, **arguments})
