"""docs/quantizers.md lists every argument of the peer's classes, and our classes take them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from drop_in import peer

from vecbank.nn import (
    binary_mapper,
    fsq,
    grouped_vq,
    latent_quantize,
    lfq,
    random_projection,
    residual_vq,
    sim_vq,
)

CLASSES: dict[str, type] = {
    "ResidualVQ": residual_vq.ResidualVQ,
    "GroupedResidualVQ": grouped_vq.GroupedResidualVQ,
    "SimVQ": sim_vq.SimVQ,
    "ResidualSimVQ": sim_vq.ResidualSimVQ,
    "RandomProjectionQuantizer": random_projection.RandomProjectionQuantizer,
    "LatentQuantize": latent_quantize.LatentQuantize,
    "FSQ": fsq.FSQ,
    "ResidualFSQ": fsq.ResidualFSQ,
    "GroupedResidualFSQ": fsq.GroupedResidualFSQ,
    "LFQ": lfq.LFQ,
    "ResidualLFQ": lfq.ResidualLFQ,
    "GroupedResidualLFQ": lfq.GroupedResidualLFQ,
    "BinaryMapper": binary_mapper.BinaryMapper,
}
DOCS = next(p for folder in Path(__file__).resolve().parents if (p := folder / "docs" / "quantizers.md").exists())
STARS = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}


def parameters(cls: type, method: str) -> list[inspect.Parameter]:
    return list(inspect.signature(getattr(cls, method)).parameters.values())[1:]


@pytest.mark.parametrize("name", CLASSES)
def test_every_argument_is_listed(name: str) -> None:
    section = DOCS.read_text().split(f"\n### {name}\n")[1].split("\n### ")[0]
    listed = re.findall(r"^\| `(.+?)` \| (constructor|forward) \| (.+) \|$", section, re.M)
    wanted = [
        (STARS.get(p.kind, "") + p.name, of)
        for of, method in (("constructor", "__init__"), ("forward", "forward"))
        for p in parameters(getattr(peer, name), method)
    ]
    assert [(argument, of) for argument, of, _ in listed] == wanted


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_every_argument_is_taken(name: str, method: str) -> None:
    """In the same place, with the same default; what is ours comes after, by keyword."""
    theirs, ours = parameters(getattr(peer, name), method), parameters(CLASSES[name], method)
    own = [p for p in ours if p.name not in {q.name for q in theirs}]
    assert all(p.kind == p.KEYWORD_ONLY for p in own)
    shared = [p for p in ours if p not in own]
    assert [p.name for p in shared] == [p.name for p in theirs]
    for p, q in zip(shared, theirs, strict=True):
        assert p.kind == q.kind, p.name
        made_inside = {"straight_through_activation", "mlp_kwargs", "init_fn"}
        if p.name not in made_inside:
            assert p.default == q.default, p.name
