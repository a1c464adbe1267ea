"""ResidualVQ and GroupedResidualVQ."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from drop_in import assert_alike, assert_close, assert_same_state, gauss, peer, run, shape_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vecbank.nn.grouped_vq import GroupedResidualVQ
from vecbank.nn.residual_vq import ResidualVQ

BASE: dict[str, Any] = {"dim": 8, "num_quantizers": 3, "codebook_size": 16}
MASK = torch.rand(2, 60, generator=torch.Generator().manual_seed(5)) > 0.3


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def spread(module: nn.Module, seed: int = 0) -> nn.Module:
    """Codes as far apart as the data, so that every stage has margins."""
    for i, layer in enumerate(m for m in module.modules() if hasattr(m, "_codebook")):
        if not layer.use_cosine_sim:
            codes = gauss(*layer._codebook.embed.shape, seed=40 + seed + i)
            layer._codebook.embed.data.copy_(codes)
            layer._codebook.embed_avg.data.copy_(codes)
    return module


def pair(options: dict[str, Any], grouped: bool = False) -> tuple[Any, Any]:
    ours, theirs = (GroupedResidualVQ, peer.GroupedResidualVQ) if grouped else (ResidualVQ, peer.ResidualVQ)
    return ours(**options), spread(theirs(**options))


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "straight": {"rotation_trick": False},
    "projected": {"codebook_dim": 5},
    "cosine": {"use_cosine_sim": True},
    "shared": {"shared_codebook": True},
    "shared cosine": {"shared_codebook": True, "use_cosine_sim": True},
    "gradient between stages": {"quant_grad_frac": 0.3},
    "learnable": {"learnable_codebook": True, "ema_update": False},
    "implicit": {"implicit_neural_codebook": True},
    "implicit, small": {"implicit_neural_codebook": True, "mlp_kwargs": {"dim_hidden": 4, "depth": 2}},
    "orthogonal": {"commitment_weight": 0.3, "orthogonal_reg_weight": 1.0},
    "masked as it was": {"return_zeros_for_masked_padding": False},
    "unequal": {"num_quantizers": None, "codebook_size": (4, 8, 16)},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("train", [True, False])
def test_like_peer(name: str, train: bool) -> None:
    for call in ({"return_all_codes": True}, {"mask": MASK}, {"freeze_codebook": True}):
        if train and name.startswith("shared") and "freeze_codebook" in call:
            continue  # the peer updates a shared codebook even so
        ours, theirs = pair({**BASE, **OPTIONS[name]})
        assert_alike(ours, theirs, gauss(2, 60, 8), train, 3e-5, **call)
    indices = ours.eval()(gauss(2, 60, 8))[1]
    assert_close(ours.get_output_from_indices(indices), theirs.get_output_from_indices(indices), 1e-5, "decoded")
    for got, want in zip(ours.codebooks, theirs.codebooks, strict=True):
        assert_close(got, want, 1e-5, "codebooks")


def test_five_steps_like_peer() -> None:
    """Books after training, on data whose margins rounding does not cross."""
    for options in (
        {},
        {"shared_codebook": True},
        {"use_cosine_sim": True},
        {"quant_grad_frac": 0.2, "decay": 0.9},
    ):
        ours, theirs = pair({**BASE, **options})
        ours.load_state_dict(theirs.state_dict())
        for step in range(5):
            got, want = run(ours, gauss(2, 60, 8, seed=step))[0], run(theirs, gauss(2, 60, 8, seed=step))[0]
            assert torch.equal(got[1], want[1])
            torch.testing.assert_close(got[2], want[2], rtol=1e-4, atol=1e-6)
        assert_same_state(ours, theirs, 1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_dropout_like_peer(seed: int) -> None:
    for more in ({}, {"quantize_dropout_multiple_of": 2, "quantize_dropout_cutoff_index": 1}):
        ours, theirs = pair({**BASE, "num_quantizers": 5, "quantize_dropout": True, **more})
        assert_alike(ours, theirs, gauss(2, 60, 8), rand_quantize_dropout_fixed_seed=seed)


BEAMS: dict[str, dict[str, Any]] = {
    "three": {"beam_size": 3},
    "four in evaluation": {
        "beam_size": 2,
        "eval_beam_size": 4,
        "beam_score_quantizer_weights": [1.0, 0.5, 0.25],
    },
    "cosine": {"beam_size": 2, "use_cosine_sim": True},
    "projected": {"beam_size": 2, "codebook_dim": 4, "rotation_trick": False},
}


@pytest.mark.parametrize("name", BEAMS)
@pytest.mark.parametrize("train", [True, False])
def test_beam_search_like_peer(name: str, train: bool) -> None:
    for call in ({}, {"mask": MASK}):
        ours, theirs = pair({**BASE, **BEAMS[name]})
        ours.load_state_dict(theirs.state_dict())
        ours.train(train)
        theirs.train(train)
        (got, grads), (want, others) = (
            run(ours, gauss(2, 60, 8), **call),
            run(theirs, gauss(2, 60, 8), **call),
        )
        assert shape_of(got) == shape_of(want)
        for g, w in zip((*got, *grads), (*want, *others), strict=True):
            assert (g is None) == (w is None)
            if g is not None:
                assert_close(g, w, 3e-5, name)
        first, other = ours.layers[0]._codebook, theirs.layers[0]._codebook
        assert_close(first.embed_avg, other.embed_avg, 1e-5, "first codebook")


def test_beam_search_moves_every_book() -> None:
    """(The peer's moves the first alone.)"""
    module = spread(ResidualVQ(**BASE, beam_size=2))
    x = gauss(2, 60, 8)
    before = [layer._codebook.embed.clone() for layer in module.layers]
    _, indices, _ = module(x)
    residual = x
    for layer, old, codes in zip(module.layers, before, indices.unbind(-1), strict=True):
        counts = torch.bincount(codes.flatten(), minlength=16).float()
        torch.testing.assert_close(layer._codebook.cluster_size[0], torch.lerp(torch.ones(16), counts, 0.2))
        sums = torch.zeros(16, 8).index_add_(0, codes.flatten(), residual.flatten(0, 1))
        torch.testing.assert_close(layer._codebook.embed_avg[0], torch.lerp(old[0], sums, 0.2), rtol=1e-4, atol=1e-5)
        residual = residual - old[0][codes]
    frozen = copy.deepcopy(module)
    frozen(x, freeze_codebook=True)
    assert_same_state(frozen, module, 0)


def test_wider_beams_come_closer() -> None:
    module, x = spread(ResidualVQ(**BASE, beam_size=1)).eval(), gauss(4, 200, 8)
    errors = [(module(x, beam_size=b)[0] - x).square().mean() for b in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.97 * errors[0]


@pytest.mark.parametrize("codes", [2, 4])
def test_widest_beam_is_exhaustive_search(codes: int) -> None:
    module, x = (
        spread(ResidualVQ(dim=3, num_quantizers=3, codebook_size=codes, beam_size=codes**3)).eval(),
        gauss(1, 50, 3),
    )
    codebooks = module.codebooks
    every = (codebooks[0][:, None, None] + codebooks[1][None, :, None] + codebooks[2][None, None]).flatten(0, 2)
    best = torch.cdist(x[0].double(), every.double()).argmin(-1)
    # Only the last stage's loss decides, when its weight is all there is.
    module.beam_score_weights.copy_(torch.tensor([0.0, 0.0, 1.0]))
    indices = module(x)[1][0]
    assert torch.equal((indices * torch.tensor([codes**2, codes, 1])).sum(-1), best)


# ---- One call in evaluation
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "projected", "cosine", "shared", "learnable", "unequal"])
def test_one_call_is_the_cascade(name: str) -> None:
    module = spread(ResidualVQ(**{**BASE, **OPTIONS[name]})).eval()
    x = gauss(2, 60, 8)
    for call in ({}, {"mask": MASK}, {"num_stages": 2}):
        with torch.no_grad():
            assert module._learns_nothing()
            got = module(x, **call)
            module._learns_nothing = lambda: False  # type: ignore[method-assign]
            want = module(x, **call)
            del module._learns_nothing
        torch.testing.assert_close(got, want)


def test_sixteen_bits_keep_their_residuals() -> None:
    """Every stage sees what is left of x exactly, not rounded to 16 bits."""
    for dtype in (torch.bfloat16, torch.float16):
        module, x = spread(ResidualVQ(**BASE)), gauss(2, 60, 8).to(dtype)
        for train in (False, True):
            frozen = copy.deepcopy(module).train(train)
            got, want = frozen(x, freeze_codebook=True), frozen(x.float(), freeze_codebook=True)
            assert got[0].dtype == dtype and torch.equal(got[1], want[1])
            torch.testing.assert_close(got[2], want[2])
            torch.testing.assert_close(got[0], want[0].to(dtype))
        y = x.clone().requires_grad_()
        module.train()(y)[0].float().sum().backward()
        assert y.grad is not None and y.grad.isfinite().all()


def test_autocast_decides_nothing() -> None:
    x = gauss(2, 60, 8)
    for options in ({}, {"beam_size": 2}, {"use_cosine_sim": True}, {"implicit_neural_codebook": True}):
        module = spread(ResidualVQ(**BASE, **options)).eval()
        want = module(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = module(x)
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True)), options


@pytest.mark.parametrize("name", ["default", "projected", "cosine", "shared", "gradient between stages", "learnable"])
@pytest.mark.parametrize("train", [True, False])
def test_compiles_whole(name: str, train: bool) -> None:
    x = gauss(2, 30, 8)
    module = spread(ResidualVQ(**{**BASE, **OPTIONS[name]})).train(train)
    plain = copy.deepcopy(module)
    got = run(torch.compile(module, fullgraph=True, backend="aot_eager"), x, num_stages=2)
    want = run(plain, x, num_stages=2)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert_same_state(module, plain)


# ---- Layouts
# ------------------------------------------------------------------------------------------------------


def test_images() -> None:
    """The peer fails here unless dim = height = width; then, and flattened, the results are its own."""
    options = {"dim": 8, "num_quantizers": 3, "codebook_size": 16}
    ours, theirs = ResidualVQ(**options, accept_image_fmap=True), spread(peer.ResidualVQ(**options))
    ours.load_state_dict(theirs.state_dict())
    x = gauss(2, 8, 4, 5)
    quantized, indices, losses = ours(x)
    want = theirs(x.flatten(2).movedim(1, 2))
    torch.testing.assert_close(quantized.flatten(2).movedim(1, 2), want[0])
    assert torch.equal(indices, want[1].view(2, 4, 5, 3))
    torch.testing.assert_close(losses, want[2])
    assert ours.get_codes_from_indices(indices).shape == (3, 2, 4, 5, 8)
    square = spread(peer.ResidualVQ(**options, accept_image_fmap=True))
    assert_alike(ours, square, gauss(2, 8, 8, 8))
    for more, shape in (
        ({"accept_3d_fmap": True}, (2, 8, 2, 3, 4)),
        ({"channel_last": False}, (2, 8, 7)),
        ({"accept_image_fmap": True, "codebook_dim": 4, "beam_size": 2}, (2, 8, 3, 4)),
        ({}, (2, 3, 4, 8)),
        ({}, (5, 8)),
    ):
        module = ResidualVQ(**options, **more)
        quantized, indices, _ = module(gauss(*shape))
        rest = (shape[0], *shape[2:]) if more else shape[:-1]
        assert quantized.shape == shape and indices.shape == (*rest, 3)


def test_one_row_like_peer() -> None:
    ours, theirs = pair(BASE)
    assert_alike(ours, theirs, gauss(30, 8))


@pytest.mark.parametrize("train", [True, False])
def test_grouped_like_peer(train: bool) -> None:
    options = {**BASE, "groups": 2, "quantize_dropout": True}
    for call in ({"return_all_codes": not train}, {"mask": MASK}):
        ours, theirs = pair(options, grouped=True)
        torch.manual_seed(3)
        dropped = train  # both draw the seed of their dropout from torch's generator
        ours.load_state_dict(theirs.state_dict())
        if dropped:
            for module in (ours, theirs):
                for rvq in module.rvqs:
                    rvq.quantize_dropout = False
                    if hasattr(rvq, "_dropout"):
                        rvq._dropout.enabled = False
        assert_alike(ours, theirs, gauss(2, 60, 8), train, **call)
    indices = ours.eval()(gauss(2, 60, 8))[1]
    assert_close(ours.get_output_from_indices(indices), theirs.get_output_from_indices(indices), 1e-5, "decoded")
    assert_close(ours.codebooks, theirs.codebooks, 1e-5, "codebooks")


def test_grouped_drops_together() -> None:
    module = GroupedResidualVQ(**BASE, groups=2, quantize_dropout=True)
    seen = set()
    for _ in range(12):
        indices = module(gauss(1, 4, 8))[1]
        active = (indices[:, 0, 0] >= 0).sum(-1)
        assert active[0] == active[1]
        seen.add(int(active[0]))
    assert len(seen) > 1
    image = GroupedResidualVQ(**BASE, groups=2, accept_image_fmap=True)
    quantized, indices, losses = image(gauss(2, 8, 3, 4))
    assert quantized.shape == (2, 8, 3, 4) and indices.shape == (2, 2, 3, 4, 3) and losses.shape == (2, 3)


def test_given_codes_are_scored() -> None:
    """The sum over stages of the cross-entropy of the codes, where the peer raises."""
    module, x = spread(ResidualVQ(**BASE)).eval(), gauss(2, 20, 8)
    codes = module(x)[1]
    _, loss = module(x, indices=codes)
    residual, want = x, torch.zeros(())
    for codebook, code in zip(module.codebooks, codes.unbind(-1), strict=True):
        scores = -torch.cdist(residual, codebook)
        want = want + nn.functional.cross_entropy(scores.flatten(0, 1), code.flatten())
        residual = residual - codebook[code]
    torch.testing.assert_close(loss, want)
    with pytest.raises(ValueError, match="indices"):
        module(x, indices=codes.roll(1, 0).masked_fill(codes == codes[0, 0, 0], -1))
    grouped = GroupedResidualVQ(**BASE, groups=2).eval()
    indices = grouped(x)[1]
    quantized, total = grouped(x, indices=indices)
    assert quantized.shape == x.shape and total.shape == ()


# ---- Training
# -----------------------------------------------------------------------------------------------------


def test_diveq() -> None:
    """The noise turns the error, its length stays; in evaluation there is none (the peer adds it there as
    well).
    """
    options = {**BASE, "diveq": True}
    ours, theirs = pair(options)
    ours.load_state_dict(theirs.state_dict())
    x = gauss(2, 60, 8)
    got, want = run(ours, x), run(theirs, x)
    assert shape_of(got[0]) == shape_of(want[0]) and torch.equal(got[0][1], want[0][1])
    codes = ours.get_output_from_indices(got[0][1])
    torch.testing.assert_close((got[0][0] - x).norm(dim=-1), (codes - x).norm(dim=-1), rtol=1e-4, atol=1e-4)
    assert abs((got[0][0] - codes).norm(dim=-1).mean() / (want[0][0] - codes).norm(dim=-1).mean() - 1) < 0.2
    assert all((g is None) == (w is None) for g, w in zip(got[1], want[1], strict=True))
    ours.eval()
    torch.testing.assert_close(ours(x)[0], codes)
    drawn = ResidualVQ(**options, generator=torch.Generator().manual_seed(0))
    again = ResidualVQ(**options, generator=torch.Generator().manual_seed(0))
    again.load_state_dict(drawn.state_dict())
    assert torch.equal(drawn(x)[0], again(x)[0])


def test_random_starts_and_reseeding_like_peer() -> None:
    """k-means starts, sampled codes, expiry: usage and loss over 20 seeds."""
    for more in ({"kmeans_init": True}, {"threshold_ema_dead_code": 2}, {"stochastic_sample_codes": True}):
        stats: dict[str, list[Tensor]] = {"ours": [], "theirs": []}
        for seed in range(20):
            for name, cls in (("ours", ResidualVQ), ("theirs", peer.ResidualVQ)):
                torch.manual_seed(seed)
                module = cls(**BASE, **more)
                for step in range(4):
                    _, indices, losses = module(gauss(2, 100, 8, seed=4 * seed + step))
                used = torch.stack([code.unique().numel() / torch.tensor(16.0) for code in indices.unbind(-1)])
                stats[name].append(torch.stack((used.mean(), losses.detach().sum())))
        ours, theirs = (torch.stack(stats[name]) for name in stats)
        error = (ours.var(0) / 20 + theirs.var(0) / 20).sqrt()
        assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * error + 0.02).all(), (
            more,
            ours.mean(0),
            theirs.mean(0),
        )


def test_shared_book_stays_shared() -> None:
    module = spread(ResidualVQ(**BASE, shared_codebook=True, threshold_ema_dead_code=2))
    x = gauss(2, 60, 8)
    for _ in range(3):
        module(x, mask=MASK)
    assert len({id(layer._codebook) for layer in module.layers}) == 1
    assert len({t.data_ptr() for name, t in module.state_dict().items() if name.endswith("embed")}) == 1
    frozen = module.state_dict()
    kept = {name: t.clone() for name, t in frozen.items()}
    module(x, freeze_codebook=True)
    assert all(torch.equal(t, kept[name]) for name, t in module.state_dict().items())


CHECKPOINTED: dict[str, dict[str, Any]] = {
    "default": {},
    "shared": {"shared_codebook": True, "threshold_ema_dead_code": 2},
    "beams": {"beam_size": 2},
    "beams, shared": {"beam_size": 2, "shared_codebook": True},
    "dropout": {"quantize_dropout": True},
    "implicit": {"implicit_neural_codebook": True},
    "diveq": {"diveq": True},
}


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_activation_checkpointing(name: str) -> None:
    """Forward runs twice, codebooks are updated once, gradients are those of running it once."""
    for own in (False, True):
        modules, results = [], []
        for reentrant in (None, False, True):
            options = {"generator": torch.Generator().manual_seed(3)} if own else {}
            module = spread(ResidualVQ(**BASE, **CHECKPOINTED[name], **options))
            if modules:
                module.load_state_dict(modules[0][1])
            modules.append((module, copy.deepcopy(module.state_dict())))
            x = gauss(2, 60, 8).requires_grad_()
            torch.manual_seed(5)
            quantized, _, losses = module(x) if reentrant is None else checkpoint(module, x, use_reentrant=reentrant)
            ((quantized * gauss(2, 60, 8, seed=1)).sum() + losses.sum()).backward()
            results.append((x.grad, torch.get_rng_state()))
            torch.testing.assert_close(results[-1], results[0])
            assert_same_state(module, modules[0][0], 0)


def test_own_freeze_is_kept() -> None:
    module, x = spread(ResidualVQ(**BASE, freeze_codebook=True)), gauss(2, 60, 8)
    kept = {name: t.clone() for name, t in module.state_dict().items()}
    module(x)
    assert all(torch.equal(t, kept[name]) for name, t in module.state_dict().items())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"heads": 2}, "heads"),
    ({"num_quantizers": None}, "num_quantizers"),
    ({"codebook_size": (4, 8)}, "codebook_size"),
    ({"num_quantizers": None, "codebook_size": (4, 8), "shared_codebook": True}, "shared_codebook"),
    ({"eval_beam_size": 2}, "eval_beam_size"),
    ({"beam_size": 2, "implicit_neural_codebook": True}, "beam_size"),
    ({"beam_score_quantizer_weights": [1.0]}, "beam_score_quantizer_weights"),
    ({"quantize_dropout": True, "quantize_dropout_cutoff_index": 3}, "quantize_dropout_cutoff_index"),
    ({"quantize_dropout": True, "quantize_dropout_multiple_of": 0}, "quantize_dropout_multiple_of"),
]


@pytest.mark.parametrize("options, named", REFUSED, ids=[named for _, named in REFUSED])
def test_refuses_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ResidualVQ(**{**BASE, **options})


def test_refuses_other_shapes() -> None:
    module = ResidualVQ(**BASE)
    with pytest.raises(ValueError, match="x must have dim = 8"):
        module(torch.zeros(2, 3, 7))
    with pytest.raises(ValueError, match="mask"):
        module(torch.zeros(2, 3, 8), mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="num_stages"):
        module(torch.zeros(2, 3, 8), num_stages=4)
    with pytest.raises(ValueError, match="indices"):
        module.get_output_from_indices(torch.zeros(2, 3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="groups"):
        GroupedResidualVQ(**BASE, groups=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cls", [ResidualVQ, GroupedResidualVQ])
@pytest.mark.parametrize("train", [True, False])
def test_implicit_books_of_16_bits_are_read_as_float32(dtype: torch.dtype, cls: type[nn.Module], train: bool) -> None:
    torch.manual_seed(0)
    module: Any = cls(**BASE, implicit_neural_codebook=True).to(dtype).train(train)
    exact = copy.deepcopy(module).float()
    x = gauss(2, 20, 8).to(dtype)
    got, want = module(x), exact(x.float())
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[0], want[0].to(dtype))
    decoded, wanted = (m.get_codes_from_indices(got[1]) for m in (module, exact))
    assert torch.equal(decoded, wanted.to(dtype))


def test_a_beam_may_be_wider_than_a_codebook() -> None:
    """There are 3 x 3 sequences of two stages: a beam of 50 keeps them all, as one of 9 does."""
    module, x = ResidualVQ(dim=4, num_quantizers=2, codebook_size=3, quantize_dropout=False), gauss(1, 20, 4)
    for training in (False, True):
        module.train(training)
        found = [module(x, beam_size=beams, freeze_codebook=True)[:2] for beams in (50, 9)]
        assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
        decoded = module.get_output_from_indices(found[0][1])
        torch.testing.assert_close(decoded, found[0][0], rtol=1e-5, atol=1e-5)
