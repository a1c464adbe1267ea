"""Codes back to what forward returned: every option, layout and integer dtype; -1; codes that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import gauss
from torch import Tensor, nn

from vecbank import codes as scalar
from vecbank import nn as vn
from vecbank import pq, residual_lookup
from vecbank.embedding import coded_lookup, hash_rows, low_rank_lookup, two_table_lookup

DIM, STAGES, GROUPS = 6, 3, 2


def decoded(module: Any, codes: Tensor) -> Tensor:
    for name in ("get_output_from_indices", "indices_to_codes", "decode"):
        if hasattr(module, name):
            out: Tensor = getattr(module, name)(codes)
            return out
    raise AssertionError(type(module))


def residual(cls: type, **options: Any) -> Callable[..., nn.Module]:
    book = {"levels": [5, 4, 3]} if "FSQ" in cls.__name__ else {"codebook_size": 8}
    return lambda **layout: cls(dim=DIM, num_quantizers=STAGES, **book, **options, **layout)


def grouped(cls: type, **options: Any) -> Callable[..., nn.Module]:
    return residual(cls, groups=GROUPS, **options)


# name: a module of DIM features, and the argument that puts them on axis 1 (None: they are there anyhow)
MADE: dict[str, tuple[Callable[..., nn.Module], str | None]] = {
    **{
        f"FSQ {options}": (
            lambda options=options, **layout: vn.FSQ(**{"dim": DIM, **options, **layout}),
            "channel_first",
        )
        for options in (
            {"levels": [5, 4, 3]},
            {"levels": [5, 4, 3], "num_codebooks": 2},
            {"levels": [5, 4, 3], "keep_num_codebooks_dim": True, "projection_has_bias": False},
            {"levels": [5] * DIM, "orthogonal_rotation": True},
            {"levels": [2, 8, 5], "preserve_symmetry": True, "noise_dropout": 0.5},
            {"levels": [5, 4, 3], "bound_hard_clamp": True, "scale": 2.0},
            {"levels": [7, 4, 3] * 2, "preserve_symmetry": True, "bound_hard_clamp": True},
        )
    },
    **{
        f"LFQ {options}": (
            lambda options=options, **layout: vn.LFQ(**{"dim": DIM, **options, **layout}),
            "channel_first",
        )
        for options in (
            {},
            {"codebook_size": 8, "num_codebooks": 2},
            {"codebook_size": 8, "num_codebooks": 3, "cosine_sim_project_in": True},
            {"keep_num_codebooks_dim": True, "spherical": True},
            {"orthogonal_rotation": True, "codebook_scale": 0.5},
            {"has_projections": True, "projection_has_bias": False, "soft_clamp_input_value": 2.0},
            {"straight_through_activation": nn.Tanh()},
        )
    },
    **{
        f"LatentQuantize {options}": (
            lambda options=options, **layout: vn.LatentQuantize(**{"dim": DIM, **options}),
            None,
        )
        for options in (
            {"levels": [5, 4, 3]},
            {"levels": [5, 4, 3], "num_codebooks": 2},
            {"levels": 4, "codebook_dim": DIM, "optimize_values": False},
            {"levels": [5, 4], "num_codebooks": 3, "keep_num_codebooks_dim": True},
        )
    },
    "ResidualFSQ": (residual(vn.ResidualFSQ), "is_channel_first"),
    "ResidualFSQ soft": (
        residual(vn.ResidualFSQ, bound_hard_clamp=False, soft_clamp_input_value=[1.5, 2.0, 2.5]),
        "is_channel_first",
    ),
    "ResidualLFQ": (residual(vn.ResidualLFQ), "channel_first"),
    "ResidualLFQ spherical": (residual(vn.ResidualLFQ, spherical=True, orthogonal_rotation=True), "channel_first"),
    "GroupedResidualFSQ": (grouped(vn.GroupedResidualFSQ), "accept_image_fmap"),
    "GroupedResidualLFQ": (grouped(vn.GroupedResidualLFQ), "accept_image_fmap"),
}


@pytest.mark.parametrize("name", MADE)
def test_decoding_gives_what_forward_gave(name: str) -> None:
    """Also where numbers of rows, features, stages, groups and books are the same, so that no shape tells axes."""
    make, first_option = MADE[name]
    for first in (False, True) if first_option else (True,):
        torch.manual_seed(0)
        module: Any = make(**({first_option: first} if first_option else {})).eval()
        for lead in ((2,), *((b, n) for b in (1, 2, 3) for n in (1, 2, 3, 6, 7)), (2, 3, 6), (3, 3, 3, 3)):
            x = 0.7 * gauss(*lead, DIM)
            if len(lead) > 2 and not first and name.startswith("FSQ"):
                continue  # four axes are channel first in any case
            given = x.movedim(-1, 1) if first else x
            out, codes = module(given)[:2]
            assert out.shape == given.shape
            torch.testing.assert_close(decoded(module, codes), out, rtol=1e-5, atol=1e-6)
            if "Residual" in name and len(lead) > 1:
                every = module(given, return_all_codes=True)[-1]
                again = module.get_codes_from_indices(codes)
                torch.testing.assert_close(
                    tuple(every) if "Grouped" in name else every, tuple(again) if "Grouped" in name else again
                )


def test_images_without_a_word_about_the_axis() -> None:
    """LFQ and ResidualLFQ take four axes as channel first, and decode their codes so."""
    for module in (vn.LFQ(dim=DIM), residual(vn.ResidualLFQ)()):
        out, codes = module.eval()(gauss(2, DIM, 3, 3))[:2]
        torch.testing.assert_close(decoded(module, codes), out)
    for cls, option in ((vn.GroupedResidualFSQ, "is_channel_first"), (vn.GroupedResidualLFQ, "channel_first")):
        for image in (False, True):
            with pytest.raises(ValueError, match=f"{option} must be accept_image_fmap = {image}"):
                grouped(cls, accept_image_fmap=image, **{option: not image})()


# name: (codes to vectors, how many codes, shape of codes, the name of the argument)
def table() -> dict[str, tuple[Callable[[Tensor], Tensor], int, tuple[int, ...], str]]:
    torch.manual_seed(0)
    books, tables, packed = torch.randn(3, 9, 2), torch.randn(4, 5), torch.randint(256, (20, 3), dtype=torch.uint8)
    stages, logits = torch.randn(3, 9, 4), gauss(7, 4)
    embeddings = {
        "full": {},
        "hashed": {"rows": 5},
        "two_table": {"base": 5},
        "low_rank": {"rank": 2},
        "integer": {},
        "product": {"bits": 2},
    }
    return {
        "FSQ": (vn.FSQ([5, 5], dim=3, projection_has_bias=False).indices_to_codes, 25, (7,), "indices"),
        "FSQ symmetric": (vn.FSQ([5, 2], preserve_symmetry=True).indices_to_codes, 10, (2, 7), "indices"),
        "FSQ digits": (lambda c: vn.FSQ([5, 5]).indices_to_level_indices(c) + 1, 25, (7,), "indices"),
        "LFQ": (vn.LFQ(dim=3).indices_to_codes, 8, (2, 7), "indices"),
        "LatentQuantize": (vn.LatentQuantize([5, 4], dim=2).indices_to_codes, 20, (7,), "indices"),
        "BinaryMapper": (lambda c: vn.BinaryMapper(4).log_prob(logits, indices=c, sum_bits=False), 16, (7,), "indices"),
        "ResidualFSQ": (vn.ResidualFSQ(levels=[5, 4], num_quantizers=3).get_output_from_indices, 20, (7, 3), "indices"),
        "ResidualFSQ, first": (
            vn.ResidualFSQ(levels=[5, 4], num_quantizers=3, is_channel_first=True).get_output_from_indices,
            20,
            (7, 3, 2),
            "indices",
        ),
        "ResidualLFQ": (
            vn.ResidualLFQ(dim=3, codebook_size=8, num_quantizers=3).get_output_from_indices,
            8,
            (7, 3),
            "indices",
        ),
        "GroupedResidualFSQ": (
            vn.GroupedResidualFSQ(dim=4, groups=2, levels=[5, 4], num_quantizers=3).get_output_from_indices,
            20,
            (2, 7, 3),
            "indices",
        ),
        "GroupedResidualLFQ": (
            vn.GroupedResidualLFQ(dim=6, groups=2, codebook_size=8, num_quantizers=3).get_output_from_indices,
            8,
            (2, 7, 3),
            "indices",
        ),
        "ProductQuantizer": (vn.ProductQuantizer(6, 3, 9).decode, 9, (7, 3), "codes"),
        "CodebookFeatures": (vn.CodebookFeatures(6, 9, 3, reduce="sum").decode, 9, (7, 3), "codes"),
        "CodebookFeatures heads": (vn.CodebookFeatures(6, 9, 1, heads=3).decode, 9, (7, 3, 1), "codes"),
        "pq.decode": (lambda c: pq.decode(c, books), 9, (7, 3), "codes"),
        "residual_lookup": (lambda c: residual_lookup(c, stages), 9, (7, 3), "codes"),
        "scalar_lookup": (lambda c: scalar.scalar_lookup(c, tables), 5, (7, 4), "codes"),
        "fsq_lookup": (lambda c: scalar.fsq_lookup(c, [5, 4]), 20, (7,), "codes"),
        "coded_lookup": (lambda c: coded_lookup(c, packed, torch.ones(3, 256, 2), 8), 20, (7,), "ids"),
        "two_table_lookup": (lambda c: two_table_lookup(c, torch.ones(5, 2), torch.ones(4, 2)), 20, (7,), "ids"),
        "low_rank_lookup": (lambda c: low_rank_lookup(c, torch.ones(20, 2), torch.ones(2, 3)), 20, (7,), "ids"),
        **{
            f"CompressedEmbedding {method}": (vn.CompressedEmbedding(20, 4, method, **options), 20, (7,), "ids")
            for method, options in embeddings.items()
        },
    }


DTYPES = (torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


@pytest.mark.parametrize("name", table())
def test_codes_of_every_integer_dtype_and_of_none(name: str) -> None:
    decode, count, shape, named = table()[name]
    codes = torch.randint(count, shape, generator=torch.Generator().manual_seed(1))
    want = decode(codes)
    for dtype in DTYPES:
        assert torch.equal(decode(codes.to(dtype)), want), dtype
    assert (decode(torch.full_like(codes, -1)) == 0).all()
    assert (decode(torch.full_like(codes, -1).to(torch.int8)) == 0).all()
    for wrong in (-2, count, count + 1, 2 * count):
        bad = codes.clone()
        bad.view(-1)[-1] = wrong
        with pytest.raises(IndexError, match=f"{named} must lie between -1 and {count - 1}, got values from"):
            decode(bad)
    for kind in (torch.float32, torch.bool):
        with pytest.raises(TypeError, match=f"{named} must be integers, got {kind}"):
            decode(codes.to(kind))


def test_codes_that_no_check_has_seen_become_no_row() -> None:
    """In a traced program values cannot be looked at: NaN, never another code's row."""
    module = vn.FSQ([5, 5])
    traced = torch.compile(module.indices_to_codes, fullgraph=True, backend="eager")
    codes = torch.tensor([3, -1, 25, -2])
    got = traced(codes)
    assert torch.equal(got[:2], module.indices_to_codes(codes[:2])) and got[2:].isnan().all()
    torch._dynamo.reset()


def test_the_other_takers_of_codes() -> None:
    codes = torch.tensor([[1, 2, 3], [4, 5, 6]])
    books = gauss(3, 9, 2)
    tables = pq.symmetric_tables(codes, books)
    force = vn.CodebookFeatures(6, 9, 2, generator=torch.Generator().manual_seed(0))
    for dtype in DTYPES:
        small = codes.to(dtype)
        assert torch.equal(pq.symmetric_tables(small, books), tables)
        assert torch.equal(pq.scores(tables, small), pq.scores(tables, codes))
        assert torch.equal(hash_rows(small, 7, 2), hash_rows(codes, 7, 2))
        assert torch.equal(scalar.pack_bits(small, 3), scalar.pack_bits(codes, 3))
        assert torch.equal(scalar.index_to_bits(small, 3), scalar.index_to_bits(codes, 3))
        assert torch.equal(force(gauss(2, 6), small[:, :2]).codes, force(gauss(2, 6), codes[:, :2]).codes)
    for wrong in (-1, 8):
        with pytest.raises(IndexError, match="index must lie between 0 and 7"):
            scalar.index_to_bits(torch.tensor([wrong]), 3)
    with pytest.raises(ValueError, match="codes must be"):
        vn.CodebookFeatures(6, 9, 1, heads=3).decode(torch.zeros(7, 2, 1).long())
