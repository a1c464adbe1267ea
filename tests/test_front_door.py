"""What a user meets first: namespaces, root names, Banks in every family, `allowed` and `valid`."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers import assert_same, gauss
from torch import Tensor

import vecbank
from vecbank import Bank, reference

ROOT = {
    "pq": ("encode", "decode", "tables", "symmetric_tables", "scores", "train"),
    "residual": ("quantize", "lookup"),
    "sparse": ("encode", "encode_batch", "encode_threshold", "encode_norm", "decode"),
}


@pytest.mark.parametrize(("family", "name"), [(f, n) for f, names in ROOT.items() for n in names])
def test_a_root_name_is_the_function_of_its_family(family: str, name: str) -> None:
    assert getattr(vecbank, f"{family}_{name}") is getattr(getattr(vecbank, family), name)


def test_families_are_namespaces() -> None:
    for name in ("anchors", "bits", "cluster", "codes", "embedding", "nn", "pq", "residual", "sparse", "reference"):
        assert name in vecbank.__all__ and getattr(vecbank, name).__name__ == f"vecbank.{name}"
    assert vecbank.kmeans is vecbank.cluster.kmeans and vecbank.nn.anchors is vecbank.anchors
    assert set(vecbank.__all__) <= set(dir(vecbank))


@pytest.mark.parametrize("learnable", [False, True])
def test_a_bank_that_is_called_says_what_it_has(learnable: bool) -> None:
    with pytest.raises(TypeError, match=r"bank\.project\(x\), bank\.topk\(x, k\), bank\.nearest\(x\)"):
        Bank(gauss(5, 4), "l2", learnable)(gauss(2, 4))


def test_another_metric_is_packed_at_every_call_with_one_warning() -> None:
    x, vectors = gauss(3, 4), gauss(9, 4)
    bank = Bank(vectors, "sqeuclidean")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for metric in ("l2", "sqeuclidean", "l1"):  # one pack serves the first two, and l1 has none
            assert_same(tuple(bank.topk(x, 3, metric=metric)), tuple(reference.topk(x, vectors, 3, metric)))
    with pytest.warns(UserWarning, match='"cosine" packs the vectors of this Bank at every call') as caught:
        for _ in range(3):
            assert_same(tuple(bank.topk(x, 3, metric="cosine")), tuple(reference.topk(x, vectors, 3, "cosine")))
            bank.project(x, metric="dot")
    assert [(w.category, w.filename) for w in caught] == [(UserWarning, __file__)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Bank(vectors, "l2", learnable=True).topk(x, 3, metric="dot")  # is packed at every call in any case


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint64])
def test_lookup_takes_any_integers(dtype: torch.dtype) -> None:
    bank, codes = gauss(2, 5, 3), torch.tensor([[0, 4, 2], [1, 1, 3]])
    want = torch.stack([bank[b][codes[b]] for b in range(2)])
    assert_same(vecbank.lookup(codes.to(dtype), bank), want)
    assert_same(Bank(bank, "l2").lookup(codes.to(dtype)), want)


@pytest.mark.parametrize("reduce", ["none", "sum", "mean"])
@pytest.mark.parametrize("lead", [(3,), (3, 4), (3, 2, 4), (3, 0, 4), (0, 4)], ids=str)
def test_lookup_in_batched_banks(lead: tuple[int, ...], reduce: str) -> None:
    if reduce != "none" and len(lead) == 1:
        lead = (*lead, 5)
    bank = gauss(lead[0], 6, 5).requires_grad_()
    codes = torch.randint(-1, 6, lead, generator=torch.Generator().manual_seed(3))
    weights = gauss(*lead, seed=4).requires_grad_()
    got = vecbank.lookup(codes, bank, weights, reduce=reduce)
    assert_same(got, reference.lookup(codes, bank.detach(), weights.detach(), reduce=reduce))
    grads = torch.autograd.grad(got.sum(), (bank, weights))
    want = torch.autograd.grad(reference.lookup(codes, bank, weights, reduce=reduce).sum(), (bank, weights))
    torch.testing.assert_close(grads, want)


def test_lookup_in_batched_banks_refuses() -> None:
    bank = gauss(3, 6, 5)
    for codes, kind, message in (
        (torch.zeros(2, 4, dtype=torch.int64), ValueError, r"codes must have shape \(B, ...\) for a bank \(3, 6, 5\)"),
        (torch.tensor(0), ValueError, "got a scalar"),
        (torch.full((3, 2), 6), IndexError, "codes must lie between -1 and 5"),
        (torch.full((3, 2), -2), IndexError, "codes must lie between -1 and 5"),
    ):
        with pytest.raises(kind, match=message):
            vecbank.lookup(codes, bank)
    with pytest.raises(ValueError, match=r"codes must have shape \(B, ..., k\)"):
        vecbank.lookup(torch.zeros(3, dtype=torch.int64), bank, reduce="sum")


@pytest.mark.parametrize("beam", [1, 3])
def test_residual_codes_of_banks(beam: int) -> None:
    x, codebooks = gauss(40, 6), gauss(3, 16, 6, seed=1)
    want = vecbank.residual.quantize(x, codebooks, beam=beam)
    banks = [Bank(rows, "sqeuclidean") for rows in codebooks]
    whole = Bank(codebooks, "l2")
    for given in (banks, whole, [banks[0], codebooks[1], banks[2]]):
        assert_same(tuple(vecbank.residual.quantize(x, given, beam=beam)), tuple(want))
        assert_same(vecbank.residual.lookup(want.codes, given), want.quantized)
    fewer = vecbank.residual.quantize(x, whole, num_stages=2, beam=beam)
    assert_same(fewer.codes, vecbank.residual.quantize(x, codebooks[:2], beam=beam).codes)
    whole.vectors[1] += 1.0  # seen at the next call
    assert_same(
        tuple(vecbank.residual.quantize(x, whole, beam=beam)),
        tuple(vecbank.residual.quantize(x, whole.vectors, beam=beam)),
    )


def test_residual_codes_of_a_batched_bank_in_a_compiled_program() -> None:
    x, whole = gauss(40, 6), Bank(gauss(3, 16, 6, seed=1), "l2")
    program = torch.compile(lambda x: vecbank.residual.quantize(x, whole).codes, fullgraph=True, backend="aot_eager")
    assert_same(program(x), vecbank.residual.quantize(x, whole.vectors).codes)
    whole.vectors.mul_(-1.0)
    assert_same(program(x), vecbank.residual.quantize(x, whole.vectors).codes)


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_that_do_not_count(beam: int, dtype: torch.dtype) -> None:
    x, codebooks = (
        gauss(4, 10, 6).to(dtype),
        gauss(3, 16, 6, seed=1).to(torch.float64 if dtype is torch.float64 else torch.float32),
    )
    valid = gauss(4, 10, seed=2) > 0
    x.requires_grad_()
    got = vecbank.residual.quantize(x, codebooks, beam=beam, valid=valid)
    alone = vecbank.residual.quantize(x.detach()[valid], codebooks, beam=beam)
    assert_same(got.codes[valid], alone.codes)
    assert bool((got.codes[~valid] == -1).all())
    assert_same(got.quantized[valid], alone.quantized)
    assert_same(got.quantized[~valid], x[~valid].to(codebooks.dtype))
    torch.testing.assert_close(got.losses, alone.losses)
    got.quantized.sum().backward()
    assert_same(x.grad, torch.ones_like(x))  # straight through, and unchanged rows
    with pytest.raises(ValueError, match="valid must have x's shape less the last dimension"):
        vecbank.residual.quantize(x, codebooks, valid=valid[0])
    with pytest.raises(TypeError, match="valid must be bool"):
        vecbank.residual.quantize(x, codebooks, valid=valid.float())


@pytest.mark.parametrize("biased", [False, True])
def test_every_sparse_encoder_takes_a_bank(biased: bool) -> None:
    x, weight = gauss(300, 12), gauss(70, 12, seed=1)
    bias: Tensor | None = gauss(70, seed=2) if biased else None
    bank = Bank(weight, "dot", bias=bias)
    sparse, norms = vecbank.sparse, torch.linalg.vector_norm(weight, dim=1)
    pairs = [
        (sparse.encode(x, bank, k=5), sparse.encode(x, weight, bias, 5)),
        (sparse.encode(x, bank, k=5, score=norms), sparse.encode(x, weight, bias, 5, score=norms)),
        (sparse.encode_batch(x, bank, k=5), sparse.encode_batch(x, weight, bias, 5)),
        (sparse.encode_batch(x, bank, k=5, max_k=9), sparse.encode_batch(x, weight, bias, 5, max_k=9)),
        (sparse.encode_threshold(x, bank, threshold=1.0), sparse.encode_threshold(x, weight, bias, 1.0)),
        (sparse.encode_threshold(x, bank, max_k=9), sparse.encode_threshold(x, weight, bias, max_k=9)),
        (sparse.encode_norm(x, bank, norms=norms), sparse.encode_norm(x, weight, bias, norms)),
    ]
    for got, want in pairs:
        assert_same(tuple(got), tuple(want))
    values, indices = pairs[0][0]
    assert_same(sparse.decode(values, indices, bank), sparse.decode(values, indices, weight))


def test_sparse_encoders_say_what_is_missing() -> None:
    x, bank = gauss(3, 4), Bank(gauss(9, 4), "dot")
    for call, kind, message in (
        (
            lambda: vecbank.sparse.encode(x, bank, 3),
            ValueError,
            "bias must be None beside a Bank.*name what comes after it",
        ),
        (lambda: vecbank.sparse.encode(x, bank), TypeError, "k must be an int, the number of latents"),
        (lambda: vecbank.sparse.encode_batch(x, bank), TypeError, "k must be an int, the number of latents"),
        (lambda: vecbank.sparse.encode_norm(x, bank), TypeError, "norms must be given"),
        (lambda: vecbank.sparse.encode(x, Bank(bank.vectors, "l2"), k=3), ValueError, 'must have metric "dot"'),
    ):
        with pytest.raises(kind, match=message):
            call()
