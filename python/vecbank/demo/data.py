"""The real data of the demo: it ships inside scikit-learn, nothing is downloaded."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Digits(NamedTuple):
    pixels: Tensor  # (1797, 64) float32, grey levels 0..16 of 8 x 8 pictures
    labels: Tensor  # (1797,) int64, 0..9


def load_digits() -> Digits:
    from sklearn.datasets import load_digits as load

    bunch = load()
    return Digits(torch.from_numpy(bunch.data.astype(np.float32)), torch.from_numpy(bunch.target.astype(np.int64)))


def load_photograph() -> Tensor:
    """china.jpg, `(427, 640, 3)` uint8."""
    from sklearn.datasets import load_sample_image

    return torch.from_numpy(np.array(load_sample_image("china.jpg")))
