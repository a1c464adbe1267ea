"""Search: every digit looks up its nearest neighbours among the others; answers are checked in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import Bank
from .data import Digits

NEIGHBOURS = 10  # looked up; the recall is over these
VOTES = (1, 3, 5, 10)  # of them that vote


@dataclass
class Recall:
    data: str
    metric: str
    recall: float  # share of the float64 brute force's rows that were returned
    same_order: float  # share of queries with the same rows in the same places
    queries: int
    tied: int  # queries whose NEIGHBOURS-th and next score are equal: there the tie rule decides


@dataclass
class Example:
    query: Tensor  # (8, 8)
    label: int
    neighbours: Tensor  # (NEIGHBOURS, 8, 8)
    labels: list[int]


@dataclass
class Search:
    count: int
    accuracy: dict[str, dict[int, float]]  # metric -> votes -> leave-one-out accuracy
    recalls: list[Recall]
    examples: list[Example]


def _vote(labels: Tensor, k: int) -> Tensor:
    """The most frequent of the k nearest labels; of equally frequent ones that of the nearest neighbour."""
    votes = torch.nn.functional.one_hot(labels[:, :k], 10)
    counts = votes.sum(1)
    leading = counts == counts.amax(1, keepdim=True)
    return labels.gather(1, leading.gather(1, labels[:, :k]).int().argmax(1, keepdim=True)).squeeze(1)


def _brute_force(x: Tensor, metric: str, k: int, chunk: int = 64) -> tuple[np.ndarray, int]:
    """The k nearest other rows by float64 NumPy, equal scores by index, and how many cuts fall in a tie.

    Written on NumPy alone, from the definitions, so that it shares nothing with what it checks.
    """
    rows = x.double().numpy()
    norms = np.sqrt((rows * rows).sum(1))
    found, tied = [], 0
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        if metric == "l2":
            cost = ((part[:, None, :] - rows[None, :, :]) ** 2).sum(2)
        else:
            cost = -(part @ rows.T) / (norms[start : start + chunk, None] * norms[None, :])
        cost[np.arange(len(part)), np.arange(start, start + len(part))] = np.inf  # not itself
        order = np.argsort(cost, axis=1, kind="stable")
        ranked = np.take_along_axis(cost, order[:, : k + 1], axis=1)
        tied += int((ranked[:, k - 1] == ranked[:, k]).sum())
        found.append(order[:, :k])
    return np.concatenate(found), tied


def _examples(digits: Digits, indices: Tensor, predicted: Tensor, count: int = 8) -> list[Example]:
    """Digits that the vote gets wrong first (they tell the most), then one of each class."""
    wrong = (predicted != digits.labels).nonzero().squeeze(1)[:2].tolist()
    plain = [int((digits.labels == c).nonzero()[7 + c, 0]) for c in range(count - len(wrong))]
    return [
        Example(
            digits.pixels[i].reshape(8, 8),
            int(digits.labels[i]),
            digits.pixels[indices[i]].reshape(-1, 8, 8),
            digits.labels[indices[i]].tolist(),
        )
        for i in plain + wrong
    ]


def run(digits: Digits, quick: bool = False) -> Search:
    pixels, labels = digits
    others = ~torch.eye(len(pixels), dtype=torch.bool)  # True = may be returned: everything but the digit itself
    # Raw grey levels are small integers: distances tie exactly and the tie rule is at work.
    scaled = (pixels - pixels.mean(0)) / pixels.std(0).clamp_min(1.0)
    cases = [("grey levels", pixels, "l2"), ("grey levels", pixels, "cosine")]
    if not quick:
        cases += [("standardised", scaled, "l2"), ("standardised", scaled, "cosine")]
    accuracy: dict[str, dict[int, float]] = {}
    recalls: list[Recall] = []
    examples: list[Example] = []
    for name, x, metric in tqdm(cases, desc="search", unit="case"):
        indices = Bank(x, metric=metric).topk(x, NEIGHBOURS, allowed=others).indices
        truth, tied = _brute_force(x, metric, NEIGHBOURS)
        ours = indices.numpy()
        shared = (ours[:, :, None] == truth[:, None, :]).any(1).mean()
        recalls.append(Recall(name, metric, float(shared), float((ours == truth).all(1).mean()), len(x), tied))
        neighbour_labels = labels[indices]
        predicted = {k: _vote(neighbour_labels, k) for k in VOTES}
        accuracy[f"{metric}, {name}"] = {k: (p == labels).double().mean().item() for k, p in predicted.items()}
        examples = examples or _examples(digits, indices, predicted[5])
    return Search(len(pixels), accuracy, recalls, examples)
