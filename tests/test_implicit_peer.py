"""FSQ, LFQ, LatentQuantize, BinaryMapper and their cascades beside those of vector-quantize-pytorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drop_in import assert_alike, assert_close, gauss, peer
from helpers import seeded
from torch import nn

from vecbank.nn.binary_mapper import BinaryMapper
from vecbank.nn.fsq import FSQ, GroupedResidualFSQ, ResidualFSQ
from vecbank.nn.latent_quantize import LatentQuantize
from vecbank.nn.lfq import LFQ, GroupedResidualLFQ, ResidualLFQ


@pytest.mark.parametrize("preserve_symmetry", [False, True])
@pytest.mark.parametrize("bound_hard_clamp", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_codebooks": 2},
        {"dim": 12},
        {"dim": 12, "num_codebooks": 2},
        {"keep_num_codebooks_dim": True},
    ],
    ids=str,
)
def test_fsq_like_peer(preserve_symmetry: bool, bound_hard_clamp: bool, options: dict[str, Any]) -> None:
    options = {**options, "preserve_symmetry": preserve_symmetry, "bound_hard_clamp": bound_hard_clamp}
    theirs, ours = peer.FSQ([8, 5, 5, 6], **options), FSQ([8, 5, 5, 6], **options)
    for train in (True, False):
        assert_alike(ours, theirs, gauss(2, 50, theirs.dim), train)
    assert_close(ours.implicit_codebook, theirs.implicit_codebook, 1e-6, "implicit_codebook")
    _, indices = theirs(gauss(2, 50, theirs.dim))
    assert_close(ours.indices_to_codes(indices), theirs.indices_to_codes(indices), 1e-6, "indices_to_codes")
    assert torch.equal(ours.indices_to_level_indices(indices), theirs.indices_to_level_indices(indices))
    codes = ours.implicit_codebook
    assert torch.equal(ours.codes_to_indices(codes), theirs.codes_to_indices(codes))
    assert ours.codes_to_indices(codes).dtype == torch.int32


def test_fsq_layouts_like_peer() -> None:
    for options, shape in (
        ({}, (2, 4, 5, 6)),
        ({}, (2, 4, 3, 5, 6)),
        ({"channel_first": True}, (2, 4, 9)),
        ({"dim": 7}, (2, 7, 5, 6)),
        ({"orthogonal_rotation": True}, (2, 11, 4)),
        ({"projection_has_bias": False, "dim": 7}, (2, 11, 7)),
        ({"return_indices": False}, (2, 4, 5, 6)),
        ({"scale": 2.0, "force_quantization_f32": False}, (2, 11, 4)),
    ):
        theirs, ours = peer.FSQ([5, 5, 5, 5], **options), FSQ([5, 5, 5, 5], **options)
        assert_alike(ours, theirs, gauss(*shape))
        if ours.return_indices:
            indices = ours(gauss(*shape))[1]
            assert indices is not None
            torch.testing.assert_close(ours.indices_to_codes(indices), ours(gauss(*shape))[0])


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 8},
        {},
        {"dim": 8, "is_channel_first": True},
        {"bound_hard_clamp": False, "soft_clamp_input_value": 2.0},
        {"bound_hard_clamp": False, "soft_clamp_input_value": [1.5, 2.0, 2.5]},
        {"bound_hard_clamp": False},
    ],
    ids=str,
)
def test_residual_fsq_like_peer(options: dict[str, Any]) -> None:
    theirs = peer.ResidualFSQ(levels=[5, 4, 3], num_quantizers=4, **options)
    ours = ResidualFSQ(levels=[5, 4, 3], num_quantizers=4, **options)
    first = options.get("is_channel_first", False)
    x = gauss(2, 30, options.get("dim", 3))
    for train in (True, False):
        if first:
            assert_alike(ours, theirs, x.movedim(1, 2), train)
        else:
            assert_alike(ours, theirs, x, train, return_all_codes=True)
    assert_close(ours.codebooks, theirs.codebooks, 1e-6, "codebooks")
    if not first:
        indices = ours(x)[1]
        assert_close(ours.get_output_from_indices(indices), theirs.get_output_from_indices(indices), 1e-5, "decoded")


LFQ_OPTIONS: list[dict[str, Any]] = [
    {"codebook_size": 256},
    {"codebook_size": 256, "dim": 12},
    {"codebook_size": 64, "num_codebooks": 2, "dim": 16},
    {"dim": 8, "spherical": True},
    {"dim": 8, "commitment_loss_weight": 0.5, "diversity_gamma": 0.7},
    {"dim": 8, "soft_clamp_input_value": 3.0},
    {"dim": 8, "codebook_scale": 0.5, "orthogonal_rotation": True},
    {"dim": 8, "experimental_softplus_entropy_loss": True, "entropy_loss_offset": 2.0},
    {"dim": 9, "codebook_size": 32, "cosine_sim_project_in": True, "cosine_sim_project_in_scale": 2.0},
    {"dim": 8, "straight_through_activation": nn.Tanh()},
    {"dim": 8, "has_projections": True, "projection_has_bias": False},
    {"dim": 1},
    {"dim": 3, "force_quantization_f32": False, "keep_num_codebooks_dim": True},
]


@pytest.mark.parametrize("options", LFQ_OPTIONS, ids=str)
def test_lfq_like_peer(options: dict[str, Any]) -> None:
    theirs, ours = peer.LFQ(**options), LFQ(**options)
    # The peer's own float32 scores are off by about inv_temperature |x| 2^-24 before the softmax.
    for inv_temperature, tolerance in ((100.0, 3e-4), (1.0, 1e-5), (0.01, 1e-5)):
        x = 0.3 * gauss(2, 40, theirs.dim)
        call = {"inv_temperature": inv_temperature, "return_loss_breakdown": True}
        assert_alike(ours, theirs, x, True, tolerance, **call)
        assert_alike(ours, theirs, x, False, 1e-6, **call)
    indices = ours(x)[1]
    assert_close(ours.indices_to_codes(indices), theirs.indices_to_codes(indices), 1e-6, "indices_to_codes")
    assert_close(ours.codebook, theirs.codebook, 1e-6, "codebook")
    assert ours.dtype == theirs.dtype


def test_lfq_layouts_like_peer() -> None:
    for options, shape in (
        ({}, (2, 4, 5, 6)),
        ({}, (2, 4, 3, 5, 6)),
        ({"channel_first": True}, (2, 4, 9)),
        ({"channel_first": False}, (2, 9, 4)),
        ({"dim": 8, "codebook_size": 16, "num_codebooks": 2}, (2, 8, 3, 3)),
    ):
        options = {"dim": 4, **options}
        theirs, ours = peer.LFQ(**options), LFQ(**options)
        assert_alike(ours, theirs, gauss(*shape), tolerance=3e-4)
        got = ours.eval()(gauss(*shape))
        torch.testing.assert_close(ours.indices_to_codes(got.indices), got.quantized)
        assert_close(
            ours.indices_to_codes(got.indices, project_out=False),
            theirs.indices_to_codes(got.indices, project_out=False),
            1e-6,
            "not projected",
        )


def test_lfq_counts_only_the_rows_of_the_mask() -> None:
    """As the peer without a mask, on those rows. (With a mask the peer forgets to average over rows.)"""
    x, mask = 0.3 * gauss(2, 40, 6), torch.rand(2, 40, generator=seeded()) > 0.4
    ours, theirs = LFQ(dim=6, commitment_loss_weight=0.5), peer.LFQ(dim=6, commitment_loss_weight=0.5)
    (_, _, loss), parts = ours(x, inv_temperature=1.0, return_loss_breakdown=True, mask=mask)
    (_, _, want), terms = theirs(x[mask].unsqueeze(0), inv_temperature=1.0, return_loss_breakdown=True)
    torch.testing.assert_close((loss, *parts), (want, *terms), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours(x, mask=mask).quantized, ours(x).quantized)
    by_item = ours(x, mask=torch.tensor([False, True])).entropy_aux_loss
    torch.testing.assert_close(by_item, ours(x[1:]).entropy_aux_loss)
    assert ours(x, mask=torch.zeros(2, dtype=torch.bool)).entropy_aux_loss == 0
    with pytest.raises(ValueError, match="mask"):
        ours(x, mask=torch.zeros(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="mask"):
        ours(x, mask=torch.zeros(2))


@pytest.mark.parametrize(
    "options",
    [{"dim": 8}, {"dim": 4}, {"dim": 8, "soft_clamp_input_value": 2.0, "commitment_loss_weight": 0.25}],
    ids=str,
)
def test_residual_lfq_like_peer(options: dict[str, Any]) -> None:
    theirs = peer.ResidualLFQ(codebook_size=16, num_quantizers=3, **options)
    ours = ResidualLFQ(codebook_size=16, num_quantizers=3, **options)
    x = 0.5 * gauss(2, 40, options["dim"])
    for train in (True, False):
        assert_alike(ours, theirs, x, train, 3e-4, return_all_codes=True)
    indices = ours(x)[1]
    assert_close(ours.get_output_from_indices(indices), theirs.get_output_from_indices(indices), 1e-5, "decoded")
    assert_close(ours.codebooks, theirs.codebooks, 0, "codebooks")


def test_grouped_like_peer() -> None:
    for ours, theirs in (
        (
            GroupedResidualFSQ(dim=8, groups=2, levels=[5, 4, 3], num_quantizers=3),
            peer.GroupedResidualFSQ(dim=8, groups=2, levels=[5, 4, 3], num_quantizers=3),
        ),
        (
            GroupedResidualLFQ(dim=8, groups=2, codebook_size=8, num_quantizers=3),
            peer.GroupedResidualLFQ(dim=8, groups=2, codebook_size=8, num_quantizers=3),
        ),
    ):
        x = 0.5 * gauss(2, 20, 8)
        assert_alike(ours, theirs, x, tolerance=3e-4, return_all_codes=True)
        indices = ours(x)[1]
        assert_close(ours.get_output_from_indices(indices), theirs.get_output_from_indices(indices), 1e-5, "decoded")
        assert_close(ours.get_codes_from_indices(indices), theirs.get_codes_from_indices(indices), 1e-5, "codes")
        assert_close(ours.codebooks, theirs.codebooks, 1e-6, "codebooks")


@pytest.mark.parametrize(
    "options",
    [
        {"levels": [5, 5, 8], "dim": 16},
        {"levels": 5, "codebook_dim": 3, "dim": 3},
        {"levels": [5, 5, 8], "dim": 16, "num_codebooks": 4},
        {"levels": [4, 4], "dim": 2, "optimize_values": False, "commitment_loss_weight": 0.0},
        {"levels": [4, 6], "dim": 2, "keep_num_codebooks_dim": True, "quantization_loss_weight": 0.7},
    ],
    ids=str,
)
def test_latent_quantize_like_peer(options: dict[str, Any]) -> None:
    theirs, ours = peer.LatentQuantize(**options), LatentQuantize(**options)
    for shape in ((2, options["dim"], 40), (2, options["dim"], 5, 6)):
        for train in (True, False):
            assert_alike(ours, theirs, 0.4 * gauss(*shape), train)
        indices = ours(0.4 * gauss(*shape))[1]
        assert_close(ours.indices_to_codes(indices), theirs.indices_to_codes(indices), 1e-6, "indices_to_codes")
    assert_close(ours.implicit_codebook, theirs.implicit_codebook, 1e-6, "implicit_codebook")


def test_binary_mapper_like_peer() -> None:
    theirs, ours = peer.BinaryMapper(5), BinaryMapper(5)
    assert torch.equal(ours.codes, theirs.codes)
    for train in (True, False):
        for options in ({}, {"reduce_aux_kl_loss": False, "calc_aux_loss": True}, {"straight_through": True}):
            assert_alike(ours, theirs, gauss(3, 7, 5), train, deterministic=True, return_indices=True, **options)
    logits = gauss(3, 7, 5)
    one_hot, indices, _ = ours(logits, return_indices=True)
    for options in ({"indices": indices}, {"one_hot": one_hot}, {"indices": indices, "sum_bits": False}):
        torch.testing.assert_close(ours.log_prob(logits, **options), theirs.log_prob(logits, **options))
    torch.testing.assert_close(ours.calc_aux_loss(logits), theirs.calc_aux_loss(logits))
    torch.testing.assert_close(ours.binary_entropy(logits), theirs.binary_entropy(logits))
    ours.eval()
    same = BinaryMapper(5, deterministic_on_eval=True).eval()
    assert torch.equal(same(logits)[0], same(logits)[0])


@pytest.mark.parametrize("cutoff, multiple", [(0, 1), (1, 2), (2, 4)])
def test_dropout_stops_where_the_peer_does(cutoff: int, multiple: int) -> None:
    options: dict[str, Any] = {
        "quantize_dropout": True,
        "quantize_dropout_cutoff_index": cutoff,
        "quantize_dropout_multiple_of": multiple,
    }
    pairs = (
        (ResidualFSQ, peer.ResidualFSQ, {"levels": [5, 4, 3], "num_quantizers": 8}),
        (ResidualLFQ, peer.ResidualLFQ, {"dim": 3, "codebook_size": 8, "num_quantizers": 8}),
    )
    for ours_class, theirs_class, more in pairs:
        ours, theirs = ours_class(**more, **options), theirs_class(**more, **options)
        for seed in range(6):
            got = ours(gauss(2, 9, 3), rand_quantize_dropout_fixed_seed=seed)
            want = theirs(gauss(2, 9, 3), rand_quantize_dropout_fixed_seed=seed)
            assert torch.equal(got[1], want[1].to(got[1].dtype))
            torch.testing.assert_close(got[0], want[0])
        coarse = got[1][..., :2]
        torch.testing.assert_close(ours.get_output_from_indices(coarse), theirs.get_output_from_indices(coarse))
