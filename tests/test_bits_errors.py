"""What the functions of packed bits refuse, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import gauss
from test_bits import words

from vecbank import Allowed, bits, codes

X, BANK = words(4, 24), words(9, 24, seed=1)
FLOATS = gauss(4, 24)
topk = partial(bits.topk, X, BANK, 2)
Refusal = tuple[Callable[[], Any], type[Exception], str]
REFUSALS: dict[str, Refusal] = {
    "floats": (
        lambda: bits.topk(FLOATS, BANK, 2),
        TypeError,
        r"x must be packed bits, uint8, got .*float32.*pack_signs",
    ),
    "a float bank": (lambda: bits.topk(X, FLOATS, 2), TypeError, "bank must be packed bits.*pack_signs"),
    "bools": (lambda: bits.topk(X > 3, BANK, 2), TypeError, "x must be packed bits.*pack_bits"),
    "integers": (lambda: bits.topk(X.int(), BANK, 2), TypeError, "x must be packed bits, uint8, got torch.int32"),
    "a list": (lambda: bits.topk([1], BANK, 2), TypeError, "x must be a torch.Tensor"),
    "words for floats": (lambda: bits.float_topk(X, BANK, 2), TypeError, "x must be floats, got packed bits"),
    "a sparse bank": (lambda: bits.topk(X, BANK.to_sparse(), 2), TypeError, "dense"),
    "bits below": (
        partial(topk, bits=16),
        ValueError,
        "bits must lie between 17 and 24 for the 3 bytes of bank.*got 16",
    ),
    "bits above": (partial(topk, bits=25), ValueError, "bits must lie between 17 and 24.*got 25"),
    "bits of planes": (partial(topk, bits=24, bank_planes=3), ValueError, "between 1 and 8 .* in 3 planes, got 24"),
    "bits as text": (partial(topk, bits="24"), TypeError, "bits must be an int"),
    "widths": (
        lambda: bits.topk(X[:, :2], BANK, 2),
        ValueError,
        r"x must have 3 bytes.*got x \(4, 2\) and bank \(9, 3\)",
    ),
    "planes of x": (partial(topk, x_planes=2), ValueError, "x must have 6 bytes, 3 for each plane"),
    "planes of the bank": (partial(topk, bank_planes=2), ValueError, "whole number of bytes for each of 2 planes"),
    "no planes": (partial(topk, x_planes=0), ValueError, "x_planes must lie between 1 and 30, got 0"),
    "distances beyond int32": (
        lambda: bits.topk(words(1, 100, 16), words(1, 100, 16), 1, bits=100, x_planes=16, bank_planes=16),
        ValueError,
        "must fit in int32",
    ),
    "k": (lambda: bits.topk(X, BANK, 10), ValueError, r"k must lie between 1 and the bank's M = 9.*got k = 10"),
    "k of 0": (lambda: bits.topk(X, BANK, 0, pad=True), ValueError, "k must lie between 1"),
    "k of floats": (lambda: bits.float_topk(FLOATS, BANK, 10), ValueError, "k must lie between 1"),
    "negative r": (lambda: bits.radius(X, BANK, -1), ValueError, "r must not be negative, got -1"),
    "NaN": (lambda: bits.radius_count(X, BANK, float("nan")), ValueError, "r must be a number, got NaN"),
    "r's shape": (
        lambda: bits.radius(X, BANK, torch.zeros(3)),
        ValueError,
        r"r must be a number or broadcast to \(4,\)",
    ),
    "r as text": (lambda: bits.radius(X, BANK, "1"), TypeError, "r must be a number"),
    "bank's shape": (lambda: bits.topk(X, BANK[None], 2), ValueError, r"bank must have shape \(M, W\)"),
    "a scalar": (lambda: bits.topk(X[0, 0], BANK, 2), ValueError, "x must have shape"),
    "width of floats": (
        lambda: bits.float_topk(FLOATS[:, :9], BANK, 2),
        ValueError,
        "x must have 17 to 24 values for planes of 3 bytes",
    ),
    "width of floats, BitBank": (
        lambda: bits.BitBank(BANK).float_topk(FLOATS[:, :9], 2),
        ValueError,
        r"x must have shape \(..., 24\) for codes of 24 bits",
    ),
    "scale": (lambda: bits.float_topk(FLOATS, BANK, 2, scale=torch.ones(3)), ValueError, "scale must be"),
    "mask": (partial(topk, allowed=torch.ones(8, dtype=torch.bool)), ValueError, "allowed must broadcast"),
    "mask of floats": (partial(topk, allowed=torch.ones(9)), TypeError, "allowed must be bool"),
    "sets": (partial(topk, allowed=[1]), TypeError, "allowed must be a vecbank.Allowed"),
    "ids": (partial(topk, allowed=Allowed.rows(torch.tensor([9]))), IndexError, "ids must lie below"),
    "indices": (
        lambda: bits.score_pairs(X, BANK, torch.tensor([[9]] * 4)),
        IndexError,
        "indices must lie between -1 and 8",
    ),
    "shape of indices": (lambda: bits.score_pairs(X, BANK, torch.tensor([0])), ValueError, "indices must have shape"),
    "devices": (lambda: bits.topk(X.to("meta"), BANK, 2), ValueError, "one device"),
    "a BitBank's bits": (
        lambda: bits.topk(X, bits.BitBank(BANK), 2, bits=23),
        ValueError,
        "those of the BitBank, 24, got 23",
    ),
    "a BitBank's planes": (
        lambda: bits.topk(X, bits.BitBank(BANK), 2, bank_planes=3),
        ValueError,
        "those of the BitBank",
    ),
    "BitBank of floats": (lambda: bits.BitBank(FLOATS), TypeError, "words must be packed bits.*pack_signs"),
    "BitBank of one row": (lambda: bits.BitBank(BANK[0]), ValueError, r"words must have shape \(M, W\)"),
    "BitBank without bytes": (lambda: bits.BitBank(BANK[:, :0]), ValueError, "whole number of bytes"),
    "pack_signs of bits": (lambda: codes.pack_signs(X), TypeError, "x must be float32"),
    "pack_signs of a scalar": (lambda: codes.pack_signs(FLOATS[0, 0]), ValueError, "got a scalar"),
    "pack_signs: planes": (lambda: codes.pack_signs(FLOATS, 0), ValueError, "planes must lie between 1 and 62"),
    "unpack_signs of floats": (lambda: codes.unpack_signs(FLOATS, 24), TypeError, "words must be packed bits"),
    "unpack_signs: bits": (lambda: codes.unpack_signs(X, 25), ValueError, r"\(..., 4\) for 1 planes of 25 bits"),
    "plane_dot of floats": (lambda: bits.plane_dot(FLOATS, 24), TypeError, "distances must be integers"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refused(what: str) -> None:
    call, error, text = REFUSALS[what]
    with pytest.raises(error, match=text):
        call()
