"""Modules under torch.export, saved and loaded: in evaluation and in training, with gradients enabled and without.

`VECBANK_NET=full` takes every module in each of these modes; otherwise one module is trained, the next one deployed,
and those whose codebooks move are both.
"""

from __future__ import annotations

import copy
import io
from functools import partial
from typing import Any

import pytest
import torch
from export_cases import CASES, DIM, LEARN, VQ, built, tokens
from helpers import FULL, assert_same
from torch import Tensor, nn

import vecbank.nn as vn

MOVING = {name for name, (kind, *_) in CASES.items() if "VQ" in kind}
# As they are deployed and trained; the modes in between for those whose codebooks move, the others' are in the net.
MODES = [
    (name, training, training)
    for number, name in enumerate(CASES)
    for training in (False, True)
    if FULL or name in MOVING or training == (number % 2 == 0)
]
MODES += [(name, not grad, grad) for name in CASES if FULL and name in MOVING for grad in (False, True)]


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
    """What it returns, and in training the codebooks that its steps leave: the same bits."""
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


DRAWN: dict[str, tuple[str, dict[str, Any]]] = {
    "dead codes": ("VectorQuantize", {**VQ, "threshold_ema_dead_code": 2}),
    "beam": ("ResidualVQ", {**VQ, "num_quantizers": 2, "beam_size": 2}),
    "directional": ("ResidualVQ", {**VQ, "num_quantizers": 1, "diveq": True}),
    "rare": ("ProductQuantizer", {"dim": DIM, "parts": 2, "codes": 12, "rare": 1.0}),
    "noise": ("FSQ", {"levels": [8, 5], "dim": DIM, "preserve_symmetry": True, "noise_dropout": 0.5}),
    "share": ("LFQ", {"dim": DIM, "codebook_size": 16, "frac_per_sample_entropy": 0.5}),
    "bits": ("BinaryMapper", {"bits": DIM}),
}


@pytest.mark.parametrize("name", DRAWN if FULL else ["dead codes", "bits"])
def test_sizes_may_vary_in_training(name: str) -> None:
    """A program with open sizes, and a compiled module that meets two of them, are the module in training."""
    kind, options = DRAWN[name]
    torch.manual_seed(0)
    module = getattr(vn, kind)(**options)
    module(tokens())
    sizes = {0: torch.export.Dim("b", min=1, max=64), 1: torch.export.Dim("n", min=1, max=64)}
    program = torch.export.export(copy.deepcopy(module), (tokens(),), dynamic_shapes=(sizes,)).module()
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    for step, (b, n) in enumerate(((2, 20), (3, 7), (4, 31))):
        x, results = torch.randn(b, n, DIM), []
        for each in (module, program, compiled):
            torch.manual_seed(step)
            results.append(torch.utils._pytree.tree_leaves(each(x)))
        redrawn = name in ("dead codes", "rare")  # eagerly, on a CPU, other draws are made where codes are re-seeded
        for other in results[redrawn:-1]:
            for got, want in zip(other, results[-1], strict=True):
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_numbers_of_a_call_may_vary_under_a_compiler() -> None:
    torch.manual_seed(0)
    module = vn.VectorQuantize(**VQ, stochastic_sample_codes=True)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager", dynamic=True)
    for step, temperature in enumerate((1.0, 0.9, 0.8)):
        x, results = tokens(), []
        for each in (module, compiled):
            torch.manual_seed(step)
            results.append(each(x, sample_codebook_temp=temperature))
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for k in (2, 3):
        assert compiled(x, topk=k, lens=torch.tensor([5, 20]))[1].shape == (2, 20, k)
