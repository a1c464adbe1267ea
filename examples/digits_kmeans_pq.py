"""k-means and product quantisation on handwritten digits: clusters, and neighbours found in compressed codes.

    python examples/digits_kmeans_pq.py [--quick]

Recall@10 is the share of each digit's ten nearest neighbours (exact, `vecbank.topk`) that are among the ten nearest by
code: with the query as it is (asymmetric) or coded too (symmetric), with and without a learned rotation.
"""

from __future__ import annotations

import torch
from common import arguments, digits, save
from matplotlib.figure import Figure
from torch import Tensor

import vecbank
from vecbank import pq


def recall(scores: Tensor, truth: Tensor) -> float:
    found = scores.topk(truth.shape[1], largest=False).indices
    return float((found.unsqueeze(-1) == truth.unsqueeze(1)).any(-1).float().mean())


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    x, y = digits()
    queries, base = x[::6], x[torch.arange(len(x)) % 6 != 0]
    generator = torch.Generator().manual_seed(options.seed)

    clusters = vecbank.kmeans(x, 20, restarts=1 if options.quick else 10, generator=generator, progress=True)
    # each cluster named after the digit it has most of
    votes = torch.zeros(20, 10).index_put_((clusters.codes, y), torch.ones(len(y)), accumulate=True)
    purity = float(votes.max(1).values.sum() / len(y))
    print(f"20 clusters: {purity:.1%} of the digits in a cluster named after them ({clusters.iterations} iterations)")

    truth = vecbank.topk(queries, base, 10, "l2").indices
    curves: dict[str, list[tuple[int, float]]] = {}
    parts = (4, 8) if options.quick else (2, 4, 8, 16, 32)
    for rotation in (False, True):
        for count in parts:
            codec = pq.train(
                base, count, 4 if options.quick else 6, rotation=rotation, rotations=10, generator=generator
            )
            codes = codec.encode(base)
            for name, tables in (
                ("asymmetric", codec.tables(queries)),
                ("symmetric", codec.symmetric_tables(codec.encode(queries))),
            ):
                label = f"{name}{', rotated' if rotation else ''}"
                point = (codec.bytes_per_vector, recall(pq.scores(tables, codes), truth))
                curves.setdefault(label, []).append(point)
    for name, points in curves.items():
        print(f"{name:22}", "  ".join(f"{size} bytes {share:.2f}" for size, share in points))

    figure = Figure(figsize=(12, 4.5))
    grid = figure.add_gridspec(4, 10)
    for i in range(20):
        axis = figure.add_subplot(grid[i // 5, i % 5])
        axis.imshow(clusters.centroids[i].view(8, 8), cmap="gray_r")
        axis.set_title(str(int(votes[i].argmax())), fontsize=8)
        axis.axis("off")
    axis = figure.add_subplot(grid[:, 6:])
    for name, points in curves.items():
        axis.plot(*zip(*points, strict=True), marker="o", label=name)
    axis.set(xlabel="bytes per digit (of 256)", ylabel="recall@10", xscale="log", ylim=(0, 1.02))
    sizes = [size for size, _ in points]
    axis.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axis.minorticks_off()
    axis.legend()
    axis.grid(alpha=0.3)
    save(figure, options.out / "digits_kmeans_pq.png")


if __name__ == "__main__":
    main()
