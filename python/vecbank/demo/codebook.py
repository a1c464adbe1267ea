"""Codebook: a photograph as a list of code numbers, by k-means on its patches (vector quantisation)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from .. import Bank
from ..cluster import kmeans

PATCH = 4


@dataclass
class Coded:
    size: int  # number of codes
    psnr: float  # dB
    bits: float  # per pixel, for the code numbers alone
    bits_with_codebook: float  # the same and the codebook at one byte per entry
    used: int  # codes that occur in the picture
    picture: Tensor  # (H, W, 3) uint8


@dataclass
class Codebook:
    original: Tensor
    patch: int
    patches: int
    iterations: int
    coded: list[Coded]


def to_patches(picture: Tensor) -> Tensor:
    """`(H, W, 3)` to `(H/P W/P, P P 3)`; H and W are multiples of P."""
    h, w, _ = picture.shape
    return picture.reshape(h // PATCH, PATCH, w // PATCH, PATCH, 3).transpose(1, 2).reshape(-1, PATCH * PATCH * 3)


def from_patches(patches: Tensor, height: int, width: int) -> Tensor:
    grid = patches.reshape(height // PATCH, width // PATCH, PATCH, PATCH, 3)
    return grid.transpose(1, 2).reshape(height, width, 3)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB."""
    error = (a.double() - b.double()).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def run(photograph: Tensor, seed: int = 0, quick: bool = False) -> Codebook:
    sizes, iterations = ((8, 32, 128), 6) if quick else ((4, 16, 64, 256, 1024), 20)
    height, width = (side // PATCH * PATCH for side in photograph.shape[:2])
    picture = photograph[:height, :width]
    x = to_patches(picture).float()
    coded = []
    with tqdm(total=len(sizes), desc="codebook", unit="size") as bar:
        for size in sizes:
            found = kmeans(x, size, init="random", iterations=iterations, tolerance=0.0, generator=seed)
            codebook = Bank(found.centroids, metric="l2")
            codes = codebook.nearest(x).indices
            rebuilt = from_patches(codebook.lookup(codes), height, width).round().clamp(0, 255).to(torch.uint8)
            bits = math.log2(size) / PATCH**2
            codebook_bits = 8 * size * x.shape[1] / (height * width)
            used = codes.unique().numel()
            coded.append(Coded(size, psnr(picture, rebuilt), bits, bits + codebook_bits, used, rebuilt))
            bar.update()
    return Codebook(picture, PATCH, len(x), iterations, coded)
