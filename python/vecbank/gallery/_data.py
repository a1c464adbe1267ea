"""What the systems of the gallery work on: scikit-learn's bundled sets, and arrays drawn from a seed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vecbank

from ..demo.data import load_digits


class Split(NamedTuple):
    """Vectors and labels to learn from, and to be held out."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def digits(test: int = 597, seed: int = 0) -> Split:
    """scikit-learn's 8 x 8 digits, grey levels 0 to 1 in 64 dimensions, in an order drawn from the seed."""
    data = load_digits()
    order = torch.randperm(len(data.labels), generator=generator(seed))
    x, y = data.pixels[order] / 16, data.labels[order]
    return Split(x[test:], y[test:], x[:test], y[:test])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=-1)


def rotation(d: int, seed: int = 0) -> Tensor:
    """An orthogonal matrix (d, d)."""
    q, r = torch.linalg.qr(normal(d, d, seed=seed).double())
    return (q * r.diagonal().sign()).float()


def random_features(x: Tensor, width: int, seed: int = 0) -> Tensor:
    """A random nonlinear map of x: one layer of tanh units."""
    weight = normal(x.shape[-1], width, seed=seed) / math.sqrt(x.shape[-1])
    return torch.tanh(x @ weight * 3)


def fit(
    model: nn.Module, x: Tensor, y: Tensor, *, steps: int = 300, lr: float = 1e-2, batch: int = 256, seed: int = 0
) -> nn.Module:
    """The model after so many steps of Adam on the cross-entropy of its outputs."""
    optimiser, draw = torch.optim.Adam(model.parameters(), lr=lr), generator(seed)
    for _ in range(steps):
        chosen = torch.randint(len(x), (min(batch, len(x)),), generator=draw)
        loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    """Linear layers with ReLU between them, from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for a, b in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


def lid(bank: Tensor, k: int = 50) -> Tensor:
    """The intrinsic dimension at each row of (..., M, d), from the distances to its k nearest other rows: (..., M)."""
    r = vecbank.topk(bank, bank, k, "l2", allowed=vecbank.Allowed.not_self()).values.double()
    return -1 / (r[..., :-1] / r[..., -1:]).log().mean(-1)


def explained(x: Tensor) -> Tensor:
    """The shares of the variance of rows (N, d) that their first 1, 2, ... principal directions have."""
    values = torch.linalg.svdvals(x - x.mean(0)).square()
    return values.cumsum(0) / values.sum()


def mean_average_precision(relevant: Tensor) -> Tensor:
    """Of rows of bools (..., N, M), in order of rank: (...) float64."""
    hits = relevant.cumsum(-1)
    precision = hits.double() / torch.arange(1, relevant.shape[-1] + 1)
    return ((precision * relevant).sum(-1) / hits[..., -1].clamp_min(1)).mean(-1)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    return float((predicted == labels).double().mean())


class Largest(TorchDispatchMode):
    """In a `with`: the most elements of a tensor that any operation of torch makes, on the way back too."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.most = max([self.most, *(t.numel() for t in tree_leaves(made) if isinstance(t, Tensor))])
        return made
