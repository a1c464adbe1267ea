"""CNN Features off-the-shelf: instance retrieval by L2 distance on normalised features of a network.

Razavian, Azizpour, Sullivan and Carlsson, "CNN Features off-the-shelf: an Astounding Baseline for Recognition", CVPR
workshops 2014.

    rank of j for query i: by |x_i - b_j|, where x and b are unit vectors of 4096 dimensions

On unit vectors |x - b|^2 = 2 - 2 x.b, so that the order by L2 is that by cosine. Here a random layer of tanh units on
the digits stands for the network.
"""

from __future__ import annotations

import numpy as np
import torch

import vecbank

from ._data import digits, mean_average_precision, random_features, unit
from ._sheet import Sheet

TITLE = "CNN features off-the-shelf"
FAMILY = "top-k search"


def run(sheet: Sheet) -> None:
    data = digits(100, sheet.seed)
    features = [random_features(x, 4096) for x in (data.x, data.x_test)]
    # In float64 a unit vector has length 1 to about 1e-16: the two orders can then be compared for equality.
    gallery, queries = (unit(f.double()) for f in features)
    bank = vecbank.Bank(gallery)

    by_l2 = vecbank.topk(queries, bank, len(gallery), "l2").indices
    by_cosine = vecbank.topk(queries, bank, len(gallery), "cosine").indices

    distances = torch.cdist(queries, gallery, compute_mode="donot_use_mm_for_euclid_dist")
    brute = torch.from_numpy(np.argsort(distances.numpy(), axis=-1, kind="stable"))
    ours, theirs = (float(mean_average_precision(data.y[order] == data.y_test[:, None])) for order in (by_l2, brute))
    sheet.check("mean average precision, by brute force", ours, theirs, ours == theirs)
    right = vecbank.verify(queries, bank, brute[:, :100], "l2").right_up_to_ties
    sheet.check("lists of brute force that are exact by `verify`", int(right.sum()), len(queries), bool(right.all()))
    same = float((by_l2 == by_cosine).double().mean())
    sheet.check("ranks by L2 that are the same by cosine", same, 1.0, same == 1)

    rounded, x = (unit(f) for f in features)
    l2, cosine = (vecbank.topk(x, rounded, len(rounded), metric).indices for metric in ("l2", "cosine"))
    differ = int((l2 != cosine).sum())
    most = l2.numel() // 1000
    sheet.check("ranks that differ in float32, with lengths 1 to about 1e-7", differ, f"at most {most}", differ <= most)
