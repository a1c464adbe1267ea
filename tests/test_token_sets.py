"""TokenSets, what is refused, and groups of bank rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same, gauss, seeded
from torch import Tensor
from torch.autograd import gradcheck

import vecbank
from vecbank import TokenSets, reference

# ---- TokenSets ------------------------------------------------------------------------------------------------------


def test_padded_sets() -> None:
    tokens = gauss(4, 6, 5)
    whole = TokenSets.padded(tokens)
    assert whole.rows.data_ptr() == tokens.data_ptr() and whole.offsets.tolist() == [0, 6, 12, 18, 24]
    lengths = torch.tensor([6, 0, 2, 3])
    some = TokenSets.padded(tokens, lengths)
    assert_same(some.rows, torch.cat([t[:n] for t, n in zip(tokens, lengths, strict=True)]))
    assert some.offsets.tolist() == [0, 6, 6, 8, 11] and some.count == 4
    mask = torch.rand(4, 6, generator=seeded(1)) < 0.5
    of_mask = TokenSets.padded(tokens, mask=mask)
    assert_same(of_mask.rows, tokens[mask])
    assert_same(of_mask.offsets.diff(), mask.sum(1))


def test_a_dense_tensor_and_a_tuple_are_sets() -> None:
    q, d = gauss(3, 7, 8), gauss(5, 4, 8, seed=1)
    want = vecbank.maxsim(TokenSets.of(list(q)), TokenSets.of(list(d)))
    assert_same(vecbank.maxsim(q, d), want)
    assert_same(vecbank.maxsim((q.reshape(-1, 8), torch.arange(4).int() * 7), d), want)
    assert isinstance(vecbank.maxsim(q.numpy(), d.numpy()), np.ndarray)


BAD: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "offsets that end early": ((gauss(4, 3), torch.tensor([0, 3])), gauss(1, 2, 3), ValueError, "number of rows 4"),
    "offsets that begin late": ((gauss(4, 3), torch.tensor([1, 4])), gauss(1, 2, 3), ValueError, "from 0"),
    "offsets that fall": (
        (gauss(4, 3), torch.tensor([0, 3, 2, 4])),
        gauss(1, 2, 3),
        ValueError,
        "from 3 to 2 at set 1",
    ),
    "offsets of floats": ((gauss(4, 3), torch.tensor([0.0, 4.0])), gauss(1, 2, 3), TypeError, "integers"),
    "no offsets": ((gauss(0, 3), torch.zeros(0).long()), gauss(1, 2, 3), ValueError, "(S + 1,)"),
    "a matrix": (gauss(4, 3), gauss(1, 2, 3), ValueError, "(S, T, d)"),
    "a list": ([gauss(4, 3)], gauss(1, 2, 3), TypeError, "TokenSets"),
    "three of a tuple": ((1, 2, 3), gauss(1, 2, 3), TypeError, "3 of them"),
    "rows of three dimensions": ((gauss(2, 2, 3), torch.tensor([0, 4])), gauss(1, 2, 3), ValueError, "(R, d)"),
    "integers": (torch.zeros(1, 2, 3).long(), gauss(1, 2, 3), TypeError, "float32"),
    "another width": (gauss(1, 2, 4), gauss(1, 2, 3), ValueError, "last dimension"),
    "another dtype": (gauss(1, 2, 3).double(), gauss(1, 2, 3), TypeError, "share a dtype"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_refused(what: str) -> None:
    queries, documents, kind, message = BAD[what]
    for call in (
        lambda: vecbank.maxsim(queries, documents),
        lambda: vecbank.maxsim_topk(queries, documents, 1),
        lambda: vecbank.maxsim_pairs(queries, documents, torch.zeros(1, 1).long()),
    ):
        with pytest.raises(kind) as error:
            call()
        assert message in str(error.value)


def test_arguments_are_refused() -> None:
    q, d = gauss(2, 3, 4), gauss(5, 3, 4, seed=1)
    for k in (0, 6, -1):
        with pytest.raises(ValueError, match="k must lie between 1 and the number of documents 5"):
            vecbank.maxsim_topk(q, d, k)
    with pytest.raises(ValueError, match="candidates 2, got 3"):
        vecbank.maxsim_topk(q, d, 3, candidates=torch.zeros(2, 2).long())
    with pytest.raises(IndexError, match="candidates must lie between -1 and 4"):
        vecbank.maxsim_topk(q, d, 1, candidates=torch.full((2, 2), 5))
    with pytest.raises(ValueError, match=r"indices must have shape \(2, k\)"):
        vecbank.maxsim_pairs(q, d, torch.zeros(3, 2).long())
    with pytest.raises(ValueError, match="metric must be one of"):
        vecbank.maxsim(q, d, "hamming")
    with pytest.raises(ValueError, match="at least one tensor"):
        TokenSets.of([])
    with pytest.raises(ValueError, match=r"sets\[1\] must have shape \(T, 4\)"):
        TokenSets.of([gauss(2, 4), gauss(2, 3)])
    with pytest.raises(ValueError, match="lengths must lie between 0 and 3"):
        TokenSets.padded(q, torch.tensor([1, 4]))
    with pytest.raises(ValueError, match="both"):
        TokenSets.padded(q, torch.tensor([1, 3]), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask must have shape"):
        TokenSets.padded(q, mask=torch.ones(3, 2, dtype=torch.bool))


# ---- Groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_groups(metric: str, way: str) -> None:
    x, bank = gauss(2, 5, 8), gauss(30, 8, seed=1)
    labels = torch.randint(-1, 6, (30,), generator=seeded(2))
    labels[labels == 4] = 3  # group 4 is empty
    scores = reference.project(x, bank, metric, out_dtype=torch.float64)
    most = torch.stack(
        [scores[..., labels == g].amax(-1) if g != 4 else scores[..., 0] * 0 - torch.inf for g in range(6)], -1
    )
    mean = torch.stack([scores[..., labels == g].mean(-1) if g != 4 else scores[..., 0] * 0 for g in range(6)], -1)
    got = vecbank.group_max(x, bank, labels, metric, num_groups=6)
    assert got.shape == (2, 5, 6)
    torch.testing.assert_close(got, most.float(), rtol=1e-5, atol=1e-5)
    got = vecbank.group_mean(x, bank, labels, metric, num_groups=6)
    torch.testing.assert_close(got, mean.float(), rtol=1e-5, atol=1e-5)
    order = labels.sort(stable=True).indices
    offsets = torch.searchsorted(labels[order], torch.arange(7))
    rows = bank[order[offsets[0] :]]
    for function, want in ((vecbank.group_max, most), (vecbank.group_mean, mean)):
        got = function(x, rows, offsets - offsets[0], metric)
        torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-5)


def test_gradients_of_groups() -> None:
    labels = torch.tensor([1, 0, -1, 1, 1, 0])
    x, bank = gauss(3, 4, dtype=torch.float64), gauss(6, 4, seed=1, dtype=torch.float64)
    for function in (vecbank.group_max, vecbank.group_mean):
        for metric in ("dot", "cosine"):

            def scores(a: Tensor, b: Tensor, function: Any = function, metric: str = metric) -> Tensor:
                return function(a, b, labels, metric, num_groups=2)

            assert gradcheck(scores, [x.clone().requires_grad_(), bank.clone().requires_grad_()])


def test_groups_are_refused() -> None:
    x, bank = gauss(3, 4), gauss(6, 4)
    with pytest.raises(ValueError, match=r"groups must be labels \(6,\)"):
        vecbank.group_max(x, bank, torch.zeros(5).long(), num_groups=2)
    with pytest.raises(IndexError, match="groups must lie between -1 and 1"):
        vecbank.group_max(x, bank, torch.full((6,), 2), num_groups=2)
    with pytest.raises(ValueError, match="groups must lead from 0 to the number of rows 6"):
        vecbank.group_mean(x, bank, torch.tensor([0, 5]))
    with pytest.raises(ValueError, match='"dot" or "cosine"'):
        vecbank.group_mean(x, bank, torch.tensor([0, 6]), "l2")
    for function in (vecbank.group_max, vecbank.group_mean):
        with pytest.raises(ValueError, match="x and bank must have the same last dimension"):
            function(gauss(3, 5), bank, torch.tensor([0, 6]))
        with pytest.raises(TypeError, match="x and bank must share a dtype"):
            function(x.double(), bank, torch.tensor([0, 6]))


def test_offsets_whose_differences_wrap_around_are_refused() -> None:
    """The difference of two of these, as int64, is positive, though they fall."""
    rows, offsets = gauss(3, 4), torch.tensor([0, 2**63 - 1, -(2**63) + 4, 3])
    for call in (vecbank.maxsim, vecbank.maxsim_pairs, vecbank.maxsim_topk):
        given = {"k": 1} if call is vecbank.maxsim_topk else {}
        given |= {"indices": torch.tensor([[0]])} if call is vecbank.maxsim_pairs else {}
        with pytest.raises(ValueError, match=r"documents.offsets must never fall, but go from \d+ to -\d+ at set 1"):
            call(rows.unsqueeze(0), (rows, offsets), **given)
    for function in (vecbank.group_max, vecbank.group_mean):
        with pytest.raises(ValueError, match="groups must never fall"):
            function(rows, rows, offsets)
    with pytest.raises(ValueError, match="documents.offsets must never fall"):
        vecbank.multivector.FixedEncoding(4).documents((rows, offsets))
