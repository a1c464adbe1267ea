"""Sparse autoencoders on a planted dictionary: how many of its directions do they recover?

    python examples/sae_planted.py [--quick]

Inputs are sums of 3 of 64 unit directions in 32 dimensions. Top-k, batch-wide top-k and JumpReLU autoencoders with 128
latents see nothing but inputs; a direction is recovered when a decoder row has a cosine over 0.9 with it.
"""

from __future__ import annotations

import torch
from common import arguments, save
from matplotlib.figure import Figure
from torch import Tensor

import vecbank
from vecbank import sparse_decode
from vecbank.nn.sparse_autoencoder import SparseAutoencoder

DIRECTIONS, DIM, ACTIVE, LATENTS = 64, 32, 3, 128
FORMS = {
    "topk": {},
    "topk, no auxiliary loss": {"aux_k": 0},
    "batch_topk": {"activation": "batch_topk"},
    "jumprelu": {"activation": "jumprelu", "threshold": 0.1, "bandwidth": 0.1},
}


def batch(directions: Tensor, count: int, generator: torch.Generator) -> Tensor:
    place = torch.rand(count, DIRECTIONS, generator=generator).argsort(1)[:, :ACTIVE]
    strength = 0.5 + torch.rand(count, ACTIVE, generator=generator)
    return sparse_decode(strength, place, directions)


def recovered(directions: Tensor, sae: SparseAutoencoder) -> float:
    best = vecbank.nearest(directions, sae.decoder.detach(), "cosine").values
    return float((best > 0.9).float().mean())


def train(directions: Tensor, steps: int, seed: int, **options: object) -> tuple[list[float], SparseAutoencoder, float]:
    """Share of directions recovered along the way (first: untrained), the trained module, and its last error."""
    # not the seed of the directions: the same draw would hand the dictionary over before any training
    generator = torch.Generator().manual_seed(seed + 1)
    sae = SparseAutoencoder(DIM, LATENTS, ACTIVE, dead_after=10_000, generator=generator, **options)  # type: ignore
    optimiser, path = torch.optim.Adam(sae.parameters(), lr=3e-3), []
    for step in range(steps):
        if step % max(1, steps // 40) == 0:
            path.append(recovered(directions, sae))
        out = sae(batch(directions, 512, generator))
        optimiser.zero_grad()
        out.loss.backward()
        sae.project_decoder_gradient_()
        optimiser.step()
        sae.normalize_decoder_()
    path.append(recovered(directions, sae))
    return path, sae, float(out.error.detach())


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)  # the tensors are small: waking others costs more than they save
    steps = 150 if options.quick else 1500
    generator = torch.Generator().manual_seed(options.seed)
    directions = torch.nn.functional.normalize(torch.randn(DIRECTIONS, DIM, generator=generator), dim=1)

    figure = Figure(figsize=(13, 4.5))
    axes = figure.subplots(1, 3)
    for name, form in FORMS.items():
        path, sae, error = train(directions, steps, options.seed, **form)
        sae.eval()
        x = batch(directions, 2000, generator)
        used = float((sae(x).values > 0).sum(1).float().mean())
        alive = int((sae.silent < 10_000).sum())
        share = f"recovered {path[0]:.0%} untrained, {path[-1]:.0%} trained"
        print(f"{name:24} {share}, error {error:.3f}, {used:.1f} latents an input, {alive} alive")
        axes[0].plot([i * max(1, steps // 40) for i in range(len(path))], path, label=name)
        axes[1].plot(sorted(sae.frequency.tolist(), reverse=True), label=name)
        if name == "topk":
            cosine = vecbank.project(directions, sae.decoder.detach(), "cosine")
            order = cosine.argmax(1)
            rest = [i for i in range(LATENTS) if i not in set(order.tolist())]
            axes[2].imshow(cosine[:, order.tolist() + rest].abs(), aspect="auto", cmap="magma", vmin=0, vmax=1)
    axes[0].set(xlabel="step", ylabel="directions recovered", ylim=(0, 1.03))
    axes[0].legend()
    axes[1].set(xlabel="latents, most active first", ylabel="share of inputs it fires for")
    axes[2].set(xlabel="latents (matched ones first)", ylabel="directions", title="|cosine|, topk")
    save(figure, options.out / "sae_planted.png")


if __name__ == "__main__":
    main()
