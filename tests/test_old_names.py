"""Old names: each gives what the new one gives, with one FutureWarning that says the new one.

To add one: a line in `KEYWORDS`, `ATTRIBUTES` or `MODULES`. What was saved under old names is at the end.
"""

from __future__ import annotations

import importlib
import io
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same, gauss, seeded
from torch import Tensor

import vecbank
from vecbank import Bank, ProductCodec, nn, pq, residual, sparse
from vecbank.embedding import coded_lookup

X, BANK, CODEBOOKS = gauss(20, 6), gauss(9, 6, seed=2), gauss(2, 5, 3, seed=1)
ROWS = BANK[:, 0] > 0
CODES = pq.encode(X, CODEBOOKS)
PACKED = ProductCodec(CODEBOOKS, 6).encode(X, packed=True)


def features(**options: Any) -> Tensor:
    return nn.CodebookFeatures(6, 9, generator=seeded(), **options)(X).loss.detach()


# A call, its keywords as they are now, and the one that had another name: (function, arguments, keywords, old, new).
KEYWORDS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], str, str]] = {
    "pq.encode": (pq.encode, (X,), {"codebooks": CODEBOOKS}, "books", "codebooks"),
    "pq_encode": (vecbank.pq_encode, (X,), {"codebooks": CODEBOOKS}, "books", "codebooks"),
    "pq.encode, arrays": (
        lambda **options: torch.from_numpy(pq.encode(X.numpy(), **options)),
        (),
        {"codebooks": CODEBOOKS.numpy()},
        "books",
        "codebooks",
    ),
    "pq.decode": (pq.decode, (CODES,), {"codebooks": CODEBOOKS, "width": 5}, "books", "codebooks"),
    "pq.tables": (pq.tables, (X,), {"codebooks": CODEBOOKS}, "books", "codebooks"),
    "pq.symmetric_tables": (pq.symmetric_tables, (CODES,), {"codebooks": CODEBOOKS}, "books", "codebooks"),
    "ProductCodec": (
        lambda **options: ProductCodec(**options).tables(X),
        (),
        {"codebooks": CODEBOOKS, "width": 6},
        "books",
        "codebooks",
    ),
    "embedding.coded_lookup": (
        coded_lookup,
        (CODES[:, 0], PACKED),
        {"codebooks": CODEBOOKS, "bits": 3},
        "books",
        "codebooks",
    ),
    "CodebookFeatures": (features, (), {"codebook_weight": 0.5}, "book_weight", "codebook_weight"),
    "topk": (vecbank.topk, (X, BANK, 2), {"allowed": ROWS}, "mask", "allowed"),
    "Bank.topk": (Bank(BANK, "l2").topk, (X, 2), {"allowed": ROWS}, "mask", "allowed"),
    "quantize_train": (vecbank.quantize_train, (X, BANK), {"valid": X[:, 0] > 0}, "mask", "valid"),
    "sparse.encode": (sparse.encode, (X, BANK), {"k": 2, "allowed": ROWS}, "mask", "allowed"),
    "residual.quantize": (residual.quantize, (X,), {"codebooks": [BANK, BANK]}, "books", "codebooks"),
    "residual.lookup": (residual.lookup, (CODES,), {"codebooks": [BANK, BANK]}, "books", "codebooks"),
}

# (object, old name, new name)
ATTRIBUTES: dict[str, tuple[Any, str, str]] = {
    "ProductCodec": (ProductCodec(CODEBOOKS, 6), "books", "codebooks"),
    "CodebookFeatures": (nn.CodebookFeatures(6, 9), "book_weight", "codebook_weight"),
    "KMeans": (vecbank.kmeans(X, 3, generator=0), "centres", "centroids"),
}

# (module, old name, new name)
MODULES: list[tuple[str, str, str]] = [
    *(
        ("vecbank.pq", f"pq_{name}", name)
        for name in ("encode", "decode", "tables", "symmetric_tables", "scores", "train")
    ),
    *(
        ("vecbank.sparse", f"sparse_{name}", name)
        for name in ("decode", "encode", "encode_batch", "encode_norm", "encode_threshold")
    ),
    ("vecbank.residual", "residual_quantize", "quantize"),
    ("vecbank.residual", "residual_lookup", "lookup"),
    ("vecbank.anchors", "kmeans_centres", "kmeans_centroids"),
    ("vecbank.nn.anchors", "kmeans_centres", "kmeans_centroids"),
]


def warned(call: Callable[[], Any], new: str) -> Any:
    """What a call gives, where it warns once and names the new name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    assert [w.category for w in caught] == [FutureWarning], [str(w.message) for w in caught]
    assert re.search(rf"is now ([\w.]+\.)?{new};", str(caught[0].message))
    assert caught[0].filename == __file__
    return result


@pytest.fixture(autouse=True)
def new_names_are_silent() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        yield


@pytest.mark.parametrize("row", KEYWORDS)
def test_keywords(row: str) -> None:
    function, arguments, options, old, new = KEYWORDS[row]
    want = function(*arguments, **options)
    former = {old if name == new else name: value for name, value in options.items()}
    assert_same(warned(lambda: function(*arguments, **former), new), want)
    with pytest.raises(TypeError, match=f"got {old} and {new}"):
        function(*arguments, **options, **{old: options[new]})


@pytest.mark.parametrize("row", ATTRIBUTES)
def test_attributes(row: str) -> None:
    value, old, new = ATTRIBUTES[row]
    assert warned(lambda: getattr(value, old), new) is getattr(value, new)


def test_an_attribute_is_set_by_its_old_name() -> None:
    module = nn.CodebookFeatures(6, 9)
    warned(lambda: setattr(module, "book_weight", 0.25), "codebook_weight")
    assert module.codebook_weight == 0.25


@pytest.mark.parametrize(("module", "old", "new"), MODULES)
def test_functions(module: str, old: str, new: str) -> None:
    where = importlib.import_module(module)
    assert warned(lambda: getattr(where, old), new) is getattr(where, new)
    with pytest.raises(AttributeError, match=f"{old}_of_no_release"):
        getattr(where, f"{old}_of_no_release")


def test_the_module_of_kmeans() -> None:
    def imported() -> Any:
        from vecbank.kmeans import kmeans

        return kmeans

    assert warned(imported, "vecbank.cluster") is vecbank.cluster.kmeans is vecbank.kmeans


# ---- What was saved under old names ----


@pytest.mark.parametrize("form", ["pickle", "torch.save"])
def test_a_codec_saved_with_books(form: str) -> None:
    codec = ProductCodec(CODEBOOKS, 6, torch.linalg.qr(gauss(6, 6)).Q)
    former = object.__new__(ProductCodec)  # a dataclass is saved as its fields
    vars(former).update(books=codec.codebooks, width=6, rotation=codec.rotation)
    if form == "pickle":
        loaded = pickle.loads(pickle.dumps(former))
    else:
        file = io.BytesIO()
        torch.save(former, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
    assert vars(loaded).keys() == vars(codec).keys()
    assert_same(loaded.tables(X), codec.tables(X))


def test_a_module_saved_with_its_book_weight() -> None:
    module = nn.CodebookFeatures(6, 9, codebook_weight=0.5, generator=seeded())
    former = nn.CodebookFeatures(6, 9, generator=seeded())
    vars(former)["book_weight"] = 0.5
    del vars(former)["codebook_weight"]
    loaded = pickle.loads(pickle.dumps(former))
    assert torch.equal(loaded(X).loss, module(X).loss)


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (lambda: nn.ProductQuantizer(6, 2, 4), ["books", "sizes", "sums"]),
        (lambda: nn.ProductQuantizer(6, 2, 4, decay=None), ["books"]),
        (lambda: nn.CodebookFeatures(6, 9), ["book", "enabled", "counts", "inputs"]),
        (lambda: nn.CompressedEmbedding(30, 6, "product", bits=2), ["table", "books"]),
    ],
)
def test_states_keep_their_names(made: Callable[[], torch.nn.Module], names: list[str]) -> None:
    module = made()
    assert list(module.state_dict()) == names
    attribute = next(name for name in ("codebooks", "codebook") if hasattr(module, name))
    entry = getattr(module, "books" if "books" in names else "book")
    assert getattr(module, attribute) is entry
    if isinstance(entry, torch.nn.Parameter):
        setattr(module, attribute, torch.nn.Parameter(entry.detach() + 1))
        assert list(module.state_dict()) == names
        assert torch.equal(getattr(module, attribute), entry + 1)
