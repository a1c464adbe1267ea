"""FSQ, LFQ, LatentQuantize and BinaryMapper: codes whose codebook is never written down."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from drop_in import gauss, peer, run
from helpers import seeded
from torch import Tensor, nn

from vecbank.nn._bits import bit_entropy, mean_code_probability
from vecbank.nn.binary_mapper import BinaryMapper
from vecbank.nn.fsq import FSQ, GroupedResidualFSQ, ResidualFSQ
from vecbank.nn.latent_quantize import LatentQuantize
from vecbank.nn.lfq import LFQ, ResidualLFQ

HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def test_dropout_draws_every_number_of_stages() -> None:
    module = ResidualFSQ(levels=[5, 4, 3], num_quantizers=4, quantize_dropout=True)
    x, generator = gauss(1, 3, 3), seeded()
    counts = torch.zeros(5)
    for _ in range(200):
        counts[(module(x, generator=generator)[1][0, 0] >= 0).sum()] += 1
    assert counts[0] == 0 and (counts[1:] > 25).all()
    assert torch.equal(module(x, generator=seeded(3))[1], module(x, generator=seeded(3))[1])
    assert (module.eval()(x)[1] >= 0).all()
    with torch.no_grad():
        assert (module.train()(x)[1] >= 0).all()


@pytest.mark.parametrize("stages", [1, 3])
def test_num_stages(stages: int) -> None:
    x = gauss(2, 9, 3)
    for module in (
        ResidualFSQ(levels=[5, 4, 3], num_quantizers=4),
        ResidualLFQ(dim=3, codebook_size=8, num_quantizers=4),
    ):
        some, every = module(x, num_stages=stages), module(x)
        assert torch.equal(some[1][..., :stages], every[1][..., :stages]) and (some[1][..., stages:] == -1).all()
        torch.testing.assert_close(some[0], module.get_output_from_indices(some[1]))
        with pytest.raises(ValueError, match="num_stages"):
            module(x, num_stages=5)
        with pytest.raises(ValueError, match="indices"):
            module.get_codes_from_indices(every[1][..., :2])


def test_decoding_gives_what_was_returned() -> None:
    """Also where the peer's does not: spherical and rotated stages, channel first with all codes."""
    x = 0.4 * gauss(2, 20, 4)
    modules: list[tuple[nn.Module, Tensor]] = [
        (ResidualLFQ(dim=4, codebook_size=16, num_quantizers=3, spherical=True), x),
        (ResidualLFQ(dim=4, codebook_size=16, num_quantizers=3, orthogonal_rotation=True), x),
        (ResidualFSQ(levels=[5, 5, 5, 5], num_quantizers=3, orthogonal_rotation=True), x),
        (FSQ([5, 5, 5, 5], orthogonal_rotation=True), x),
        (LFQ(dim=4, spherical=True, orthogonal_rotation=True), x),
        (LatentQuantize([5, 4], dim=4), x),
    ]
    for module, given in modules:
        module.eval()
        if isinstance(module, LatentQuantize):
            given = given.movedim(1, 2)
        quantized, indices = module(given)[:2]
        decode = getattr(module, "get_output_from_indices", getattr(module, "indices_to_codes", None))
        assert decode is not None
        torch.testing.assert_close(decode(indices), quantized, rtol=1e-5, atol=1e-6)
    first = ResidualFSQ(levels=[5, 4, 3], dim=6, num_quantizers=3, is_channel_first=True).eval()
    quantized, indices, codes = first(gauss(2, 6, 4, 5), return_all_codes=True)
    assert quantized.shape == (2, 6, 4, 5) and indices.shape == (2, 3, 4, 5) and codes.shape == (3, 2, 4, 5, 3)
    torch.testing.assert_close(first.get_output_from_indices(indices), quantized)
    torch.testing.assert_close(first.project_out(codes.sum(0)), quantized.movedim(1, -1))
    image = ResidualLFQ(dim=8, codebook_size=16, num_quantizers=2).eval()
    quantized, indices, _ = image(gauss(2, 8, 3, 3))
    assert quantized.shape == (2, 8, 3, 3) and indices.shape == (2, 3, 3, 2)
    grouped = GroupedResidualFSQ(dim=8, groups=2, levels=[5, 4, 3], num_quantizers=2, accept_image_fmap=True).eval()
    assert grouped(gauss(2, 8, 3, 3))[0].shape == (2, 8, 3, 3)


def test_books_beyond_memory() -> None:
    """Codes cost d numbers each, whatever 2^d is."""
    sign = LFQ(dim=60, entropy_loss_weight=0.0, commitment_loss_weight=1.0)
    quantized, indices, loss = sign(gauss(1, 5, 60))
    assert loss > 0 and torch.equal(sign.indices_to_codes(indices), quantized)
    grid = FSQ([1001] * 5)
    quantized, indices = grid(gauss(1, 500, 5))
    assert indices is not None and indices.dtype == torch.int64 and indices.max() > 2**31
    assert torch.equal(grid.indices_to_codes(indices), quantized)
    fine = FSQ([4097, 4097])  # more codes than a float32 can count
    _, indices = fine(gauss(1, 500, 2))
    assert indices is not None and torch.equal(fine.codes_to_indices(fine.indices_to_codes(indices)), indices)
    assert FSQ([1001] * 30, return_indices=False)(gauss(1, 2, 30))[1] is None
    with pytest.raises(ValueError, match="levels"):
        FSQ([1001] * 30)


def test_not_a_number() -> None:
    x = gauss(1, 3, 2)
    x[0, 1, 0] = math.nan
    for module in (FSQ([5, 5]), FSQ([5, 5], preserve_symmetry=True), LatentQuantize([5, 5], dim=2)):
        given = x.movedim(1, 2) if isinstance(module, LatentQuantize) else x
        quantized, indices = module(given)[:2]
        assert indices is not None and indices[0, 1] == -1 and (indices[0, [0, 2]] >= 0).all()
        row = quantized.movedim(1, 2)[0, 1] if isinstance(module, LatentQuantize) else quantized[0, 1]
        assert row.isnan().all()


def test_empty_input() -> None:
    for module, shape in (
        (FSQ([5, 5]), (2, 0, 2)),
        (LFQ(dim=2), (2, 0, 2)),
        (LatentQuantize([5, 5], dim=2), (2, 2, 0)),
    ):
        quantized, indices = module(torch.zeros(shape))[:2]
        assert quantized.shape == shape and indices is not None and indices.shape == (2, 0)


def brute_entropies(x: Tensor, amplitude: float, inv_temperature: float) -> tuple[Tensor, Tensor]:
    """The definition: a softmax over the whole codebook."""
    d = x.shape[1]
    codebook = ((torch.arange(2**d).unsqueeze(1) >> torch.arange(d - 1, -1, -1)) & 1).to(x) * 2 * amplitude - amplitude
    p = (2 * inv_temperature * x @ codebook.t()).softmax(-1)
    mean = p.mean(0)
    each = -(p * p.clamp_min(1e-5).log()).sum(-1).mean()
    return each, -(mean * mean.clamp_min(1e-5).log()).sum()


@pytest.mark.parametrize("d", [1, 2, 7, 12])
@pytest.mark.parametrize("inv_temperature", [0.05, 0.5, 5.0, 50.0])
def test_entropies_by_definition(d: int, inv_temperature: float) -> None:
    x = gauss(12, d).double().requires_grad_()
    want = brute_entropies(x, 0.7, inv_temperature)
    grads = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in want]
    y = x.detach().clone().requires_grad_()
    logits, weights = y * (4 * inv_temperature * 0.7), torch.full((12,), 1 / 12, dtype=torch.float64)
    mean = mean_code_probability(logits, weights)
    got = bit_entropy(logits, weights, 1e-5), -(mean * mean.clamp_min(1e-5).log()).sum()
    torch.testing.assert_close(got, want)
    for value, grad in zip(got, grads, strict=True):
        torch.testing.assert_close(torch.autograd.grad(value, y, retain_graph=True)[0], grad)


def test_bit_entropy_without_a_floor_is_the_sum_over_bits() -> None:
    logits = gauss(5, 10).double()
    p = logits.sigmoid()
    want = -(p * p.log() + (1 - p) * (1 - p).log()).sum(1)
    torch.testing.assert_close(bit_entropy(logits, torch.ones(5).double(), 1e-300), want.sum())
    x = logits.requires_grad_()
    value = bit_entropy(x, torch.ones(5).double(), 1e-5)
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError):  # once is what it can do, and it says so
        grad.sum().backward()


def test_lfq_entropy_over_a_share_of_the_rows() -> None:
    x = 0.2 * gauss(2, 400, 6)
    whole = LFQ(dim=6)(x, return_loss_breakdown=True)[1].per_sample_entropy
    part = LFQ(dim=6, frac_per_sample_entropy=0.25)
    draws = [part(x, return_loss_breakdown=True, generator=seeded(i))[1].per_sample_entropy for i in range(20)]
    assert abs(torch.stack(draws).mean() - whole) < 0.1 * whole
    assert torch.equal(part(x, generator=seeded(4)).entropy_aux_loss, part(x, generator=seeded(4)).entropy_aux_loss)
    mask = torch.arange(400) < 40
    masked = part(x, return_loss_breakdown=True, mask=mask.expand(2, -1), generator=seeded())[1].per_sample_entropy
    assert masked > 0
    theirs = peer.LFQ(dim=6, frac_per_sample_entropy=0.25)
    want = [theirs(x, return_loss_breakdown=True)[1].per_sample_entropy for _ in range(20)]
    assert abs(torch.stack(draws).mean() - torch.stack(want).mean()) < 0.1 * whole


def test_fsq_noise() -> None:
    options: dict[str, Any] = {"levels": [9, 9], "preserve_symmetry": True, "noise_dropout": 0.5}
    ours, theirs, x = FSQ(**options), peer.FSQ(**options), gauss(1, 4000, 2)
    clean = ours.eval()(x)[0]
    ours.train()
    noisy, indices = ours(x, generator=seeded())
    assert torch.equal(noisy, ours(x, generator=seeded())[0])
    assert torch.equal(indices, ours.eval()(x)[1])  # codes are taken before the noise
    apart, wanted = (noisy - clean).abs(), (theirs(x)[0] - clean).abs()
    assert noisy.abs().max() <= 1
    assert abs((apart > 1e-6).float().mean() - (wanted > 1e-6).float().mean()) < 0.04
    assert abs(apart.mean() - wanted.mean()) < 0.02


def test_latent_tables() -> None:
    tie = LatentQuantize([3, 4], dim=2)
    assert tie(torch.tensor([[[0.25], [-0.375]]]))[1].item() == 1 + 0 * 3  # halfway: the lower entry
    with torch.no_grad():
        tie.values_per_latent[0].copy_(torch.tensor([0.1, -0.4, 0.3]))  # learned: no longer in order
    quantized, indices, _ = tie.eval()(torch.tensor([[[0.29, -0.3], [0.2, 0.2]]]))
    torch.testing.assert_close(quantized[0, 0], torch.tensor([0.3, -0.4]))
    torch.testing.assert_close(tie.indices_to_codes(indices), quantized)
    assert torch.equal(tie.codes_to_indices(quantized.movedim(1, -1)), indices)
    fixed = LatentQuantize([3, 4], dim=2, optimize_values=False)
    assert not list(fixed.parameters()) and not fixed.state_dict() and len(fixed.values_per_latent) == 2
    assert fixed.double().values_per_latent[0].dtype == torch.float64


def test_latent_tables_learn_on_request() -> None:
    """QLAE: the gradient to z is the identity, that of a table a sum per entry."""
    module, x = LatentQuantize([5, 8], dim=2, value_gradient=True), 0.4 * gauss(2, 2, 50)
    weight = gauss(2, 2, 50, seed=1)
    x.requires_grad_()
    quantized, indices, _ = module(x)
    (quantized * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight)
    for j, (table, basis, level) in enumerate(zip(module.values_per_latent, (1, 5), (5, 8), strict=True)):
        digits = (indices // basis % level).long()
        want = torch.zeros(level).index_add_(0, digits.flatten(), weight[:, j].flatten())
        torch.testing.assert_close(table.grad, want)
    still = LatentQuantize([5, 8], dim=2)
    still(x)[0].sum().backward()
    assert all(table.grad is None for table in still.values_per_latent)


def test_binary_mapper_draws_bits() -> None:
    logits = torch.tensor([-2.0, 0.0, 1.0, 3.0])
    mapper = BinaryMapper(4)
    one_hot, indices, _ = mapper(logits.expand(20_000, 4), return_indices=True, generator=seeded())
    assert torch.equal(one_hot.argmax(-1), indices) and torch.equal(one_hot.sum(-1), torch.ones(20_000))
    rate = mapper.codes[indices].float().mean(0)
    torch.testing.assert_close(rate, logits.sigmoid(), rtol=0, atol=0.015)
    warm = mapper(logits.expand(20_000, 4), temperature=4.0, return_indices=True, generator=seeded())[1]
    torch.testing.assert_close(mapper.codes[warm].float().mean(0), (logits / 4).sigmoid(), rtol=0, atol=0.015)
    again = mapper(logits.expand(20_000, 4), return_indices=True, generator=seeded())[1]
    assert torch.equal(again, indices)
    with pytest.raises(ValueError, match="logits"):
        mapper(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="indices and one_hot"):
        mapper.log_prob(logits)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_sixteen_bits(dtype: torch.dtype) -> None:
    """Decided in float32 from the values as they are; returned in the input's dtype."""
    for module, shape in (
        (FSQ([5, 4, 6]), (2, 30, 3)),
        (LFQ(dim=3), (2, 30, 3)),
        (ResidualFSQ(levels=[5, 4, 6], num_quantizers=3), (2, 30, 3)),
        (ResidualLFQ(dim=3, codebook_size=8, num_quantizers=3), (2, 30, 3)),
        (LatentQuantize([5, 4, 6], dim=3), (2, 3, 30)),
    ):
        x = (0.4 * gauss(*shape)).to(dtype)
        got, want = module.eval()(x), module(x.float())
        assert got[0].dtype == dtype and torch.equal(got[1], want[1])
        torch.testing.assert_close(got[0], want[0].to(dtype))
        got = module.train()(x.requires_grad_())
        got[0].float().square().sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()
    cast = FSQ([5, 4, 6], dim=8).to(dtype)
    quantized, indices = cast(gauss(2, 30, 8).to(dtype))
    assert quantized.dtype == dtype and cast.indices_to_codes(indices).dtype == dtype


def test_autocast_decides_nothing() -> None:
    x = 0.4 * gauss(2, 30, 4)
    for module in (
        FSQ([5, 5, 5, 5], orthogonal_rotation=True),
        LFQ(dim=4, orthogonal_rotation=True),
        ResidualFSQ(levels=[5, 5, 5, 5], num_quantizers=3),
        ResidualLFQ(dim=4, codebook_size=16, num_quantizers=3),
        LatentQuantize([5, 4], dim=2),
    ):
        given = x[..., :2].movedim(1, 2) if isinstance(module, LatentQuantize) else x
        want = module(given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = module(given)
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    projected = FSQ([5, 5, 5, 5], dim=6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized, indices = projected(gauss(2, 30, 6))
        assert indices is not None and projected.indices_to_codes(indices).dtype == quantized.dtype


COMPILED: dict[str, tuple[nn.Module, tuple[int, ...], dict[str, Any]]] = {
    "FSQ": (FSQ([5, 4, 6], dim=8), (2, 9, 8), {}),
    "FSQ noise": (FSQ([5, 4, 6], preserve_symmetry=True, noise_dropout=0.0), (2, 9, 3), {}),
    "ResidualFSQ": (ResidualFSQ(levels=[5, 4, 3], num_quantizers=3), (2, 9, 3), {"num_stages": 2}),
    "LFQ": (LFQ(dim=6, commitment_loss_weight=0.2), (2, 9, 6), {}),
    "LFQ masked": (LFQ(dim=6), (2, 9, 6), {"mask": torch.tensor([True, False])}),
    "ResidualLFQ": (
        ResidualLFQ(dim=6, codebook_size=16, num_quantizers=2),
        (2, 9, 6),
        {"return_all_codes": True},
    ),
    "LatentQuantize": (LatentQuantize([5, 4], dim=3), (2, 3, 9), {}),
    "BinaryMapper": (BinaryMapper(4), (2, 9, 4), {"deterministic": True, "return_indices": True}),
}


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("train", [True, False])
def test_compiles_whole(name: str, train: bool) -> None:
    module, shape, options = COMPILED[name]
    module.train(train)
    x = 0.4 * gauss(*shape)
    want, want_grads = run(module, x, **options)
    got, got_grads = run(torch.compile(module, fullgraph=True, backend="aot_eager"), x, **options)
    torch.testing.assert_close(got, want)
    assert all(g is w is None or torch.allclose(g, w, atol=1e-5) for g, w in zip(got_grads, want_grads, strict=True))


def test_copies_and_pickles() -> None:
    x = gauss(2, 9, 3)
    for module in (
        FSQ([5, 4, 6], dim=3),
        LFQ(dim=3),
        ResidualFSQ(levels=[5, 4, 3], num_quantizers=2, quantize_dropout=True),
    ):
        module.eval()
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(other(x)[1], module(x)[1])


REFUSED: list[tuple[type, dict[str, Any], str]] = [
    (FSQ, {"levels": [5, 2]}, "levels"),
    (FSQ, {"levels": [5, 5], "noise_dropout": 0.5}, "noise_dropout"),
    (FSQ, {"levels": [5, 5], "num_codebooks": 2, "keep_num_codebooks_dim": False}, "keep_num_codebooks_dim"),
    (ResidualFSQ, {"levels": [5, 5], "num_quantizers": 2, "num_codebooks": 2}, "num_codebooks"),
    (ResidualFSQ, {"levels": [5, 5], "num_quantizers": 2, "return_indices": False}, "return_indices"),
    (ResidualFSQ, {"levels": [5, 5], "num_quantizers": 2, "channel_first": True}, "channel_first"),
    (
        ResidualFSQ,
        {"levels": [5, 5], "num_quantizers": 2, "soft_clamp_input_value": 2.0},
        "soft_clamp_input_value",
    ),
    (
        ResidualFSQ,
        {"levels": [5, 5], "num_quantizers": 2, "quantize_dropout": True, "quantize_dropout_cutoff_index": 2},
        "quantize_dropout_cutoff_index",
    ),
    (GroupedResidualFSQ, {"dim": 5, "groups": 2, "levels": [5, 5], "num_quantizers": 2}, "groups"),
    (LFQ, {}, "dim or codebook_size"),
    (LFQ, {"codebook_size": 10}, "codebook_size"),
    (LFQ, {"dim": 4, "frac_per_sample_entropy": 0.0}, "frac_per_sample_entropy"),
    (LFQ, {"dim": 4, "soft_clamp_input_value": 0.5}, "soft_clamp_input_value"),
    (ResidualLFQ, {"dim": 4, "codebook_size": 16, "num_quantizers": 2, "num_codebooks": 2}, "num_codebooks"),
    (ResidualLFQ, {"dim": 4, "codebook_size": 15, "num_quantizers": 2}, "codebook_size"),
    (LatentQuantize, {"levels": [5, 1], "dim": 2}, "levels"),
    (
        LatentQuantize,
        {"levels": [5, 5], "dim": 2, "in_place_codebook_optimizer": torch.optim.SGD},
        "in_place_codebook_optimizer",
    ),
    (BinaryMapper, {"bits": 0}, "bits"),
]


@pytest.mark.parametrize("cls, options, named", REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_refuses_by_name(cls: type, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        cls(**options)


def test_refuses_other_shapes() -> None:
    for module in (
        FSQ([5, 5]),
        LFQ(dim=2),
        ResidualFSQ(levels=[5, 5], num_quantizers=2),
        LatentQuantize([5, 5], dim=2),
    ):
        with pytest.raises(ValueError, match="[xz] must have dim = 2"):
            module(torch.zeros(2, 3, 3))
        with pytest.raises(TypeError, match="[xz] must be float32"):
            module(torch.zeros(2, 2, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    "options",
    [{"dim": 8, "cosine_sim_project_in": True}, {"dim": 4, "spherical": True, "force_quantization_f32": False}],
)
def test_a_row_of_zeros_is_a_row_in_float16(options: dict[str, Any]) -> None:
    module = LFQ(codebook_size=16, **options).half()
    x = torch.zeros(1, 3, options["dim"], dtype=torch.float16)
    (quantized, codes, loss), parts = module(x, return_loss_breakdown=True)
    assert (
        (codes == 0).all() and quantized.isfinite().all() and parts.per_sample_entropy > 2
    )  # it counts: all bits open
    if loss.requires_grad:
        (quantized.sum() + loss).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
