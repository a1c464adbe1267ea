"""Rate and distortion of residual and product quantisation on patches of photographs.

    python examples/rate_distortion.py [--quick]

Residual: a codebook for the patches, one for their residuals, and so on. Product: a codebook for each slice of the
patch, plain and after a learned rotation. Codebooks come from one photograph's patches and code the other's, so that
they are judged on data they have not seen.
"""

from __future__ import annotations

import torch
from common import arguments, patches, photographs, picture, psnr, save
from matplotlib.figure import Figure
from torch import Tensor

import vecbank
from vecbank import pq

SIZE = 4  # side of a patch: 48 numbers


def residual_codebooks(x: Tensor, stages: int, codes: int, generator: torch.Generator) -> list[Tensor]:
    """Each stage's codebook is k-means of the residuals of the stages before it."""
    codebooks = []
    for _ in range(stages):
        codebooks.append(vecbank.kmeans(x, codes, iterations=15, generator=generator).centroids)
        x = x - vecbank.quantize(x, codebooks[-1]).quantized
    return codebooks


def residual_codes(x: Tensor, codebooks: list[Tensor]) -> Tensor:
    """Codes (n, stages)."""
    codes = []
    for codebook in codebooks:
        quantized, code = vecbank.quantize(x, codebook)
        codes.append(code)
        x = x - quantized
    return torch.stack(codes, 1)


def residual_decode(codes: Tensor, codebooks: list[Tensor]) -> Tensor:
    """One lookup over all stages: the codebooks end to end, the codes moved to where their codebook begins."""
    start = len(codebooks[0]) * torch.arange(codes.shape[1])
    return vecbank.lookup(codes + start, torch.cat(codebooks[: codes.shape[1]]), reduce="sum")


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    stages, codes, parts = (3, 16, (2, 4)) if options.quick else (8, 256, (1, 2, 3, 4, 6, 8))
    bits = codes.bit_length() - 1
    train, test = (patches(image, SIZE) for image in photographs())
    if options.quick:
        train = train[::6]
    generator = torch.Generator().manual_seed(options.seed)
    curves: dict[str, list[tuple[float, float]]] = {"residual": [], "product": [], "product, rotated": []}

    codebooks = residual_codebooks(train, stages, codes, generator)
    coded = residual_codes(test, codebooks)
    shown = {}
    for used in range(1, stages + 1):  # a prefix of the codes is a code
        decoded = residual_decode(coded[:, :used], codebooks)
        shown[used] = decoded
        curves["residual"].append((used * bits / SIZE**2, psnr(decoded, test)))
    for rotation in (False, True):
        for count in parts:
            codec = pq.train(train, count, bits, rotation=rotation, iterations=15, rotations=8, generator=generator)
            packed = codec.encode(test, packed=True)
            name = "product, rotated" if rotation else "product"
            curves[name].append((8 * packed.shape[1] / SIZE**2, psnr(codec.decode(packed), test)))
    for name, points in curves.items():
        print(f"{name:18}", "  ".join(f"{rate:.2f} bit/pixel {quality:.1f} dB" for rate, quality in points))

    figure = Figure(figsize=(12, 7))
    grid = figure.add_gridspec(2, 3)
    axis = figure.add_subplot(grid[0, :])
    for name, points in curves.items():
        axis.plot(*zip(*points, strict=True), marker="o", label=name)
    axis.set(xlabel="bits per pixel (of 24)", ylabel="PSNR of the unseen photograph, dB")
    axis.legend()
    axis.grid(alpha=0.3)
    original = photographs()[1]
    for i, (title, tiles) in enumerate(
        [("original", test), ("1 stage", shown[1]), (f"{stages} stages", shown[stages])],
    ):
        axis = figure.add_subplot(grid[1, i])
        axis.imshow(picture(tiles, original, SIZE).numpy())
        axis.set_title(title)
        axis.axis("off")
    save(figure, options.out / "rate_distortion.png")


if __name__ == "__main__":
    main()
