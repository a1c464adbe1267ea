"""Stitching: what was trained on one network's latents, read with another network's latents.

Two autoencoders with a classifier learn the same digits from different seeds. Their latent spaces hold the
same information in different coordinates, so a classifier or decoder of one is useless on the other, unless
both describe a digit by its similarities to the same few samples (Moschella et al., ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .. import anchors
from ..nn import RelativeProjection
from .data import Digits

LATENT = 64
TRAIN = 1200
PICTURE_ANCHORS = 128


@dataclass
class Score:
    """Accuracy on held-out digits; one entry per direction (A's head, B's head)."""

    own: list[float]
    stitched: list[float]

    @property
    def own_mean(self) -> float:
        return sum(self.own) / len(self.own)

    @property
    def stitched_mean(self) -> float:
        return sum(self.stitched) / len(self.stitched)


@dataclass
class Decoded:
    """Squared error per pixel (0..1 scale) of A's decoder on held-out digits, and the pictures it drew."""

    own_error: float
    stitched_error: float
    stitched: Tensor


@dataclass
class Stitching:
    chance: float
    latent: int
    train: int
    test: int
    absolute: Score
    relative: dict[int, Score]
    choosers: dict[str, Score]
    chooser_anchors: int
    originals: Tensor
    decoded_absolute: Decoded
    decoded_relative: Decoded


@dataclass
class _Data:
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    latents: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (train, test) of each encoder


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _train_encoder(data: _Data, seed: int, epochs: int, bar: tqdm) -> nn.Module:
    """An encoder trained to classify and to rebuild, everything random drawn from `seed`."""
    torch.manual_seed(seed)
    # The last layer subtracts the mean: cosines are taken from the origin, which should lie inside the data.
    encoder = nn.Sequential(_mlp(64, 256, LATENT), nn.BatchNorm1d(LATENT, affine=False))
    head, decoder = nn.Linear(LATENT, 10), _mlp(LATENT, 256, 64)
    model = nn.ModuleList([encoder, head, decoder])
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    for _ in range(epochs):
        for rows in torch.randperm(len(data.x)).split(100):
            z = encoder(data.x[rows])
            loss = F.cross_entropy(head(z), data.y[rows]) + 10 * F.mse_loss(decoder(z).sigmoid(), data.x[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        bar.update()
    return encoder.eval().requires_grad_(False)


def _fit(model: nn.Module, loss_of: nn.Module, x: Tensor, y: Tensor, steps: int, lr: float) -> nn.Module:
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss_of(model(x), y).backward()
        optimiser.step()
        schedule.step()
    return model.eval().requires_grad_(False)


Rows = list[tuple[Tensor, Tensor]]


def _relative(data: _Data, index: Tensor) -> Rows:
    """Both encoders' rows relative to the same samples `index`, each encoded by its own encoder."""
    rows = []
    for train, test in data.latents:
        project = RelativeProjection(train[index])
        rows.append((project(train), project(test)))
    return rows


def _score(data: _Data, rows: Rows, seed: int, steps: int) -> Score:
    """A linear classifier fitted on each encoder's rows, tested on its own and on the other's."""
    score = Score([], [])
    for me in range(2):
        torch.manual_seed(seed)
        head = _fit(nn.Linear(rows[me][0].shape[1], 10), nn.CrossEntropyLoss(), rows[me][0], data.y, steps, 0.05)
        hits = [(head(rows[who][1]).argmax(1) == data.y_test).double().mean().item() for who in (me, 1 - me)]
        score.own.append(hits[0])
        score.stitched.append(hits[1])
    return score


def _decode(data: _Data, rows: Rows, seed: int, steps: int, shown: Tensor) -> Decoded:
    """A decoder fitted on A's rows, tested on A's and on B's."""
    torch.manual_seed(seed)
    drawer = nn.Sequential(_mlp(rows[0][0].shape[1], 256, 64), nn.Sigmoid())
    decoder = _fit(drawer, nn.MSELoss(), rows[0][0], data.x, steps, 5e-3)
    own, stitched = decoder(rows[0][1]), decoder(rows[1][1])
    return Decoded(
        F.mse_loss(own, data.x_test).item(),
        F.mse_loss(stitched, data.x_test).item(),
        stitched[shown].reshape(-1, 8, 8),
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """One thread, and the global generator as it was afterwards.

    These networks are so small that a second thread gains nothing, and on a busy machine costs a great deal.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def run(digits: Digits, seed: int = 0, quick: bool = False) -> Stitching:
    counts = (16, PICTURE_ANCHORS) if quick else (4, 8, 16, 32, 64, PICTURE_ANCHORS, 256)
    epochs, steps, chooser_anchors = (10, 80, 16) if quick else (30, 200, 16)
    with _quietly():
        order = torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(seed))
        x, y = digits.pixels[order] / 16, digits.labels[order]
        data = _Data(x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:])
        with tqdm(total=2 * epochs + len(counts) + 8, desc="stitching", unit="step") as bar:
            for which in range(2):
                encoder = _train_encoder(data, 1000 * seed + which, epochs, bar)
                data.latents.append((encoder(data.x), encoder(data.x_test)))

            def fresh() -> torch.Generator:
                return torch.Generator().manual_seed(seed)

            def score(rows: Rows) -> Score:
                bar.update()
                return _score(data, rows, seed, steps)

            absolute = score(data.latents)
            relative = {n: score(_relative(data, anchors.random(data.x, n, generator=fresh()))) for n in counts}
            # Chosen on the pixels, which both encoders share; never on one encoder's latents.
            n = chooser_anchors
            indices = {
                "random": anchors.random(data.x, n, generator=fresh()),
                "stride": anchors.stride(data.x, n),
                "stratified": anchors.stratified(data.y, n, generator=fresh()),
                "farthest_point": anchors.farthest_point(data.x, n, generator=fresh()),
                "kmeans_medoids": anchors.kmeans_medoids(data.x, n, generator=fresh()),
            }
            choosers = {name: score(_relative(data, index)) for name, index in indices.items()}

            # One picture per class: the first held-out example of each.
            shown = torch.stack([(data.y_test == c).nonzero()[0, 0] for c in range(10)])
            drawn = []
            wide = _relative(data, anchors.random(data.x, PICTURE_ANCHORS, generator=fresh()))
            for rows in (data.latents, wide):
                drawn.append(_decode(data, rows, seed, 2 * steps, shown))
                bar.update()
        return Stitching(
            chance=data.y_test.bincount().max().item() / len(data.y_test),
            latent=LATENT,
            train=len(data.x),
            test=len(data.x_test),
            absolute=absolute,
            relative=relative,
            choosers=choosers,
            chooser_anchors=chooser_anchors,
            originals=data.x_test[shown].reshape(-1, 8, 8),
            decoded_absolute=drawn[0],
            decoded_relative=drawn[1],
        )
