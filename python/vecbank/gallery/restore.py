"""RESTORE: a graph embedding is judged by the graph that a search in it gives back.

Yip et al., "RESTORE: Graph Embedding Assessment Through Reconstruction", arXiv 2023.

    for each node: all other nodes by similarity of their embeddings, and the average precision of that list
    against the nodes within 1, 2 or 3 hops; then the mean over nodes (mAP)

Here the graph has 300 nodes in ten blocks, and a node's embedding is its row of U L: L are the largest eigenvalues of
the normalised adjacency matrix, and U their eigenvectors. Also shown is the mean Euclidean distance of nodes so many
hops apart, by which the paper judges what an embedding means.
"""

from __future__ import annotations

import torch
from torch import Tensor

import vecbank

from ._data import generator, mean_average_precision, normal, unit
from ._sheet import Sheet

TITLE = "RESTORE"
FAMILY = "top-k search"
NODES, BLOCKS, REFERENCE = 300, 10, {8: 0.443, 32: 0.716, 128: 0.897}


def block_graph(seed: int) -> Tensor:
    """Which nodes are joined: three in ten pairs within a block, and one in a hundred of the others."""
    block = torch.arange(NODES) * BLOCKS // NODES
    chance = torch.where(block[:, None] == block, 0.3, 0.01)
    upper = (torch.rand(NODES, NODES, generator=generator(seed)) < chance).triu(1)
    return upper | upper.T


def reconstruction(x: Tensor, true: Tensor) -> float:
    """The mAP of each node's list of all others, against its true neighbours."""
    ranked = vecbank.topk(x, x, len(x) - 1, "cosine", allowed=vecbank.Allowed.not_self()).indices
    return float(mean_average_precision(true.gather(1, ranked)))


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure
    from sklearn.metrics import label_ranking_average_precision_score

    joined = block_graph(sheet.seed)
    degrees = joined.sum(1).double()
    values, vectors = torch.linalg.eigh(joined.double() / (degrees[:, None] * degrees).sqrt())
    spectral = (vectors * values).flip(1)  # (nodes, dimensions), the largest eigenvalue first
    within = [joined]  # 1, 2 and 3 hops, without the node itself
    for _ in range(2):
        within.append((within[-1] | (within[-1].float() @ joined.float() > 0)).fill_diagonal_(False))

    reached = {d: [reconstruction(spectral[:, :d], true) for true in within] for d in REFERENCE}
    for d, reference in REFERENCE.items():
        sheet.check(f"mAP in {d} dimensions", reached[d][0], reference, abs(reached[d][0] - reference) < 0.03)
    noise = reconstruction(normal(NODES, 32, seed=sheet.seed), joined)
    sheet.check("mAP of random vectors", noise, 0.056, abs(noise - 0.056) < 0.01)

    others, x = ~torch.eye(NODES, dtype=torch.bool), spectral[:, :32]
    true, cosines = (t[others].view(NODES, -1).numpy() for t in (joined, unit(x) @ unit(x).T))
    theirs = float(label_ranking_average_precision_score(true, cosines))
    sheet.check("mAP in 32 dimensions, by scikit-learn", reached[32][0], theirs, abs(reached[32][0] - theirs) < 1e-9)

    hops = (joined, within[1] & ~joined, within[2] & ~within[1])
    means = [float(vecbank.project(x, x, "l2")[pairs].mean()) for pairs in hops]
    sheet.check("mean distance of nodes 1, 2 and 3 hops apart", means, "rises", means == sorted(means))

    plot = Figure(figsize=(4, 2.6), layout="constrained")
    axes = plot.subplots()
    axes.plot(list(reached), list(reached.values()), "o-", label=[f"within {i} hops" for i in (1, 2, 3)])
    axes.set(xlabel="dimensions", ylabel="mAP")
    axes.legend()
    sheet.picture("How much of the graph a search gives back", plot)
