"""Modules under torch.export, saved and loaded: in evaluation and in training, with gradients enabled and without."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import pytest
import torch
from helpers import assert_same
from torch import Tensor, nn

import vecbank.nn as vn

VQ = {"dim": 8, "codebook_size": 12}
LEARN = {"learnable_codebook": True, "ema_update": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("VectorQuantize", VQ),
    "cosine": ("VectorQuantize", {**VQ, "use_cosine_sim": True}),
    "heads": ("VectorQuantize", {**VQ, "heads": 2, "separate_codebook_per_head": True}),
    "affine": ("VectorQuantize", {**VQ, "affine_param": True}),
    "learnable": ("VectorQuantize", {**VQ, **LEARN}),
    "random projection": ("RandomProjectionQuantizer", {**VQ, "codebook_dim": 4}),
    "residual": ("ResidualVQ", {**VQ, "num_quantizers": 3}),
    "shared": ("ResidualVQ", {**VQ, "num_quantizers": 3, "shared_codebook": True}),
    "beam": ("ResidualVQ", {**VQ, "num_quantizers": 3, "beam_size": 2}),
    "grouped": ("GroupedResidualVQ", {**VQ, "num_quantizers": 3, "groups": 2}),
    "product": ("ProductQuantizer", {"dim": 8, "parts": 2, "codes": 12, "rotation": True}),
}


def saved(module: nn.Module, x: Tensor) -> nn.Module:
    """The exported program of a module, from a file."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, (x,)), file)
    file.seek(0)
    loaded: nn.Module = torch.export.load(file).module()
    return loaded


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_an_exported_module_is_the_module(name: str, grad: bool, training: bool) -> None:
    """What it returns, and in training the books that its steps leave."""
    kind, options = CASES[name]
    torch.manual_seed(0)
    module = getattr(vn, kind)(**options)
    module(torch.randn(2, 20, 8))
    module.train(training)
    with torch.set_grad_enabled(grad):
        loaded = saved(module, torch.randn(2, 20, 8))
        for _ in range(2):
            x = torch.randn(2, 20, 8)
            for got, want in zip(
                torch.utils._pytree.tree_leaves(loaded(x)), torch.utils._pytree.tree_leaves(module(x)), strict=True
            ):
                torch.testing.assert_close(got, want)
    state = loaded.state_dict()
    for key, value in module.state_dict().items():
        assert_same(state[key].to(value.dtype), value)  # flags are numbers in a program


REFUSED: dict[str, dict[str, Any]] = {
    "the k-means start": {"kmeans_init": True},
    "the step of in_place": {**LEARN, "in_place_codebook_optimizer": partial(torch.optim.SGD, lr=0.1)},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_program_would_not_hold_is_refused(what: str) -> None:
    module, x = vn.VectorQuantize(**VQ, **REFUSED[what]), torch.randn(2, 20, 8)
    with pytest.raises(NotImplementedError, match=f"torch.export cannot take {what}"):
        torch.export.export(module, (x,))
    assert all(type(t) in (Tensor, nn.Parameter) for t in (*module.parameters(), *module.buffers()))
    module(x)
