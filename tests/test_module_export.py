"""Modules under torch.export, saved and loaded: in evaluation and in training, with gradients enabled and without."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import pytest
import torch
from export_cases import CASES, LEARN, VQ, built
from helpers import assert_same
from torch import Tensor, nn

import vecbank.nn as vn

# As they are deployed and trained; the modes in between for those whose books move, the others' are in the net.
MODES = [(name, training, training) for name in CASES for training in (False, True)]
MODES += [(name, not grad, grad) for name, (kind, *_) in CASES.items() if "VQ" in kind for grad in (False, True)]


def saved(module: nn.Module, x: Tensor) -> nn.Module:
    """The exported program of a module, from a file."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, (x,)), file)
    file.seek(0)
    loaded: nn.Module = torch.export.load(file).module()
    return loaded


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "training", "grad"), MODES)
def test_an_exported_module_is_the_module(name: str, training: bool, grad: bool) -> None:
    """What it returns, and in training the books that its steps leave: the same bits."""
    module, make = built(name, training)
    with torch.set_grad_enabled(grad):
        loaded = saved(module, make())
        for step in range(2):
            x = make()
            results = []
            for each in (loaded, module):
                torch.manual_seed(step)  # modules that draw, draw the same
                results.append(torch.utils._pytree.tree_leaves(each(x)))
            for got, want in zip(*results, strict=True):
                assert_same(got, want)
    state = loaded.state_dict()
    for key, value in module.state_dict().items():
        assert_same(state[key].to(value.dtype), value)  # flags are numbers in a program


def test_every_module_has_a_case() -> None:
    """What vecbank.nn exports, less functions and what only holds results."""
    modules = {
        name for name in vn.__all__ if isinstance(kind := getattr(vn, name), type) and issubclass(kind, nn.Module)
    }
    assert {kind for kind, _, _ in CASES.values()} == modules


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
