"""Numbers that follow from a module's arguments survive the meta device, casts and copies: the same codes as before."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import gauss
from torch import Tensor, nn

from vecbank import nn as vn

MADE: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "fsq": (lambda: vn.FSQ([8, 5, 5]), gauss(2, 9, 3)),
    "fsq, projected and rotated": (lambda: vn.FSQ([5, 5], dim=6, orthogonal_rotation=True), gauss(2, 9, 6)),
    "residual fsq": (lambda: vn.ResidualFSQ(levels=[7, 5, 3], num_quantizers=4), gauss(2, 9, 3)),
    "residual fsq, soft": (
        lambda: vn.ResidualFSQ(
            levels=[7, 5, 3], num_quantizers=4, bound_hard_clamp=False, soft_clamp_input_value=[1.3, 2.1, 2.7]
        ),
        gauss(2, 9, 3),
    ),
    "grouped residual fsq": (
        lambda: vn.GroupedResidualFSQ(dim=6, groups=2, levels=[7, 5, 3], num_quantizers=4),
        gauss(2, 9, 6),
    ),
    "lfq": (lambda: vn.LFQ(dim=4), gauss(2, 9, 4)),
    "latent": (lambda: vn.LatentQuantize([5, 6, 8], dim=3), gauss(2, 3, 9)),
    "latent, fixed tables": (lambda: vn.LatentQuantize([5, 6, 8], dim=3, optimize_values=False), gauss(2, 3, 9)),
    "binary mapper": (lambda: vn.BinaryMapper(5, deterministic_on_eval=True), gauss(2, 9, 5)),
    "hashed embedding": (lambda: vn.HashedEmbedding(50, 3, [1, 3, 2]), torch.arange(12).view(4, 3)),
    "codebook features": (lambda: vn.CodebookFeatures(6, 9, 2).disable_(3), gauss(9, 6)),
    "sparse autoencoder": (lambda: vn.SparseAutoencoder(6, 20, 2), gauss(9, 6)),
}


def said(module: Any, x: Tensor) -> tuple[Any, ...]:
    found = module.eval()(x)
    return (*found[:2], found[-1]) if isinstance(found, tuple) else (found,)


def alike(module: Any, other: Any, x: Tensor) -> None:
    torch.testing.assert_close(said(module, x), said(other, x), rtol=0, atol=0)
    if hasattr(module, "get_output_from_indices"):
        codes = said(module, x)[1]
        assert torch.equal(module.get_output_from_indices(codes), other.get_output_from_indices(codes))


@pytest.mark.parametrize("name", MADE)
def test_a_state_loads_into_a_module_made_on_the_meta_device(name: str) -> None:
    make, x = MADE[name]
    torch.manual_seed(0)
    source = make()
    state = source.state_dict()
    for assign in (False, True):
        with torch.device("meta"):
            module = make()
        assert all(t.is_meta for t in (*module.parameters(), *module.buffers()))
        if not assign:
            module.to_empty(device="cpu")
        module.load_state_dict(state, assign=assign)
        alike(source, module, x)


@pytest.mark.parametrize("name", MADE)
def test_copies_pickles_and_casts(name: str) -> None:
    """A cast rounds weights, never levels: without weights the codes stay what they were."""
    make, x = MADE[name]
    torch.manual_seed(0)
    source = make()
    for other in (copy.deepcopy(source), pickle.loads(pickle.dumps(source)), copy.deepcopy(source).to("cpu")):
        alike(source, other, x)
    constants = {n for n, _ in source.named_buffers()} - source.state_dict().keys() - {"zero"}
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        cast = copy.deepcopy(source).to(dtype)
        held, kept = dict(cast.named_buffers()), dict(source.named_buffers())
        for constant in constants:
            if "values_per_latent" not in constant:  # fixed tables are cast as learned ones are
                assert torch.equal(held[constant], kept[constant]) and held[constant].dtype == kept[constant].dtype
        if not list(source.parameters()) and "fixed" not in name:
            given = x.to(torch.bfloat16).float()
            assert torch.equal(said(source, given)[1], said(cast, given)[1])


@pytest.mark.parametrize("name", MADE)
def test_exported_programs_come_back_from_a_file(name: str) -> None:
    make, x = MADE[name]
    torch.manual_seed(0)
    module = make().eval()
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, (x,)), file)
    file.seek(0)
    got = torch.export.load(file).module()(x)
    want = module(x)
    torch.testing.assert_close(
        tuple(got) if isinstance(want, tuple) else got, tuple(want) if isinstance(want, tuple) else want
    )


@pytest.mark.parametrize("name", MADE)
def test_shapes_without_numbers(name: str) -> None:
    """On the meta device forward gives the shapes and dtypes that it gives elsewhere."""
    make, x = MADE[name]
    got, want = said(make().to("meta"), x.to("meta")), said(make(), x)
    assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in want] and all(t.is_meta for t in got)


def test_fixed_tables_that_were_changed_move_as_they_are() -> None:
    module = vn.LatentQuantize([3, 4], dim=2, optimize_values=False)
    module.values_per_latent[0].copy_(torch.tensor([-1.0, 0.0, 1.0]))
    assert torch.equal(module.double().values_per_latent[0], torch.tensor([-1.0, 0.0, 1.0]).double())
