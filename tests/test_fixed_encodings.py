"""Fixed-dimensional encodings are what their docstring says, bucket by bucket; and candidates found by them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Target, assert_same, gauss, seeded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import vecbank
from vecbank import Bank, TokenSets, _fixed_encodings
from vecbank.multivector import FixedEncoding, encoded_topk

D = 6
SIZES = [3, 0, 1, 9, 20, 0]
SETS = TokenSets.of([gauss(n, D, seed=n) for n in SIZES])
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one bucket": {"bits": 0},
    "many buckets": {"bits": 6},
    "projected": {"projection": 3},
    "sketched": {"final": 17},
    "both": {"projection": 4, "final": 9, "bits": 3},
    "unit tokens": {"metric": "cosine", "bits": 2},
}


def made(options: dict[str, Any], seed: int = 0) -> FixedEncoding:
    return FixedEncoding(D, **{"repetitions": 5, **options}, generator=seed)


def restated(encoding: FixedEncoding, sets: TokenSets, mean: bool) -> Tensor:
    """Every set, repetition and bucket by itself, in float64."""
    encoded = []
    for rows in sets.rows.double().tensor_split(sets.offsets[1:-1]):
        tokens = torch.nn.functional.normalize(rows, eps=1e-8) if encoding.metric == "cosine" else rows
        blocks = []
        for r in range(encoding.repetitions):
            planes = encoding.planes.double()[r * encoding.bits :][: encoding.bits]
            signs = (tokens @ planes.T > 0).long()
            moved = tokens
            if encoding.projections is not None and encoding.projection is not None:
                moved = tokens @ encoding.projections.double()[r * encoding.projection :][: encoding.projection].T
            for bucket in range(2**encoding.bits):
                code = bucket ^ (bucket >> 1)
                own = torch.tensor([code >> (encoding.bits - 1 - j) & 1 for j in range(encoding.bits)])
                differ = (signs != own).sum(1)
                here = moved[differ == 0]
                if len(here) or not mean or not len(tokens):
                    blocks.append(here.sum(0) / (max(len(here), 1) if mean else encoding.repetitions))
                else:
                    blocks.append(moved[min(range(len(tokens)), key=lambda t: (int(differ[t]), t))])
        whole = torch.cat(blocks)
        if encoding.places is not None and encoding.flips is not None:
            sums = [(whole * encoding.flips)[encoding.places == i].sum() for i in range(encoding.size)]
            whole = torch.stack(sums)
        encoded.append(whole)
    return torch.stack(encoded)


@pytest.mark.parametrize("piece", [1 << 22, 100])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_bucket(name: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fixed_encodings, "_PIECE", piece)
    encoding = made(OPTIONS[name])
    for encode, mean in ((encoding.queries, False), (encoding.documents, True)):
        got, want = encode(SETS), restated(encoding, SETS, mean)
        assert got.dtype == torch.float32 and got.shape == (len(SIZES), encoding.size)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
        wide = encode(TokenSets(SETS.rows.double(), SETS.offsets))
        assert wide.dtype == torch.float64
        torch.testing.assert_close(wide, want, rtol=1e-12, atol=1e-12)
        assert not got[[1, 5]].any()  # empty sets


@pytest.mark.parametrize("name", OPTIONS)
def test_forms_of_sets(name: str) -> None:
    encoding, dense = made(OPTIONS[name]), gauss(4, 7, D)
    for encode in (encoding.queries, encoding.documents):
        want = encode(TokenSets.padded(dense))
        assert_same(encode(dense), want)
        assert_same(encode(tuple(TokenSets.padded(dense))), want)
        np.testing.assert_array_equal(encode(dense.numpy()), want.numpy(), strict=True)
        for dtype in (torch.float16, torch.bfloat16):
            assert_same(encode(dense.to(dtype)), encode(dense.to(dtype).float()))
        assert encode(dense[:0]).shape == (0, encoding.size) and not encode(dense[:, :0]).any()


def near_planes(encoding: FixedEncoding, count: int) -> Tensor:
    """Tokens that lie in a plane, but for what rounding left."""
    tokens = gauss(count, encoding.width, seed=5).double()
    plane = encoding.planes.double()[torch.arange(count) % len(encoding.planes)]
    return (tokens - (tokens * plane).sum(1, keepdim=True) / plane.square().sum(1, keepdim=True) * plane).float()


def test_buckets_are_those_of_the_float64_score(target: Target) -> None:
    """Whatever the instruction set and the other tokens are."""
    encoding = FixedEncoding(64, 4, 6, generator=1).to(target.device)
    tokens = near_planes(encoding.cpu(), 500)
    encoding, tokens = encoding.to(target.device), tokens.to(target.device)
    scores = vecbank.score_pairs(tokens, encoding.planes, torch.arange(24, device=tokens.device).expand(500, -1))
    assert bool((scores.abs() < 1e-6).any(1).all()), "of every token a float32 sum leaves a sign in doubt"
    weights = torch.tensor([8, 4, 2, 1], device=tokens.device)
    want = ((scores > 0).view(500, 6, 4) * weights).sum(2)
    assert torch.equal(encoding._signs_of(tokens), want)
    assert torch.equal(encoding._signs_of(tokens.flip(0)).flip(0), want)
    assert torch.equal(torch.cat([encoding._signs_of(row) for row in tokens[:40].split(1)]), want[:40])


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30, 3e38])
def test_buckets_at_both_ends_of_the_range(scale: float) -> None:
    encoding, tokens = made({}), gauss(50, D)
    tokens = tokens / tokens.abs().max() * scale
    wide = FixedEncoding._signs_of(copy.deepcopy(encoding).double(), tokens.double())
    assert torch.equal(encoding._signs_of(tokens), wide)


def test_of_equally_near_tokens_the_first_fills() -> None:
    encoding = FixedEncoding(1, bits=3, repetitions=1)
    with torch.no_grad():
        encoding.planes.copy_(torch.tensor([[1.0], [1.0], [1.0]]))
    # Signs are +++ or ---: the buckets of codes 000 001 011 010 110 111 101 100, in this order.
    codes = [0, 1, 3, 2, 6, 7, 5, 4]
    assert [code ^ (code >> 1) for code in range(8)] == codes
    mixed = encoding.documents(torch.tensor([[[5.0], [-3.0], [7.0], [-1.0]]]))[0]
    assert mixed.tolist() == [-2.0 if code == 0 else 6.0 if code == 7 else 5.0 if c > 1 else -3.0 for code, c in
                              ((code, code.bit_count()) for code in codes)]  # fmt: skip
    assert encoding.documents(torch.tensor([[[5.0], [7.0]]]))[0].tolist() == [6.0 if c == 7 else 5.0 for c in codes]


def test_the_dot_product_stands_for_maxsim() -> None:
    """Exactly so for documents of one token; from below, and better with more buckets and repetitions, for others."""
    queries, single = gauss(20, 5, 16, seed=1), gauss(30, 1, 16, seed=2)
    encoding = FixedEncoding(16, 3, 7)
    true = vecbank.maxsim(queries, single)
    torch.testing.assert_close(encoding.queries(queries) @ encoding.documents(single).T, true, rtol=1e-5, atol=1e-5)
    documents = gauss(200, 12, 16, seed=3)
    true, correlations = vecbank.maxsim(queries, documents), []
    for bits, repetitions in ((0, 1), (2, 5), (4, 20), (6, 80)):
        encoding = FixedEncoding(16, bits, repetitions)
        score = encoding.queries(queries) @ encoding.documents(documents).T
        assert bool((score <= true + 1e-4).all())
        correlations.append(float(torch.corrcoef(torch.stack([score.flatten(), true.flatten()]))[0, 1]))
    assert correlations == sorted(correlations) and correlations[-1] > 0.7


@pytest.mark.parametrize("options", [{"projection": 4}, {"final": 40}, {"projection": 8, "final": 64}], ids=str)
def test_projections_and_sketches_keep_dot_products_on_average(options: dict[str, int]) -> None:
    """Of 300 draws the mean is within five of its standard deviations."""
    query, document = gauss(1, 4, D, seed=1), gauss(1, 5, D, seed=2)
    off = []
    for seed in range(300):
        encoding, whole = (FixedEncoding(D, 2, 2, **given, generator=seed) for given in (options, {}))
        assert torch.equal(encoding.planes, whole.planes)
        score, true = ((e.queries(query) * e.documents(document)).sum() for e in (encoding, whole))
        off.append(score - true)
    error = torch.stack(off)
    assert float(error.std()) > 0.01 and abs(float(error.mean())) < 5 * float(error.std()) / 300**0.5


def test_what_was_drawn() -> None:
    for name, options in OPTIONS.items():
        one, two, other = made(options), made(options), made(options, seed=1)
        want = one.documents(SETS)
        assert_same(two.documents(SETS), want)
        if name != "one bucket":
            assert not torch.equal(other.documents(SETS), want)
        other.load_state_dict(one.state_dict())
        for same in (other, copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            assert_same(same.documents(SETS), want)
        assert all(type(t) is Tensor for t in one.state_dict().values()) and not list(one.parameters())
    state = torch.get_rng_state()
    FixedEncoding(D)
    assert torch.equal(torch.get_rng_state(), state)
    drawn = [FixedEncoding(D, generator=g).planes for g in (seeded(3), 3, seeded(4))]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    torch.manual_seed(9)
    first = FixedEncoding(D, generator=None)
    assert not torch.equal(first.planes, FixedEncoding(D, generator=None).planes)


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that was made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor) and t.untyped_storage().nbytes() >= t.numel() * t.element_size():
                self.elements = max(self.elements, t.numel())
        return out


def test_nothing_large_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1.6 million coordinates before the sketch no more exist at a time than a piece has, and a set more."""
    monkeypatch.setattr(_fixed_encodings, "_PIECE", 100_000)
    sets, encoding = gauss(200, 16, 32), FixedEncoding(32, 6, 4, final=64)
    for encode in (encoding.queries, encoding.documents):
        with Largest() as seen:
            encode(sets)
        assert 200 * 64 <= seen.elements <= 100_000 + 2 * (4 * 64 * 32)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = made({**OPTIONS[name], "repetitions": 2, "bits": min(2, OPTIONS[name].get("bits", 2))})
    rows = gauss(9, D, dtype=torch.float64).requires_grad_()
    offsets = torch.tensor([0, 4, 4, 9])
    for piece in (1 << 22, 10):
        monkeypatch.setattr(_fixed_encodings, "_PIECE", piece)
        for encode in (encoding.queries, encoding.documents):
            assert torch.autograd.gradcheck(lambda r, encode=encode: encode((r, offsets)), (rows,), fast_mode=True)


def random_sets(count: int, d: int, seed: int) -> TokenSets:
    sizes = torch.randint(0, 9, (count,), generator=seeded(seed))
    return TokenSets(gauss(int(sizes.sum()), d, seed=seed), torch.nn.functional.pad(sizes.cumsum(0), (1, 0)))


QUERIES, DOCUMENTS = random_sets(12, 16, 1), random_sets(60, 16, 2)
ENCODING = FixedEncoding(16, 3, 5)
ENCODED = ENCODING.documents(DOCUMENTS)


def test_all_documents_as_candidates_is_exact() -> None:
    for encoding in (ENCODING, FixedEncoding(16, 2, 1, projection=2, final=3), FixedEncoding(16, metric="cosine")):
        encoded = encoding.documents(DOCUMENTS)
        for k in (1, 7, 60):
            want = tuple(vecbank.maxsim_topk(QUERIES, DOCUMENTS, k, encoding.metric))
            assert_same(tuple(encoded_topk(QUERIES, DOCUMENTS, encoded, encoding, k)), want)
            assert_same(tuple(encoded_topk(QUERIES, DOCUMENTS, encoded, encoding, k, candidates=10**6)), want)


@pytest.mark.parametrize("count", [5, 20])
def test_candidates_are_those_of_the_dot_products(count: int) -> None:
    held = DOCUMENTS.offsets.diff() > 0
    assert not bool(held.all()) and bool((QUERIES.offsets.diff() == 0).any())
    mask = torch.rand(12, 60, generator=seeded(0)) > 0.5
    for allowed in (None, mask, mask[0], vecbank.Allowed.mask(mask)):
        dense = held if allowed is None else held & (allowed if isinstance(allowed, Tensor) else mask)
        found = vecbank.topk(ENCODING.queries(QUERIES), ENCODED, count, "dot", allowed=dense).indices
        want = tuple(vecbank.maxsim_topk(QUERIES, DOCUMENTS, 5, candidates=found))
        for encoded in (ENCODED, Bank(ENCODED, "dot")):
            got = encoded_topk(QUERIES, DOCUMENTS, encoded, ENCODING, 5, candidates=count, allowed=allowed)
            assert_same(tuple(got), want)
    half = encoded_topk(QUERIES, DOCUMENTS, ENCODED.half(), ENCODING, 5, candidates=count)
    found = vecbank.topk(ENCODING.queries(QUERIES).half(), ENCODED.half(), count, allowed=held).indices
    assert_same(tuple(half), tuple(vecbank.maxsim_topk(QUERIES, DOCUMENTS, 5, candidates=found)))


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_a_bank_of_documents_is_the_documents(metric: str) -> None:
    encoding = FixedEncoding(16, 3, 5, metric=metric)
    bank = vecbank.DocumentBank(DOCUMENTS, metric)
    encoded = encoding.documents(DOCUMENTS)
    assert_same(encoding.documents(bank), encoded)
    want = encoded_topk(QUERIES, DOCUMENTS, encoded, encoding, 5, candidates=20)
    assert_same(tuple(encoded_topk(QUERIES, bank, encoded, encoding, 5, candidates=20)), tuple(want))


def test_empty_and_nan_documents_are_no_candidates() -> None:
    """Though zeros have the largest dot product where all others are negative."""
    queries = torch.ones(2, 3, 4)
    documents = TokenSets.of(
        [torch.zeros(0, 4), -torch.ones(2, 4), torch.full((1, 4), torch.nan), -2 * torch.ones(1, 4)]
    )
    encoding = FixedEncoding(4)
    found = encoded_topk(queries, documents, encoding.documents(documents), encoding, 2, candidates=2)
    assert found.indices.tolist() == [[1, 3]] * 2 and found.values.tolist() == [[-12.0, -24.0]] * 2


def test_values_have_gradients() -> None:
    queries, documents = gauss(3, 4, 16).requires_grad_(), gauss(30, 5, 16, seed=1).requires_grad_()
    encoded = ENCODING.documents(documents.detach())
    values, indices = encoded_topk(queries, documents, encoded, ENCODING, 2, candidates=8)
    want = vecbank.maxsim_pairs(queries, documents, indices)
    assert_same(values, want)
    got, other = (torch.autograd.grad(v.square().sum(), (queries, documents)) for v in (values, want))
    assert_same(tuple(got), tuple(other))


def test_arrays() -> None:
    queries, documents = gauss(3, 4, 16).numpy(), gauss(30, 5, 16, seed=1).numpy()
    encoded = ENCODING.documents(documents)
    found = encoded_topk(queries, documents, encoded, ENCODING, 2, candidates=8)
    tensors = [torch.from_numpy(a) for a in (queries, documents, encoded)]
    want = encoded_topk(*tensors, ENCODING, 2, candidates=8)
    for got, t in zip(found, want, strict=True):
        np.testing.assert_array_equal(got, t.numpy(), strict=True)


X = gauss(2, 3, D)
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "width": (lambda: FixedEncoding(0), ValueError, "width must be at least 1, got 0"),
    "bits": (lambda: FixedEncoding(4, 17), ValueError, "bits must lie between 0 and 16, got 17"),
    "bits below 0": (lambda: FixedEncoding(4, -1), ValueError, "bits must be at least 0, got -1"),
    "repetitions": (lambda: FixedEncoding(4, 2, 0), ValueError, "repetitions must be at least 1, got 0"),
    "projection": (lambda: FixedEncoding(4, projection=0), ValueError, "projection must be at least 1, got 0"),
    "final": (lambda: FixedEncoding(4, final=2.5), TypeError, "final must be an int, got float"),
    "metric": (lambda: FixedEncoding(4, metric="l2"), ValueError, 'metric must be "dot" or "cosine", got \'l2\''),
    "generator": (lambda: FixedEncoding(4, generator="a"), TypeError, "generator must be a torch.Generator, a seed"),
    "tokens": (lambda: made({}).queries(X[..., :4]), ValueError, "queries must have tokens of width 6, got 4"),
    "one set": (lambda: made({}).documents(X[0]), ValueError, r"documents must be TokenSets, .* got a tensor \(3, 6\)"),
    "integers": (lambda: made({}).documents(X.int()), TypeError, "documents must be float32"),
    "offsets": (
        lambda: made({}).queries((X[0], torch.tensor([0, 2]))),
        ValueError,
        r"queries.offsets must lead from 0 to the number of rows 3, got 0 to 2",
    ),
    "encoding": (lambda: encoded_topk(X, X, X, "dot", 1), TypeError, "encoding must be a FixedEncoding, got str"),
    "encoded": (
        lambda: encoded_topk(QUERIES, DOCUMENTS, ENCODED[1:], ENCODING, 1),
        ValueError,
        r"encoded must have shape \(60, 640\), got \(59, 640\)",
    ),
    "k": (
        lambda: encoded_topk(QUERIES, DOCUMENTS, ENCODED, ENCODING, 61),
        ValueError,
        "k must lie between 1 and the number of documents 60, got 61",
    ),
    "candidates": (
        lambda: encoded_topk(QUERIES, DOCUMENTS, ENCODED, ENCODING, 5, candidates=4),
        ValueError,
        "candidates must be at least 5, got 4",
    ),
    "dtypes": (
        lambda: encoded_topk(X.double(), X, made({}).documents(X), made({}), 1),
        TypeError,
        "queries and documents must share a dtype",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    call, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("scale", [1e30, 1e-6, 1.0])
def test_unit_tokens_of_any_length(scale: float) -> None:
    """The squares of the longest tokens are beyond float32; by cosine their encodings are those of shorter ones."""
    encoding = made({"metric": "cosine", "bits": 2})
    rows = gauss(12, D) * 8
    for encode in (encoding.queries, encoding.documents):
        torch.testing.assert_close(encode((rows * scale).view(3, 4, D)), encode(rows.view(3, 4, D)))


def test_all_documents_are_candidates_where_encodings_overflow() -> None:
    queries, documents = gauss(2, 4, 8) * 3e4, gauss(30, 5, 8, seed=1) * 3e4
    encoding = FixedEncoding(8, repetitions=2)
    encoded = encoding.documents(documents).half()
    assert encoded.isinf().any()
    want = vecbank.maxsim_topk(queries, documents, 3)
    assert_same(tuple(encoded_topk(queries, documents, encoded, encoding, 3, candidates=30)), tuple(want))
