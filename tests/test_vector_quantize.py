"""VectorQuantize against vector-quantize-pytorch, which it replaces: same tuples, values, gradients and codebooks."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import vector_quantize_pytorch as peer
from torch import nn
from vq_cases import CASES, CODES, DIM, LEARN, LENS, MASK, close, compare_states, make_input, pair

from vecbank.nn.vector_quantize import VectorQuantize


@pytest.mark.parametrize("name", CASES)
def test_training_matches_peer(name: str) -> None:
    options, call = CASES[name]
    ours, theirs = pair(options)
    optimizers = [torch.optim.SGD(list(m.parameters()) or [torch.zeros(1)], lr=0.05) for m in (ours, theirs)]
    for step in range(5):
        x = make_input(options, step)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        results = []
        for module, given, optimizer in zip((ours, theirs), inputs, optimizers, strict=True):
            out = module(given, return_loss_breakdown=True, **call)
            probe = torch.linspace(-1, 1, out[0].numel()).view_as(out[0])
            optimizer.zero_grad()
            if out[0].requires_grad or out[2].requires_grad:
                ((out[0] * probe).sum() + out[2].sum() * 3).backward()
            results.append(out)
        mine, other = results
        close(mine[1], other[1], "codes")
        close(mine[0], other[0], "quantized")
        close(mine[2].float(), other[2].float(), "loss")
        for term, a, b in zip(mine[3]._fields, mine[3], other[3], strict=True):
            close(a, b, term)
        assert mine[0].requires_grad == other[0].requires_grad
        assert (inputs[0].grad is None) == (inputs[1].grad is None)
        if inputs[0].grad is not None:
            close(inputs[0].grad, inputs[1].grad, "gradient of x")
        for (parameter, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            if a.grad is not None or b.grad is not None:
                close(a.grad if a.grad is not None else torch.zeros_like(a), b.grad, f"gradient of {parameter}")
        for optimizer in optimizers:
            optimizer.step()
    compare_states(ours, theirs)
    ours.eval(), theirs.eval()
    theirs._codebook.affine_param_batch_decay = 1.0  # its evaluation moves the moments of the rows; ours moves nothing
    x, call = (
        make_input(options, 9),
        {k: v for k, v in call.items() if k in ("mask", "lens", "topk", "codebook_transform_fn")},
    )
    for what, a, b in zip(("quantized", "codes", "loss"), ours(x, **call), theirs(x, **call), strict=True):
        close(a, b, f"evaluation: {what}")


# ---- codes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cosine", [False, True])
def test_codes_match_peer_where_float32_can_tell(cosine: bool) -> None:
    """Ours are the float64 answer; the peer's are wherever the margin exceeds what its arithmetic can lose."""
    torch.manual_seed(0)
    theirs = peer.VectorQuantize(32, 512, use_cosine_sim=cosine).eval()
    theirs._codebook.embed.normal_()
    if cosine:
        theirs._codebook.embed.copy_(nn.functional.normalize(theirs._codebook.embed, dim=-1))
    ours = VectorQuantize(32, 512, use_cosine_sim=cosine).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 1024, 32)
    rows = nn.functional.normalize(x, dim=-1, eps=1e-6) if cosine else x
    rows, codebook = rows.flatten(0, 1).double(), ours.codebook.double()
    direct = "donot_use_mm_for_euclid_dist"
    score = rows @ codebook.T if cosine else -torch.cdist(rows, codebook, compute_mode=direct).square()
    best = score.topk(2, dim=-1)
    codes, other = ours(x)[1].flatten(), theirs(x)[1].flatten()
    assert torch.equal(codes, best.indices[:, 0])
    row_norm, code_norm = rows.norm(dim=-1), codebook.norm(dim=-1).max()
    size = row_norm * code_norm if cosine else (row_norm + code_norm) ** 2
    certain = best.values[:, 0] - best.values[:, 1] > 2 * (32 + 4) * 2.0**-24 * size
    assert torch.equal(codes[certain], other[certain])
    assert int((~certain).sum()) < 10


@pytest.mark.parametrize("train", [False, True])
def test_codes_on_a_grid_are_the_peers(train: bool) -> None:
    """Every sum is exact there, for both: ties included, none differ."""
    ours, theirs = (cls(4, 64).train(train) for cls in (VectorQuantize, peer.VectorQuantize))
    theirs._codebook.embed.copy_(torch.randint(-3, 4, (1, 64, 4)).float())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randint(-3, 4, (2, 2000, 4)).float()
    assert torch.equal(ours(x)[1], theirs(x)[1])


# ---- the rest of the interface ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heads": 2, "codebook_dim": 8, "separate_codebook_per_head": True},
        {"accept_image_fmap": True},
        {"codebook_dim": 4},
        {"channel_last": False},
    ],
    ids=str,
)
def test_codes_and_outputs_from_indices(options: dict[str, Any]) -> None:
    ours, theirs = pair(options)
    ours.eval(), theirs.eval()
    quantized, codes, _ = ours(make_input(options, 1))
    close(ours.get_codes_from_indices(codes), theirs.get_codes_from_indices(codes), "codes' vectors")
    close(ours.get_output_from_indices(codes), quantized, "output")
    close(ours.codebook, theirs.codebook, "codebook")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heads": 2, "codebook_dim": 8},
        {"heads": 2, "codebook_dim": 8, "separate_codebook_per_head": True},
        {"use_cosine_sim": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("train", [False, True])
def test_given_indices_are_scored(options: dict[str, Any], train: bool) -> None:
    ours, theirs = (m.train(train) for m in pair({**options, "freeze_codebook": True}))
    heads = options.get("heads", 1)
    given = torch.randint(0, CODES, (3, 20, heads)[: 2 + (heads > 1)])
    given[0, :5] = -1
    inputs = [make_input({}, 1).requires_grad_() for _ in range(2)]
    results = [m(x, indices=given) for m, x in zip((ours, theirs), inputs, strict=True)]
    for what, a, b in zip(("quantized", "cross-entropy"), *results, strict=True):
        close(a, b, what)
    for _, loss in results:
        loss.backward()
    close(inputs[0].grad, inputs[1].grad, "gradient of x")


def test_updates_by_given_indices_and_accumulation() -> None:
    for options in ({}, {"use_cosine_sim": True}, {"heads": 2, "codebook_dim": 8}, {"accept_image_fmap": True}):
        ours, theirs = pair(options)
        x = make_input(options, 1)
        given = torch.randint(0, CODES, ours(x)[1].shape)
        ours.load_state_dict(theirs.state_dict())
        for module in (ours, theirs):
            if options.get("accept_image_fmap"):
                module.update_indices(x, given)
            else:
                module.update_ema_indices(x, given, mask=MASK)
            module(x, accum_ema_update=True)
            module(x * 2, accum_ema_update=True)
            module(x * 3)
        compare_states(ours, theirs)


def test_one_token_and_more_axes() -> None:
    ours, theirs = pair({})
    for options in ({}, {"topk": 2}):
        x = torch.randn(5, DIM)
        for what, a, b in zip("qcl", ours(x, **options), theirs(x, **options), strict=True):
            close(a, b, what)
    beams = torch.randn(3, 20, 2, DIM)
    for a, b in zip(ours(beams, topk=3, mask=MASK), theirs(beams, topk=3, mask=MASK), strict=True):
        close(a, b, "beams")


def test_state_goes_both_ways_and_copies() -> None:
    for options in ({}, {"affine_param": True}, {"kmeans_init": True}, LEARN):
        ours, theirs = pair(options)
        x = make_input({}, 1)
        theirs(x), ours(x)
        fresh_ours = VectorQuantize(DIM, CODES, **options)
        fresh_ours.load_state_dict(theirs.state_dict())
        compare_states(fresh_ours, theirs)
        theirs.load_state_dict(ours.state_dict())
        for duplicate in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
            same = duplicate(ours)
            compare_states(same, ours)
            assert torch.equal(same(x)[0], ours(x)[0])
            ours.load_state_dict(same.state_dict())


def test_signature_is_the_peers() -> None:
    for method in ("__init__", "forward"):
        ours, theirs = (
            inspect.signature(getattr(cls, method)).parameters for cls in (VectorQuantize, peer.VectorQuantize)
        )
        assert [n for n in ours if n != "generator"] == list(theirs)
        assert all(ours[n].default == p.default for n, p in theirs.items())


def test_every_argument_is_in_the_table() -> None:
    root = next(folder for folder in Path(__file__).parents if (folder / "docs").is_dir())
    text = (root / "docs" / "vector_quantize.md").read_text()
    listed = re.findall(r"^\| `(.+?)` \| (constructor|forward) \| (?:supported|raises)", text, re.MULTILINE)
    methods = (("constructor", "__init__"), ("forward", "forward"))
    arguments = {of: list(inspect.signature(getattr(peer.VectorQuantize, m)).parameters)[1:] for of, m in methods}
    assert listed == [(name, of) for of, names in arguments.items() for name in names]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_cosine_sim": True, "learnable_codebook": True, "ema_update": False}, "learnable_codebook"),
        ({"use_cosine_sim": True, "affine_param": True}, "affine_param"),
        ({"straight_through": True}, "rotation_trick"),
        ({"learnable_codebook": True}, "ema_update"),
        ({"directional_reparam": True}, "threshold_ema_dead_code"),
        ({"sync_update_v": 0.5}, "sync_update_v"),
        ({"sync_update_v": 2.0}, "sync_update_v"),
        ({"kmeans_init": True, "kmeans_iters": 0}, "kmeans_iters"),
    ],
    ids=str,
)
def test_arguments_that_exclude_each_other(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        VectorQuantize(DIM, CODES, **options)


@pytest.mark.parametrize(
    ("shape", "call", "named"),
    [
        ((3, 20, DIM + 1), {}, "x must be"),
        ((3, 20, DIM), {"mask": MASK, "lens": LENS}, "mask or lens"),
        ((3, 20, DIM), {"mask": MASK[:, :5]}, "mask"),
        ((3, 20, DIM), {"mask": MASK.float()}, "mask"),
        ((3, 20, DIM), {"lens": LENS[:2]}, "lens"),
        ((3, DIM), {"mask": MASK[:, :1]}, "mask"),
        ((3, 20, DIM), {"topk": 0}, "topk"),
        ((3, 20, DIM), {"ema_update_weight": torch.ones(3)}, "ema_update_weight"),
    ],
)
def test_calls_that_do_not_fit(shape: tuple[int, ...], call: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        VectorQuantize(DIM, CODES)(torch.randn(shape), **call)
