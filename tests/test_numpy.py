"""numpy arrays in, numpy arrays out: the values that tensors give, whatever the arrays look like in memory."""

from __future__ import annotations

import inspect
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import gauss, seeded
from torch import Tensor

import vecbank
from vecbank import Allowed, Bank, ProductCodec, anchors, codes, embedding

X, BOOK = gauss(20, 6, dtype=torch.float64), gauss(9, 6, dtype=torch.float64)
CODES = torch.tensor([[0, 3], [8, -1], [2, 2]])
BOOKS = torch.stack([BOOK, BOOK.flip(0)])
PARTS = gauss(2, 5, 3, dtype=torch.float64)  # codebooks of a product quantiser
SPARSE = tuple(vecbank.sparse_encode(X, BOOK, None, 3))
ROWS = embedding.quantize_rows(BOOK, 8)
PRUNED = embedding.prune_rows(BOOK, BOOK[:, 0] > 0)
DOCUMENTS = vecbank.sparse.SparseBank.from_dense(BOOK.relu())
RAGGED = embedding.ragged_rows(BOOK, torch.arange(9) % 2, BOOK[:2] > 0)
BITS = X > 0

# A function of the library, and its arguments as tensors. The first has all public names, the others the modules'.
CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "project": (vecbank.project, (X, BOOK), {"metric": "l2"}),
    "topk": (vecbank.topk, (X, BOOK, 3), {"allowed": torch.arange(9) > 2}),
    "topk padded": (vecbank.topk, (X, BOOK, 12), {"pad": True, "bias": BOOK[:, 0]}),
    "topk, among": (vecbank.topk, (X, BOOK, 3), {"allowed": Allowed.not_self() & Allowed.ranges(2, 8)}),
    "topk, the worst": (vecbank.topk, (X, BOOK, 3), {"order": "worst", "bias": BOOK[:, 0]}),
    "nearest": (vecbank.nearest, (X, BOOK), {}),
    "nearest, among": (vecbank.nearest, (X, BOOK), {"allowed": torch.arange(9) > 2}),
    "nearest, batched": (vecbank.nearest, (BOOKS, BOOKS), {}),
    "topk, mapped rows": (vecbank.topk, (X, BOOK, 3), {"metric": "pearson"}),
    "project, angles": (vecbank.project, (X, BOOK), {"metric": "angular"}),
    "log_euclidean": (
        vecbank.log_euclidean,
        (BOOK[:, :, None] * BOOK[:, None] + torch.eye(6, dtype=torch.float64),),
        {},
    ),
    "radius": (vecbank.radius, (X, BOOK, X[:, 0].abs() + 2), {"allowed": torch.arange(9) > 2}),
    "radius of a number": (vecbank.radius, (X, BOOK, 2.5), {"metric": "l1", "max_hits": 4}),
    "attend": (vecbank.attend, (X, BOOK), {"beta": 0.5, "allowed": torch.arange(9) > 2, "return_lse": True}),
    "attend, the best": (vecbank.attend, (X, BOOK, BOOK, "l2"), {"weight": "sparsemax", "k": 4}),
    "logsumexp": (vecbank.logsumexp, (X, BOOK), {"metric": "cosine"}),
    "losses.info_nce": (vecbank.losses.info_nce, (BOOK, X), {"positives": torch.arange(9)}),
    "losses.info_loob": (vecbank.losses.info_loob, (BOOK, X), {"reduction": "sum"}),
    "losses.debiased": (vecbank.losses.debiased, (BOOK, X), {"allowed": torch.arange(20) > 2, "reduction": "none"}),
    "radius_count": (vecbank.radius_count, (X, BOOK, 2.5), {"allowed": Allowed.not_self()}),
    "score_pairs": (vecbank.score_pairs, (X[:3], BOOK, CODES), {"metric": "cosine"}),
    "farthest_points": (vecbank.farthest_points, (X, 4), {"metric": "l1"}),
    "verify": (vecbank.verify, (X[:3], BOOK, CODES), {"allowed": torch.arange(9) > 2}),
    "search_part": (vecbank.search_part, (X, BOOK, 3), {"first_row": 5, "metric": "l2"}),
    "semantic_search": (vecbank.semantic_search, (X, BOOK), {"top_k": 4, "score_function": "euclidean"}),
    "quantize": (vecbank.quantize, (X, BOOK), {}),
    "quantize_train": (vecbank.quantize_train, (X, BOOK), {"valid": X[:, 0] > 0}),
    "lookup": (vecbank.lookup, (CODES, BOOK), {"reduce": "mean"}),
    "lookup, weighted": (vecbank.lookup, (CODES, BOOK), {"weights": X[:3, :2].contiguous(), "reduce": "sum"}),
    "segment_sum": (vecbank.segment_sum, (X[:3], CODES, 9), {}),
    "kmeans": (vecbank.kmeans, (X, 3), {"generator": 0, "weights": X[:, 0].abs()}),
    "kmeans from starts": (vecbank.kmeans, (X, 3), {"init": BOOK[:3], "metric": "cosine"}),
    "residual_quantize": (vecbank.residual_quantize, (X, BOOKS), {}),
    "residual_quantize, a list": (vecbank.residual_quantize, (X, [BOOK, BOOK[:4]]), {"beam": 2}),
    "residual_lookup": (vecbank.residual_lookup, (CODES, [BOOK, BOOK]), {}),
    "sparse_encode": (vecbank.sparse_encode, (X, BOOK, BOOK[:, 0], 3), {"allowed": torch.arange(9) > 1}),
    "sparse_encode, scored": (
        vecbank.sparse_encode,
        (X[:3], BOOK, None, CODES[:, 0].clamp(1, 4)),
        {"score": BOOK[:, 1].abs()},
    ),
    "sparse_encode_batch": (vecbank.sparse_encode_batch, (X, BOOK, BOOK[:, 0], 2), {}),
    "sparse_encode_threshold": (vecbank.sparse_encode_threshold, (X, BOOK, None, BOOK[:, 0].abs()), {}),
    "sparse_encode_norm": (vecbank.sparse_encode_norm, (X, BOOK, None, BOOK[:, 0].abs() + 1), {}),
    "sparse_decode": (vecbank.sparse_decode, (*SPARSE, BOOK), {"bias": X[0]}),
    "firing_counts": (vecbank.firing_counts, (SPARSE[1], 9), {"values": SPARSE[0]}),
    "sparse.scores": (vecbank.sparse.scores, (CODES.clamp_max(5), BOOK[0], DOCUMENTS), {}),
    "sparse.topk": (
        vecbank.sparse.topk,
        (CODES.clamp_max(5), X[:3, :2].contiguous(), DOCUMENTS, 12),
        {"allowed": torch.arange(9) > 2, "pad": True},
    ),
    "maxsim": (vecbank.maxsim, (BOOKS, X.reshape(4, 5, 6)), {"metric": "cosine"}),
    "maxsim_topk": (
        vecbank.maxsim_topk,
        (BOOKS, X.reshape(4, 5, 6), 3),
        {"candidates": CODES.clamp_max(3)[:, [0, 1, 0]][:2], "allowed": torch.arange(4) > 0},
    ),
    "maxsim_pairs": (vecbank.maxsim_pairs, (BOOKS, X.reshape(4, 5, 6), CODES.clamp_max(3)[:2]), {}),
    "group_max": (vecbank.group_max, (X, BOOK, torch.arange(9) % 3), {"num_groups": 4}),
    "group_mean": (vecbank.group_mean, (X, BOOK, torch.tensor([0, 4, 9])), {"metric": "cosine"}),
    "pq_encode": (vecbank.pq_encode, (X, PARTS), {"rotation": torch.eye(6, dtype=torch.float64)}),
    "pq_decode": (vecbank.pq_decode, (CODES.clamp_max(4), PARTS), {"width": 5}),
    "pq_tables": (vecbank.pq_tables, (X, PARTS), {"metric": "dot"}),
    "pq_symmetric_tables": (vecbank.pq_symmetric_tables, (CODES.clamp_max(4), PARTS), {}),
    "pq_scores": (vecbank.pq_scores, (vecbank.pq_tables(X, PARTS), CODES.clamp_max(4)), {}),
    "anchors.random": (anchors.random, (X, 3), {"generator": 0}),
    "anchors.stride": (anchors.stride, (X, 3), {}),
    "anchors.stratified": (anchors.stratified, (torch.arange(20) % 3, 7), {"generator": 0}),
    "anchors.farthest_point": (anchors.farthest_point, (X, 4), {"first": 0}),
    "anchors.kmeans_centroids": (anchors.kmeans_centroids, (X, 3), {"generator": 0}),
    "anchors.kmeans_medoids": (anchors.kmeans_medoids, (X, 3), {"generator": 0}),
    "codes.pack_bits": (codes.pack_bits, (CODES.clamp_min(0), 4), {}),
    "codes.pack_bits of bools": (codes.pack_bits, (BITS,), {}),
    "codes.unpack_bits": (codes.unpack_bits, (codes.pack_bits(BITS), 6), {}),
    "codes.pack_signs": (codes.pack_signs, (X,), {"planes": 2}),
    "codes.unpack_signs": (codes.unpack_signs, (codes.pack_signs(X), 6), {}),
    "codes.bits_to_index": (codes.bits_to_index, (BITS,), {}),
    "codes.index_to_bits": (codes.index_to_bits, (CODES.clamp_min(0), 4), {}),
    "codes.scalar_quantize": (codes.scalar_quantize, (X, gauss(6, 4, dtype=torch.float64)), {}),
    "codes.scalar_lookup": (codes.scalar_lookup, (CODES.clamp_max(3), gauss(2, 4)), {}),
    "codes.round_quantize": (codes.round_quantize, (X, 0.25), {}),
    "codes.fsq_quantize": (codes.fsq_quantize, (X, [8, 5, 5, 4, 3, 2]), {}),
    "codes.fsq_lookup": (codes.fsq_lookup, (CODES, [8, 5]), {}),
    "codes.sign_quantize": (codes.sign_quantize, (X,), {}),
    "codes.sign_lookup": (codes.sign_lookup, (BITS,), {}),
    "codes.straight_through": (codes.straight_through, (X, X.round()), {}),
    "codes.bernoulli_quantize": (codes.bernoulli_quantize, (X.sigmoid(),), {"generator": 3}),
    "codes.residual_binary_quantize": (codes.residual_binary_quantize, (X, 3), {}),
    "codes.residual_binary_lookup": (codes.residual_binary_lookup, (BITS.unflatten(1, (2, 3)),), {}),
    "embedding.hash_rows": (embedding.hash_rows, (CODES, 100, 3), {}),
    "embedding.hashed_lookup": (embedding.hashed_lookup, (CODES, BOOK, 2), {}),
    "embedding.two_table_lookup": (embedding.two_table_lookup, (CODES, BOOK, BOOK), {}),
    "embedding.low_rank_lookup": (embedding.low_rank_lookup, (CODES, BOOK, X[:6]), {}),
    "embedding.row_scale": (embedding.row_scale, (BOOK, 4), {}),
    "embedding.quantize_rows": (embedding.quantize_rows, (BOOK, 4), {}),
    "embedding.integer_lookup": (embedding.integer_lookup, (CODES, ROWS, 6, 8), {}),
    "embedding.fake_integer_lookup": (embedding.fake_integer_lookup, (CODES, BOOK, ROWS.scale, 8), {}),
    "embedding.coded_lookup": (embedding.coded_lookup, (CODES, ROWS.packed[:, :1], PARTS, 2), {}),
    "embedding.prune_rows": (embedding.prune_rows, (BOOK, BOOK[:, 0] > 0), {}),
    "embedding.pruned_lookup": (embedding.pruned_lookup, (CODES, PRUNED), {}),
    "embedding.ragged_rows": (embedding.ragged_rows, (BOOK, torch.arange(9) % 2, BOOK[:2] > 0), {}),
    "embedding.ragged_lookup": (embedding.ragged_lookup, (CODES, RAGGED), {}),
}


def in_other_places(array: np.ndarray, step: int) -> np.ndarray:
    """The same numbers, read backwards or in steps."""
    wide = np.zeros([n * abs(step) for n in array.shape], array.dtype)
    view = wide[tuple(slice(None, None, step) for _ in array.shape)]
    view[...] = array
    return view


def unaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": np.array,
    "read-only": read_only,
    "Fortran": np.asfortranarray,
    "steps": lambda a: in_other_places(a, 2),
    "backwards": lambda a: in_other_places(a, -1),
    "byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": unaligned,
}


def strided(value: Any, layout: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Tensors laid out so: torch's own sums depend on it."""
    return _mapped(value, lambda t: torch.from_numpy(layout(t.numpy())))


def arrays(value: Any, layout: Callable[[np.ndarray], np.ndarray] = np.array) -> Any:
    """Arrays in place of the tensors in an argument."""
    return _mapped(value, lambda t: layout(t.numpy()))


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        items = [_mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def assert_arrays(got: Any, want: Any) -> None:
    """Arrays that own their memory, of the dtypes and with the numbers of tensors."""
    assert type(got) is type(want) or isinstance(want, Tensor)
    if isinstance(want, Tensor):
        assert type(got) is np.ndarray and got.flags.writeable
        assert got.dtype == want.numpy().dtype
        np.testing.assert_array_equal(got, want.numpy(), strict=True)
    elif isinstance(want, tuple):
        for g, w in zip(got, want, strict=True):
            assert_arrays(g, w)
    else:
        assert got == want


def test_every_public_function_is_here() -> None:
    named = {name.partition(",")[0].partition(" ")[0] for name in CALLS}
    for module, prefix in ((vecbank, ""), (anchors, "anchors."), (codes, "codes."), (embedding, "embedding.")):
        for name, _ in inspect.getmembers(module, inspect.isfunction):
            elsewhere = ("check", "packed_bytes", "stored_bytes", "pq_train", "interval_train", "merge_topk", "whiten")
            if name in module.__all__ and name not in elsewhere:
                assert prefix + name in named, name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_values_are_those_of_tensors(name: str, layout: str) -> None:
    function, args, options = CALLS[name]
    same = LAYOUTS[layout] if layout in ("Fortran", "steps") else np.array
    want = function(*strided(args, same), **{key: strided(value, same) for key, value in options.items()})
    args = arrays(args, LAYOUTS[layout])
    options = {key: arrays(value, LAYOUTS[layout]) for key, value in options.items()}
    kept = pickle.dumps((args, options))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = function(*args, **options)
    assert_arrays(got, want)
    assert pickle.dumps((args, options)) == kept  # nothing has been written into them


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes(dtype: Any) -> None:
    x, book = X.numpy().astype(dtype), BOOK.numpy().astype(dtype)
    there = torch.from_numpy(x), torch.from_numpy(book)
    for function in (vecbank.project, vecbank.nearest, vecbank.quantize, vecbank.quantize_train):
        assert_arrays(function(x, book), function(*there))
    assert_arrays(vecbank.topk(x, book, 2), vecbank.topk(*there, 2))
    assert_arrays(vecbank.kmeans(x, 3, generator=0), vecbank.kmeans(there[0], 3, generator=0))
    assert vecbank.project(x, book, out_dtype=np.float64).dtype == np.float64
    assert vecbank.project(x, book, out_dtype=np.dtype("float32")).dtype == np.float32
    codec = vecbank.pq_train(x, 2, 2, generator=0)
    assert_arrays(codec.encode(x), vecbank.pq_train(there[0], 2, 2, generator=0).encode(there[0]))


def test_results_do_not_live_in_memory_of_the_caller() -> None:
    """A result that would be the argument itself is a copy of it: the argument may be read-only, a file for one."""
    x = read_only(X.numpy())
    found = codes.straight_through(x, x)
    assert not np.shares_memory(found, x)
    found[:] = 0
    assert x.any()


def test_memory_maps(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    for mode in ("r", "r+", "c"):
        x = np.load(tmp_path / "x.npy", mmap_mode=mode)
        assert_arrays(vecbank.nearest(x, Bank(x, "l2")), vecbank.nearest(X, X))


@pytest.mark.parametrize("made_of", ["tensor", "array"])
def test_a_bank_goes_with_either_kind(made_of: str) -> None:
    vectors = BOOK if made_of == "tensor" else read_only(BOOK.numpy())
    bank = Bank(vectors, "dot", bias=BOOK[:, 0] if made_of == "tensor" else BOOK[:, 0].numpy())
    assert isinstance(bank.vectors, Tensor) and isinstance(bank.bias, Tensor)
    x, plain = X.numpy(), Bank(vectors, "l2")
    assert_arrays(bank.topk(x, 3), bank.topk(X, 3))
    assert_arrays(bank.project(x), bank.project(X))
    assert_arrays(vecbank.sparse_encode(x, bank, None, 3), vecbank.sparse_encode(X, bank, None, 3))
    for method in (plain.project, plain.nearest, plain.quantize):
        assert_arrays(method(x), method(X))
        assert isinstance(tuple(method(X))[0], Tensor)
    assert_arrays(plain.lookup(CODES.numpy()), plain.lookup(CODES))
    assert_arrays(vecbank.residual_quantize(x, [plain, plain]), vecbank.residual_quantize(X, [plain, plain]))
    learnable = Bank(vectors, "l2", learnable=True)
    assert_arrays(learnable.nearest(x), plain.nearest(X))  # without a gradient, whatever the bank asks for


def test_update_takes_arrays() -> None:
    source = BOOK.numpy().copy()
    bank = Bank(source, "l2")
    assert bank.update_(np.array([7, 1]), X[:2].numpy()) is bank
    assert torch.equal(bank.vectors[[7, 1]], X[:2])
    np.testing.assert_array_equal(source, BOOK.numpy())
    with pytest.raises(TypeError, match="vectors is a torch tensor and rows a numpy array"):
        bank.update_(np.array([7, 1]), X[:2])


def test_a_codec_goes_with_either_kind() -> None:
    x = X.numpy()
    codec = vecbank.pq_train(x, 2, 2, rotation=True, generator=0)
    assert isinstance(codec.codebooks, Tensor) and isinstance(codec.rotation, Tensor)
    made = ProductCodec(codec.codebooks.numpy(), np.int64(6), codec.rotation.numpy())
    for packed in (False, True):
        found = codec.encode(X, packed=packed)
        for one in (codec, made):
            assert_arrays(one.encode(x, packed=packed), found)
            assert_arrays(one.decode(found.numpy()), codec.decode(found))
            assert_arrays(one.symmetric_tables(found.numpy()), codec.symmetric_tables(found))
    assert_arrays(made.tables(x), codec.tables(X))


MIXED: dict[str, tuple[Callable[[], Any], str]] = {
    "bank": (lambda: vecbank.topk(X, BOOK.numpy(), 3), "x is a torch tensor and bank a numpy array"),
    "x": (lambda: vecbank.topk(X.numpy(), BOOK, 3), "bank is a torch tensor and x a numpy array"),
    "mask": (
        lambda: vecbank.topk(X, Bank(BOOK), 3, allowed=np.ones(9, bool)),
        "x is a torch tensor and allowed a numpy",
    ),
    "parameter": (lambda: vecbank.nearest(X.numpy(), torch.nn.Parameter(BOOK)), "bank is a torch tensor and x a"),
    "weights": (lambda: vecbank.lookup(CODES.numpy(), BOOK.numpy(), X[:3, :2]), "weights is a torch tensor"),
    "books": (lambda: vecbank.residual_quantize(X.numpy(), [BOOK.numpy(), BOOK]), "books is a torch tensor and x"),
    "books of arrays": (lambda: vecbank.residual_quantize(X, [BOOK.numpy()] * 2), "books must be a torch.Tensor"),
    "bias": (lambda: Bank(BOOK.numpy(), "dot", bias=BOOK[:, 0]), "bias is a torch tensor and vectors a numpy array"),
    "init": (lambda: vecbank.kmeans(X.numpy(), 3, init=BOOK[:3]), "init is a torch tensor and x a numpy array"),
    "rows": (lambda: embedding.pruned_lookup(CODES.numpy(), PRUNED), "rows is a torch tensor and ids a numpy array"),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_tensor_beside_an_array_is_refused(name: str) -> None:
    call, message = MIXED[name]
    with pytest.raises(TypeError, match=message):
        call()


def test_other_arrays_are_refused() -> None:
    x, book = X.numpy(), BOOK.numpy()
    for dtype in ("object", "<U32", "complex128", "longdouble", "datetime64[s]"):
        with pytest.raises(TypeError) as caught:
            vecbank.project(x.astype(np.int64).astype(dtype), book)
        assert str(caught.value).startswith("x must hold floats") and str(np.dtype(dtype)) in str(caught.value)
    for wrong in (np.ma.masked_array(x), x.tolist()):  # the mask would be lost
        with pytest.raises(TypeError, match=f"^x must be a torch.Tensor, got {type(wrong).__name__}"):
            vecbank.project(wrong, book)
    with pytest.raises(TypeError, match=r"x must be float32.* got torch.int64"):
        vecbank.project(x.astype(np.int64), book)
    with pytest.raises(TypeError, match="float32 and bank torch.float64"):
        vecbank.project(x.astype(np.float32), book)
    with pytest.raises(TypeError, match="bfloat16, which numpy does not have"):
        vecbank.lookup(CODES.numpy(), Bank(BOOK.bfloat16()))


INTEGERS: tuple[Callable[[Any], Any], ...] = (np.int64, np.uint8, np.array, torch.tensor)
NUMBERS: dict[str, Callable[[Any], Any]] = {
    "topk": lambda k: vecbank.topk(X, BOOK, k),
    "Bank.topk": lambda k: Bank(BOOK, "l2").topk(X, k=k),
    "segment_sum": lambda k: vecbank.segment_sum(X[:1], torch.tensor([1]), k),
    "firing_counts": lambda k: vecbank.firing_counts(torch.tensor([1]), k),
    "kmeans": lambda k: vecbank.kmeans(X, k, iterations=k, restarts=k, batch_size=k, generator=k),
    "pq_train": lambda k: vecbank.pq_train(X, k, k, iterations=k, samples_per_code=k, generator=k),
    "residual_quantize": lambda k: vecbank.residual_quantize(X, BOOK, "l2", num_stages=2, beam=k),
    "sparse_encode": lambda k: vecbank.sparse_encode(X, BOOK, None, k),
    "sparse_encode_batch": lambda k: vecbank.sparse_encode_batch(X, BOOK, None, k, max_k=k),
    "sparse_encode_threshold": lambda k: vecbank.sparse_encode_threshold(X, BOOK, None, max_k=k),
    "sparse_encode_norm": lambda k: vecbank.sparse_encode_norm(X, BOOK, None, BOOK[:, 0].abs(), max_k=k),
    "pack_bits": lambda k: codes.pack_bits(BITS.long(), k),
    "unpack_bits": lambda k: codes.unpack_bits(codes.pack_bits(BITS[:, :4].long(), k), 4, k),
    "fsq_quantize": lambda k: codes.fsq_quantize(X, [k] * 6),
    "residual_binary_quantize": lambda k: codes.residual_binary_quantize(X, k),
    "hash_rows": lambda k: embedding.hash_rows(CODES, k, k, seed=k),
    "quantize_rows": lambda k: embedding.quantize_rows(BOOK, k),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_integers_of_any_kind(name: str) -> None:
    call = NUMBERS[name]
    want = call(2)
    for kind in INTEGERS:
        torch.testing.assert_close(_plain(call(kind(2))), _plain(want), rtol=0, atol=0, equal_nan=True)
    for wrong in (True, 2.0, np.float32(2), np.True_, torch.tensor(2.0), torch.tensor(True), "2", None, [2]):
        if (wrong is None and name in ("sparse_encode_threshold", "sparse_encode_norm")) or (
            wrong == [2] and name.endswith("pack_bits")
        ):
            continue  # no limit; a list of bits
        with pytest.raises(TypeError, match="must be an int|a seed"):
            call(wrong)


def _plain(value: Any) -> Any:
    return (value.codebooks,) if isinstance(value, ProductCodec) else value


def test_an_array_of_one_number_is_no_number() -> None:
    for k in (np.array([2]), torch.tensor([2])):
        with pytest.raises(TypeError, match="^k must be an int|k a numpy array"):
            vecbank.topk(X, BOOK, k)


def test_numbers_of_numpy_leave_the_gradient_alone() -> None:
    x = X.clone().requires_grad_()
    vecbank.topk(x, BOOK, np.array(2)).values.sum().backward()
    assert x.grad is not None and bool(x.grad.any())


def test_a_seed_is_a_generator() -> None:
    for call in (
        lambda g: vecbank.kmeans(X, 3, generator=g).centroids,
        lambda g: vecbank.pq_train(X, 2, 2, generator=g).codebooks,
        lambda g: codes.bernoulli_quantize(X.sigmoid(), g).codes,
    ):
        assert torch.equal(call(5), call(seeded(5))) and torch.equal(call(np.int64(5)), call(seeded(5)))
        with pytest.raises(TypeError, match="generator must be a torch.Generator, a seed"):
            call(np.random.default_rng(0))
        with pytest.raises(ValueError, match="generator must be a seed of 64 bits"):
            call(2**64)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64"])
def test_codes_of_any_integer_dtype(dtype: str) -> None:
    given = CODES if dtype.startswith("i") else CODES.clamp_min(0)
    narrow = given.to(getattr(torch, dtype))
    calls: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda c: vecbank.lookup(c, BOOK),
        lambda c: Bank(BOOK).lookup(c, reduce="sum"),
        lambda c: vecbank.segment_sum(X[:3], c, 9),
        lambda c: vecbank.firing_counts(c, 9),
        lambda c: vecbank.sparse_decode(X[:3, :2].contiguous(), c, BOOK),
    )
    for call in calls:
        assert torch.equal(call(narrow), call(given))
    if dtype == "uint64":  # -1 would be a zero row
        with pytest.raises(IndexError, match="codes must lie below 2"):
            vecbank.lookup(np.array([2**64 - 1], np.uint64), Bank(BOOK))


def test_compressed_embeddings_take_narrow_ids() -> None:
    module = vecbank.nn.CompressedEmbedding(9, 6)
    assert torch.equal(module(CODES.int()), module(CODES))


def test_functions_keep_their_names_and_signatures() -> None:
    parameters = inspect.signature(vecbank.topk).parameters
    assert list(parameters)[:5] == ["x", "bank", "k", "metric", "allowed"]
    assert (vecbank.topk.__name__, vecbank.topk.__module__) == ("topk", "vecbank.functional")
    assert pickle.loads(pickle.dumps(vecbank.topk)) is vecbank.topk
    assert list(inspect.signature(Bank).parameters) == ["vectors", "metric", "learnable", "bias", "screen", "head"]
