"""What the examples share: the command line, the data, and saving a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

matplotlib.use("Agg")
from matplotlib.figure import Figure  # noqa: E402  (after the backend is chosen)


def arguments(description: str, **lists: str) -> argparse.Namespace:
    """`--out DIR` (where pictures go), `--seed` and `--quick` (smaller and shorter: seconds, not minutes).

    `lists` are positional arguments of any number, by name, with their help.
    """
    parser = argparse.ArgumentParser(description=description)
    for name, text in lists.items():
        parser.add_argument(name, nargs="*", help=text)
    parser.add_argument("--out", type=Path, default=Path("examples_out"), metavar="DIR", help="folder for the picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer steps: a check in seconds")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def save(figure: Figure, path: Path) -> None:
    if not figure.subfigs:  # those lay themselves out
        figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"picture: {path}")


def photographs() -> list[Tensor]:
    """scikit-learn's two photographs, (height, width, 3) in [0, 1]."""
    from sklearn.datasets import load_sample_images

    return [torch.from_numpy(image.copy()).float() / 255 for image in load_sample_images().images]


def patches(image: Tensor, size: int) -> Tensor:
    """Square tiles side by side, (rows columns, size size 3)."""
    rows, columns = image.shape[0] // size, image.shape[1] // size
    cut = image[: rows * size, : columns * size].view(rows, size, columns, size, 3)
    return cut.transpose(1, 2).reshape(rows * columns, -1)


def picture(tiles: Tensor, like: Tensor, size: int) -> Tensor:
    """The inverse of `patches` for an image of the size of `like`."""
    rows, columns = like.shape[0] // size, like.shape[1] // size
    return tiles.view(rows, columns, size, size, 3).transpose(1, 2).reshape(rows * size, columns * size, 3).clamp(0, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal to noise ratio of values in [0, 1], in dB."""
    return float(-10 * (a - b).square().mean().log10())


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's handwritten digits: (1797, 64) in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.from_numpy(data.data).float() / 16, torch.from_numpy(data.target).long()
