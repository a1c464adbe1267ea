"""VQ autoencoder on patches of photographs, beside the same model with vector-quantize-pytorch's module.

    python examples/vq_autoencoder.py [--quick]

Same network, same seed, same data order; only the quantiser's class differs. Each runs in a process of its own, so that
peak memory is its own too. The picture shows both reconstructions and how evenly the codes are used.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from typing import Any

import torch
from common import arguments, patches, photographs, picture, psnr, save
from matplotlib.figure import Figure
from torch import Tensor, nn

import vecbank

SIZE = 8  # side of a patch


class Autoencoder(nn.Module):
    """patch -> 4 latents of width 16, each quantised -> patch"""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        width = 3 * SIZE * SIZE
        self.encoder = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 64))
        self.quantizer = quantizer
        self.decoder = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, codes, loss = self.quantizer(self.encoder(x).view(len(x), 4, 16))
        return self.decoder(quantized.flatten(1)), codes, loss


def quantizer(name: str, codes: int) -> nn.Module:
    options: dict[str, Any] = {"dim": 16, "codebook_size": codes, "kmeans_init": True, "threshold_ema_dead_code": 1}
    if name == "vecbank":
        return vecbank.nn.VectorQuantize(**options)
    import vector_quantize_pytorch

    return vector_quantize_pytorch.VectorQuantize(**options)


def train(name: str, codes: int, steps: int, batch: int, seed: int) -> dict[str, Any]:
    """Reconstructions, usage of the codes, seconds of a step (the best of ten parts of the run) and peak memory."""
    torch.manual_seed(seed)
    images = photographs()
    data = torch.cat([patches(image, SIZE) for image in images])
    model = Autoencoder(quantizer(name, codes))
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    order, seconds = torch.Generator().manual_seed(seed), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for part in range(10):
        start = time.perf_counter()
        for _ in range(steps // 10):
            x = data[torch.randint(len(data), (batch,), generator=order)]
            rebuilt, _, loss = model(x)
            optimiser.zero_grad()
            ((rebuilt - x).square().mean() + 0.05 * loss.sum()).backward()
            optimiser.step()
        if part:  # the first part has the k-means start
            seconds.append((time.perf_counter() - start) / (steps // 10))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    model.eval()
    with torch.no_grad():
        rebuilt, used, _ = model(data)
        share = torch.bincount(used.flatten(), minlength=codes) / used.numel()
        whole = picture(model(patches(images[0], SIZE))[0], images[0], SIZE)
    return {
        "image": whole.numpy(),
        "psnr": psnr(rebuilt, data),
        "share": share.numpy(),
        "perplexity": float(torch.special.entr(share).sum().exp()),
        "ms": 1e3 * min(seconds),
        "mib": peak / 1024,
    }


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    codes, steps, batch = (128, 60, 256) if options.quick else (1024, 1000, 2048)
    results = {}
    for name in ("vecbank", "vector-quantize-pytorch"):
        try:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                r = results[name] = pool.apply(train, (name, codes, steps, batch, options.seed))
        except ModuleNotFoundError:
            print(f"{name} is not installed: left out")
            continue
        print(
            f"{name:24} {r['psnr']:.2f} dB, perplexity {r['perplexity']:.0f} of {codes}, "
            f"{r['ms']:.1f} ms a step, {r['mib']:.0f} MiB for training"
        )
    figure = Figure(figsize=(12, 7))
    axes = figure.subplots(2, 3)
    images = {"original": photographs()[0].numpy()}
    images |= {f"{name}: {r['psnr']:.1f} dB": r["image"] for name, r in results.items()}
    for axis, (title, image) in zip(axes[0], images.items(), strict=False):
        axis.imshow(image)
        axis.set_title(title)
        axis.axis("off")
    for name, r in results.items():
        axes[1][0].plot(sorted(r["share"] * codes, reverse=True), label=f"{name}, perplexity {r['perplexity']:.0f}")
    axes[1][0].set(xlabel="codes, most used first", ylabel="share, 1 = even", ylim=(0, 5))
    axes[1][0].legend(fontsize=7, frameon=False)
    for axis, key, title in zip(axes[1][1:], ("ms", "mib"), ("ms a training step", "MiB for training"), strict=True):
        axis.barh(list(results), [r[key] for r in results.values()])
        axis.set_title(title)
    save(figure, options.out / "vq_autoencoder.png")


if __name__ == "__main__":
    main()
