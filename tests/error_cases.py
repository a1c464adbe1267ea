"""Wrong arguments of the codes, product codes, stores and sparse codes: what `test_errors.py` calls, and what it says.

Each row: (call, exception, words that the message must hold).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from helpers import gauss

import vecbank
from vecbank import codes, embedding

Row = tuple[Callable[[], Any], type[Exception], tuple[str, ...]]

X, BANK, TABLE = gauss(4, 3), gauss(5, 3), gauss(12, 8)
CODES = torch.tensor([[0, 1], [2, -1]])
BITS = X > 0
BOOKS = gauss(4, 16, 2)  # of product codes
ONES = torch.ones(5)
PACKED = codes.pack_bits(torch.zeros(12, 4, dtype=torch.int64), 4)
HUGE = 10**30
CODEC = vecbank.ProductCodec(BOOKS, 8)


def _codes() -> dict[str, Row]:
    signs, planes = codes.sign_lookup, codes.residual_binary_quantize
    return {
        "63 planes": (partial(planes, X, 63), ValueError, ("planes", "1 and 62", "63")),
        "a huge number of planes": (partial(planes, X, HUGE), ValueError, ("planes",)),
        "63 planes of bits": (
            partial(codes.residual_binary_lookup, torch.zeros(63, 3, dtype=torch.bool)),
            ValueError,
            ("bits", "62", "63"),
        ),
        "planes of a scalar": (partial(planes, torch.tensor(1.0), 2), ValueError, ("x", "(..., d)", "scalar")),
        "straight_through of ints": (partial(codes.straight_through, X.long(), X), TypeError, ("x", "int64")),
        "straight_through to complex": (
            partial(codes.straight_through, X, X.to(torch.complex64)),
            TypeError,
            ("quantized", "complex64"),
        ),
        "an index of fractions": (
            partial(codes.bits_to_index, torch.tensor([0.5, 0.9])),
            TypeError,
            ("bits", "float32"),
        ),
        "an index of 2 and 3": (
            partial(codes.bits_to_index, torch.tensor([2, 3])),
            ValueError,
            ("bits", "0 and 1", "2 to 3"),
        ),
        "signs of floats": (partial(signs, X), TypeError, ("bits", "float32")),
        "sign scale": (partial(signs, BITS, "a"), TypeError, ("scale", "number", "str")),
        "sign scale of another shape": (partial(signs, BITS, ONES), ValueError, ("scale", "(4, 3)", "(5,)")),
        "no sign scale": (partial(codes.sign_quantize, X, None), TypeError, ("scale", "NoneType")),
        "scale of planes": (partial(planes, X, 2, ONES), ValueError, ("scale", "(4, 3)", "(5,)")),
        "a dtype's name": (partial(signs, BITS, 1.0, "float32"), TypeError, ("dtype", "'float32'")),
        "fsq in ints": (partial(codes.fsq_lookup, CODES, [8, 5], torch.int64), TypeError, ("dtype", "int64")),
        "fsq levels": (partial(codes.fsq_quantize, X, 3), TypeError, ("levels", "sequence", "int 3")),
        "fsq_lookup levels": (partial(codes.fsq_lookup, CODES, "35"), TypeError, ("levels", "sequence", "str")),
        "step": (partial(codes.round_quantize, X, "a"), TypeError, ("step", "number", "str")),
        "negative count": (partial(codes.packed_bytes, -1, 3), ValueError, ("count", "-1")),
        "negative count of packed": (partial(codes.unpack_bits, PACKED, -1), ValueError, ("count", "-1")),
        "a huge count": (partial(codes.unpack_bits, PACKED, 10**12, 3), ValueError, ("packed", str(10**12))),
        "a count beyond 64 bits": (partial(codes.packed_bytes, HUGE, 3), ValueError, ("count", "64 bits")),
    }


def _product_codes() -> dict[str, Row]:
    rows = torch.zeros(3, 4, dtype=torch.int64)
    decode, train = partial(vecbank.pq_decode, rows, BOOKS), partial(vecbank.pq_train, gauss(40, 8), 4, 2)
    return {
        "decode: width": (partial(decode, width=-1), ValueError, ("width", "1 and", "8", "-1")),
        "decode: rotation": (partial(decode, "a"), TypeError, ("rotation", "str")),
        "decode: rotation's shape": (partial(decode, gauss(3, 8)), ValueError, ("rotation", "(8, 8)", "(3, 8)")),
        "decode: rotation's dtype": (partial(decode, gauss(8, 8).double()), TypeError, ("rotation", "float64")),
        "encode: dtypes": (partial(vecbank.pq_encode, TABLE, BOOKS.double()), TypeError, ("books", "float64")),
        "tables: dtypes": (partial(vecbank.pq_tables, TABLE, BOOKS.double()), TypeError, ("books", "float64")),
        "train: samples": (partial(train, samples_per_code=-5), ValueError, ("samples_per_code", "1", "-5")),
        "train: rotations": (partial(train, rotation=True, rotations=-5), ValueError, ("rotations", "-5")),
        "codec: books": (partial(vecbank.ProductCodec, "a", 8), TypeError, ("books", "str")),
        "codec: width": (partial(vecbank.ProductCodec, BOOKS, "b"), TypeError, ("width", "str")),
        "codec: rotation": (partial(vecbank.ProductCodec, BOOKS, 8, X), ValueError, ("rotation", "(8, 8)", "(4, 3)")),
        "codec: codes": (partial(CODEC.codes, gauss(3, 4)), TypeError, ("codes", "float32")),
        "residual_lookup: stages": (
            partial(vecbank.residual_lookup, CODES[:, [0, 0, 0]], gauss(2, 5, 3)),
            ValueError,
            ("codes", "2", "3"),
        ),
        "residual_lookup: widths": (
            partial(vecbank.residual_lookup, CODES, [gauss(5, 8), gauss(5, 7)]),
            ValueError,
            ("books", "8", "7"),
        ),
        "residual_quantize: numpy books": (
            partial(vecbank.residual_quantize, X, [np.ones((5, 3), np.float32)]),
            TypeError,
            ("codebooks must be a torch.Tensor", "got a numpy array"),
        ),
        "residual_quantize: widths": (
            partial(vecbank.residual_quantize, X, gauss(2, 5, 4)),
            ValueError,
            ("books", "(4, 3)", "(5, 4)"),
        ),
    }


def _stores() -> dict[str, Row]:
    ids, block, keep = torch.arange(4), torch.tensor([-1, 0, 0, 0]), torch.ones(2, 3, dtype=torch.bool)
    integers = embedding.quantize_rows(TABLE, 4)
    arrays = embedding.PrunedRows(TABLE.numpy(), np.arange(12, dtype=np.int32))  # type: ignore[arg-type]
    coded = embedding.coded_lookup
    return {
        "ragged: block of -1": (partial(embedding.ragged_rows, X, block, keep), IndexError, ("block", "-1", "0 and 1")),
        "ragged: block of 5": (partial(embedding.ragged_rows, X, block + 5, keep), IndexError, ("block", "5")),
        "ragged: rows": (partial(embedding.ragged_lookup, ids, "a"), TypeError, ("rows", "RaggedRows", "str")),
        "coded: dim": (partial(coded, ids, PACKED, BOOKS, 4, -1), ValueError, ("dim", "8", "-1")),
        "coded: packed": (partial(coded, ids, "a", BOOKS, 4), TypeError, ("packed", "str")),
        "coded: packed of floats": (
            partial(coded, ids, X, BOOKS, 4),
            TypeError,
            ("packed", "uint8", "(V, bytes)", "float32"),
        ),
        "coded: books": (partial(coded, ids, PACKED, "a", 4), TypeError, ("books", "str")),
        "row_scale: steps": (partial(embedding.row_scale, TABLE, 4, steps=-1), ValueError, ("steps", "-1")),
        "row_scale: table": (partial(embedding.row_scale, "a", 4), TypeError, ("table", "str")),
        "row_scale: no columns": (partial(embedding.row_scale, TABLE[:, :0], 4), ValueError, ("table", "(12, 0)")),
        "quantize_rows: scale": (
            partial(embedding.quantize_rows, TABLE, 4, torch.ones(8)),
            ValueError,
            ("scale", "(12,)", "(8,)"),
        ),
        "quantize_rows: one scale": (
            partial(embedding.quantize_rows, TABLE, 4, torch.tensor(1.0)),
            ValueError,
            ("scale", "(12,)", "()"),
        ),
        "fake integers: scale": (
            partial(embedding.fake_integer_lookup, ids, TABLE, ONES, 4),
            ValueError,
            ("scale", "(12,)", "(5,)"),
        ),
        "fake integers: no columns": (
            partial(embedding.fake_integer_lookup, ids, TABLE[:, :0], torch.ones(12), 4),
            ValueError,
            ("table", "(12, 0)"),
        ),
        "integers: rows": (partial(embedding.integer_lookup, ids, X, 8, 4), TypeError, ("rows", "IntegerRows")),
        "integers: scale": (
            partial(embedding.integer_lookup, ids, integers._replace(scale=ONES), 8, 4),
            ValueError,
            ("rows.scale", "(12,)", "(5,)"),
        ),
        "pruned: numpy beside a tensor": (
            partial(embedding.pruned_lookup, ids, arrays),
            TypeError,
            ("rows.table must be a torch.Tensor", "numpy array"),
        ),
        "pruned: table": (
            partial(embedding.prune_rows, "a", BITS[:, 0]),
            TypeError,
            ("table must be a torch.Tensor, got str",),
        ),
        "hashed: table": (partial(embedding.hashed_lookup, ids, "a"), TypeError, ("table", "str")),
        "hash: feature": (partial(embedding.hash_rows, ids, 9, feature="a"), TypeError, ("feature", "int", "str")),
        "hash: half a feature": (partial(embedding.hash_rows, ids, 9, feature=2.5), TypeError, ("feature", "float")),
        "hash: features": (
            partial(embedding.hash_rows, ids, 9, feature=torch.arange(3)),
            ValueError,
            ("feature", "(4,)", "(3,)"),
        ),
        "hash: rows": (partial(embedding.hash_rows, ids, HUGE), ValueError, ("rows", str(HUGE))),
        "two tables: widths": (
            partial(embedding.two_table_lookup, ids, BANK, TABLE),
            ValueError,
            ("quotients", "(Q, 3)", "(12, 8)"),
        ),
        "two tables: type": (partial(embedding.two_table_lookup, ids, "a", TABLE), TypeError, ("remainders", "str")),
        "low rank: factors": (partial(embedding.low_rank_lookup, ids, "a", TABLE), TypeError, ("factors", "str")),
        "low rank: basis": (
            partial(embedding.low_rank_lookup, ids, X, TABLE),
            ValueError,
            ("basis", "(3, d)", "(12, 8)"),
        ),
        "stored_bytes": (partial(embedding.stored_bytes, [3.0]), TypeError, ("tensors", "float")),
    }


def _sparse_codes() -> dict[str, Row]:
    encode, each = partial(vecbank.sparse_encode, X, BANK, None), torch.tensor([1, 2, 4, 3])
    threshold, firing = partial(vecbank.sparse_encode_threshold, X, BANK, None), vecbank.firing_counts
    decode, values = vecbank.sparse_decode, torch.ones(2, 2)
    return {
        "max_k beside an int": (partial(encode, 2, max_k="junk"), TypeError, ("max_k", "str")),
        "k of a row below 0": (partial(encode, each - 4, max_k=4), ValueError, ("k", "0 and 4", "-3")),
        "k of a row above max_k": (partial(encode, each, max_k=3), ValueError, ("k", "0 and 3", "4")),
        "weight": (partial(vecbank.sparse_encode, X, TABLE, None, 2), ValueError, ("x and weight", "(12, 8)")),
        "score of a number": (partial(encode, 2, score=lambda z, rows: 3), TypeError, ("score", "int")),
        "negative norms": (partial(vecbank.sparse_encode_norm, X, BANK, None, -ONES), ValueError, ("norms", "-1")),
        "bandwidth": (partial(threshold, 0.0, bandwidth="a"), TypeError, ("bandwidth", "str")),
        "counts: values": (partial(firing, CODES, 3, "a"), TypeError, ("values", "str")),
        "counts: negative": (partial(firing, CODES, -1), ValueError, ("latents", "-1")),
        "counts: huge": (partial(firing, CODES, HUGE), ValueError, ("latents", "64 bits")),
        "decode: values": (partial(decode, values[:, :1], CODES, BANK), ValueError, ("values", "(2, 1)", "(2, 2)")),
        "decode: indices": (partial(decode, values, values, BANK), TypeError, ("indices", "float32")),
        "decode: an index": (partial(decode, values, CODES + 3, BANK), IndexError, ("indices", "5")),
        "decode: decoder": (partial(decode, values, CODES, gauss(2, 5, 3)), ValueError, ("decoder", "(2, 5, 3)")),
    }


def _numbers() -> dict[str, Row]:
    segment = partial(vecbank.segment_sum, X, torch.tensor([0, 1, 2, 0]))
    return {
        "topk": (partial(vecbank.topk, X, BANK, 10**18, pad=True), MemoryError, ("memory", f"k = {10**18}")),
        "topk beyond 64 bits": (partial(vecbank.topk, X, BANK, HUGE, pad=True), ValueError, ("k", "64 bits")),
        "segment_sum": (partial(segment, 10**18), MemoryError, (f"num_codes = {10**18}",)),
        "segment_sum beyond 64 bits": (partial(segment, HUGE), ValueError, ("num_codes", "64 bits")),
        "kmeans batches": (partial(vecbank.kmeans, X, 2, batch_size=HUGE), ValueError, ("batch_size", "64 bits")),
        "kmeans without numbers": (partial(vecbank.kmeans, X.to("meta"), 2), ValueError, ("x", "meta")),
    }


GROUPS = {
    "codes": _codes,
    "product codes": _product_codes,
    "stores": _stores,
    "sparse codes": _sparse_codes,
    "numbers": _numbers,
}
ROWS: dict[str, Row] = {f"{group}: {name}": row for group, made in GROUPS.items() for name, row in made().items()}
