"""A top-k sparse autoencoder on the hidden activations of a network that reads digits.

    python examples/sae_digits.py [--quick]

The network's predictions from rebuilt activations say what the dictionary keeps; each latent is shown by the mean of
the digits that it fires most for; subtracting a digit's latents changes the prediction.
"""

from __future__ import annotations

import torch
from common import arguments, digits, save
from matplotlib.figure import Figure
from torch import Tensor, nn

import vecbank
from vecbank.nn.sparse_autoencoder import SparseAutoencoder

HIDDEN, LATENTS, K, SHOWN = 64, 256, 8, 24


def network(x: Tensor, y: Tensor, steps: int) -> tuple[nn.Module, nn.Module]:
    encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, HIDDEN), nn.ReLU())
    head = nn.Linear(HIDDEN, 10)
    optimiser = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(head(encoder(x)), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return encoder, head


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # the tensors are small: waking others costs more than they save
    x, y = digits()
    test = torch.arange(len(y)) % 4 == 0
    encoder, head = network(x[~test], y[~test], 60 if options.quick else 200)
    with torch.no_grad():
        hidden = encoder(x)
    generator = torch.Generator().manual_seed(options.seed)
    sae = SparseAutoencoder(HIDDEN, LATENTS, K, dead_after=20_000, generator=generator).start_(hidden[~test])
    optimiser = torch.optim.Adam(sae.parameters(), lr=3e-3)
    for _ in range(60 if options.quick else 800):
        rows = torch.randint(int((~test).sum()), (512,), generator=generator)
        out = sae(hidden[~test][rows])
        optimiser.zero_grad()
        out.loss.backward()
        sae.project_decoder_gradient_()
        optimiser.step()
        sae.normalize_decoder_()

    sae.eval()
    with torch.no_grad():
        code = sae(hidden)

        def accuracy(activations: Tensor) -> float:
            return float((head(activations)[test].argmax(1) == y[test]).float().mean())

        kept, rebuilt = accuracy(hidden), accuracy(code.reconstruction)
        # per latent and digit, how much of it there is: a segment sum of values over (latent, digit) pairs
        place = torch.where(code.indices < 0, -1, code.indices * 10 + y.unsqueeze(1))
        total = vecbank.segment_sum(code.values.reshape(-1, 1), place.reshape(-1), LATENTS * 10).view(LATENTS, 10)
        purity, digit = (total / total.sum(1, keepdim=True).clamp_min(1e-9)).max(1)
        # take away whatever speaks for the digit that is there
        own = (digit[code.indices.clamp_min(0)] == y.unsqueeze(1)) & (code.indices >= 0)
        edited = accuracy(sae.decode(code.values.masked_fill(own, 0), code.indices))
        # the mean digit of each latent, weighted by how much of it is in the code
        mean = vecbank.segment_sum(x, code.indices, LATENTS, code.values)
        mean /= total.sum(1, keepdim=True).clamp_min(1e-9)
    print(f"accuracy from activations {kept:.1%}, from {K} latents {rebuilt:.1%}, without the digit's own {edited:.1%}")
    print(f"error {float(sae(hidden).error.detach()):.3f}; {int((total.sum(1) > 0).sum())} of {LATENTS} latents in use")

    figure = Figure(figsize=(12, 5))
    pictures, bars = figure.subfigures(1, 2, width_ratios=(3, 1))
    latents = total.sum(1).argsort(descending=True)[:SHOWN].tolist()
    for axis, latent in zip(pictures.subplots(3, 8).flat, latents, strict=True):
        axis.imshow(mean[latent].view(8, 8), cmap="gray_r")
        axis.set_title(f"{int(digit[latent])} ({purity[latent]:.0%})", fontsize=8)
        axis.axis("off")
    bars.subplots_adjust(left=0.35)
    axis = bars.subplots()
    axis.barh(["activations", f"{K} latents", "edited"], [kept, rebuilt, edited])
    axis.set(title="accuracy", xlim=(0, 1))
    save(figure, options.out / "sae_digits.png")


if __name__ == "__main__":
    main()
