"""Ranks that meet after their modules were built, and a rank that evaluates alone: nobody waits, codebooks are one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ranks import run
from torch import Tensor, nn

import vecbank.nn as vn

DIM, CODES = 4, 6


def built() -> dict[str, nn.Module]:
    vq: dict[str, Any] = {"dim": DIM, "codebook_size": CODES}
    return {
        "vq": vn.VectorQuantize(**vq, threshold_ema_dead_code=1),
        "waiting": vn.VectorQuantize(**vq, kmeans_init=True),
        "affine": vn.VectorQuantize(**vq, affine_param=True, sync_affine_param=True),
        "residual": vn.ResidualVQ(**vq, num_quantizers=2, kmeans_init=True),
        "grouped": vn.GroupedResidualVQ(**vq, groups=2, num_quantizers=2),
        "product": vn.ProductQuantizer(DIM, 2, CODES),
        "features": vn.CodebookFeatures(DIM, CODES, 2),
        "sparse": vn.SparseAutoencoder(DIM, CODES, 2),
        "apart": vn.VectorQuantize(**vq, sync_codebook=False),
    }


def late(rank: int, world: int, meet: Callable[[], None]) -> dict[str, dict[str, Tensor]]:
    """Modules built, and one of them trained alone, before the group; then two steps on rows of each rank's own."""
    torch.manual_seed(rank)
    modules = built()
    modules["vq"](torch.randn(1, 30, DIM))
    meet()
    for _ in range(2):
        x = torch.randn(1, 20 + rank, DIM)
        for module in modules.values():
            module(x)
    return {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in modules.items()}


def test_a_module_built_before_the_group_is_synchronised(tmp_path: Path) -> None:
    first, second = run(late, 2, tmp_path, met=False)
    for name in first.keys() - {"apart", "features", "sparse"}:
        for key, value in first[name].items():
            assert torch.equal(value, second[name][key]), (name, key)
    for name, key in (("features", "counts"), ("sparse", "counts")):
        assert torch.equal(first[name][key], second[name][key])
    assert not torch.equal(first["apart"]["_codebook.embed"], second["apart"]["_codebook.embed"])


def alone(rank: int, world: int) -> dict[str, dict[str, Tensor]]:
    """The first rank evaluates before the first step and after it, the others never."""
    torch.manual_seed(rank)
    modules, said = built(), []
    for step in range(2):
        x = torch.randn(1, 20, DIM)
        if rank == 0:
            for name, module in modules.items():
                before = {k: v.clone() for k, v in module.state_dict().items()}
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    result = module.eval()(x)
                assert all(torch.equal(v, module.state_dict()[k]) for k, v in before.items()), name
                said += [name for w in caught if "k-means start" in str(w.message) and w.filename == __file__]
                if step == 0 and name == "waiting":
                    assert bool((result[0] == 0).all()) and bool((result[1] == 0).all())
                module.train()
            assert set(said) == {"waiting", "residual"}, said
        for module in modules.values():
            module(x)
    return {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in modules.items()}


def test_a_rank_that_evaluates_alone_meets_nobody(tmp_path: Path) -> None:
    first, second = run(alone, 2, tmp_path)
    for name in first.keys() - {"apart", "features", "sparse"}:
        for key, value in first[name].items():
            assert torch.equal(value, second[name][key]), (name, key)
    assert float(first["waiting"]["_codebook.embed"].abs().sum()) > 0
