"""Codebook: a photograph as a list of code numbers, by k-means on its patches (vector quantisation)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from .. import Bank
from ..nn import anchors
from ..nn._lloyd import lloyd_step

PATCH = 4


@dataclass
class Coded:
    size: int  # number of codes
    psnr: float  # dB
    bits: float  # per pixel, for the code numbers alone
    bits_with_book: float  # and with the book itself at one byte per entry
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
    """``(H, W, 3)`` to ``(H/P W/P, P P 3)``; H and W are multiples of P."""
    h, w, _ = picture.shape
    return picture.reshape(h // PATCH, PATCH, w // PATCH, PATCH, 3).transpose(1, 2).reshape(-1, PATCH * PATCH * 3)


def from_patches(patches: Tensor, height: int, width: int) -> Tensor:
    grid = patches.reshape(height // PATCH, width // PATCH, PATCH, PATCH, 3)
    return grid.transpose(1, 2).reshape(height, width, 3)


def kmeans(x: Tensor, size: int, iterations: int, seed: int, bar: tqdm) -> Tensor:
    """Lloyd's k-means from random patches; each step is one ``nearest`` and one ``segment_sum`` over them."""
    centres = x[anchors.random(x, size, generator=torch.Generator().manual_seed(seed))]
    for _ in range(iterations):
        centres = lloyd_step(x, centres).centres
        bar.update()
    return centres


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
    with tqdm(total=len(sizes) * iterations, desc="codebook", unit="step") as bar:
        for size in sizes:
            book = Bank(kmeans(x, size, iterations, seed, bar), metric="l2")
            codes = book.nearest(x).indices
            rebuilt = from_patches(book.lookup(codes), height, width).round().clamp(0, 255).to(torch.uint8)
            bits = math.log2(size) / PATCH**2
            book_bits = 8 * size * x.shape[1] / (height * width)
            coded.append(Coded(size, psnr(picture, rebuilt), bits, bits + book_bits, codes.unique().numel(), rebuilt))
    return Codebook(picture, PATCH, len(x), iterations, coded)
