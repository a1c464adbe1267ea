"""Codebooks trained by several gloo processes: identical on every rank, and nobody waits for ever."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run
from torch import Tensor

from vecbank.nn.vector_quantize import VectorQuantize

DIM, CODES, STEPS = 6, 12, 4


class Bridge(torch.nn.Linear):
    """A stand-in for the network of a bridged codebook."""

    def __init__(self) -> None:
        super().__init__(DIM, DIM)


CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "kmeans, expiry": {"kmeans_init": True, "threshold_ema_dead_code": 2},
    "kmeans of the first rank": {"kmeans_init": True, "sync_kmeans": False},
    "cosine": {"use_cosine_sim": True, "kmeans_init": True, "threshold_ema_dead_code": 1},
    "head codebooks": {
        "heads": 2,
        "codebook_dim": 3,  # no projections: these would be every rank's own without DistributedDataParallel
        "separate_codebook_per_head": True,
        "kmeans_init": True,
        "threshold_ema_dead_code": 2,
    },
    "sampled": {"stochastic_sample_codes": True, "threshold_ema_dead_code": 2},
    "in place": {
        "learnable_codebook": True,
        "ema_update": False,
        "threshold_ema_dead_code": 1,
        "in_place_codebook_optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    },
    "affine": {"affine_param": True, "sync_affine_param": True},
    "affine, not synchronised": {"affine_param": True, "threshold_ema_dead_code": 1},
    "affine, kmeans, head codebooks": {
        "affine_param": True,
        "kmeans_init": True,
        "heads": 2,
        "codebook_dim": 3,
        "separate_codebook_per_head": True,
    },
    "bridge, in place": {
        "vq_bridge": Bridge,
        "threshold_ema_dead_code": 1,
        "in_place_codebook_optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    },
    "resumed on the first rank": {"affine_param": True},
    "manual": {"manual_ema_update": True, "threshold_ema_dead_code": 1},
    "accumulated": {"affine_param": True, "threshold_ema_dead_code": 1},
    "evaluated on the first rank": {"affine_param": True, "sync_affine_param": True},
    "compiled": {"threshold_ema_dead_code": 2},
    "data parallel": {"codebook_dim": 3, "threshold_ema_dead_code": 2},
}


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """This rank's rows and mask: of another length on every rank; at times none, or none that count, or not finite."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    x = torch.randn(1, 7 + 9 * rank, DIM, generator=generator)
    mask = torch.rand(x.shape[:2], generator=generator) < 0.7
    if step == 1 and rank == 1:
        mask = torch.zeros_like(mask)
    if step == 3 and rank == 1:  # one rank's rows alone are not finite
        x[0, 2, 1], x[0, 5, 0], x[0, 9] = torch.nan, torch.inf, -torch.inf
        mask[0, 2] = True
    if step == 2 and rank == 0:
        x, mask = x[:, :0], mask[:, :0]
    return x, mask


def train(name: str, rank: int, world: int) -> dict[str, Tensor]:
    """A few steps; ranks start from different random codebooks and draw different random numbers."""
    torch.manual_seed(rank)
    module = VectorQuantize(DIM, CODES, **{k: v() if v is Bridge else v for k, v in CASES[name].items()})
    assert module._codebook.ranks.several == (world > 1)
    call: Any = module
    if name == "compiled":
        call = torch.compile(module, fullgraph=True, backend="aot_eager")
    elif name == "data parallel":
        call = torch.nn.parallel.DistributedDataParallel(module)
    if name == "resumed on the first rank" and rank == 0:
        trained = VectorQuantize(DIM, CODES, sync_codebook=False, **CASES[name])
        trained(torch.randn(1, 50, DIM))
        module.load_state_dict(trained.state_dict())
    for step in range(STEPS):
        parts = [batch(rank, step)] if world > 1 else [batch(r, step) for r in range(WORLD)]
        x, mask = (torch.cat(t, 1) for t in zip(*parts, strict=True))
        x.requires_grad_()
        more = {"accum_ema_update": step % 2 == 0} if name == "accumulated" else {}
        quantized, codes, loss = call(x, mask=mask, **more)
        (quantized.nan_to_num().sum() + loss).backward()
        keep = mask & x.isfinite().all(-1)
        assert torch.equal((codes if codes.dim() == 2 else codes[..., 0]) == -1, ~keep)
        assert bool((x.grad[keep] != 0).any()) or not bool(keep.any())  # type: ignore[index]
        if name == "manual":
            module._codebook.update_ema()
        if name == "evaluated on the first rank" and rank == 0:
            module.eval()(x)
            module.train()
    codebooks = {key: value.clone() for key, value in module.state_dict().items()}
    return codebooks | {"usage": module.usage(), "perplexity": module.perplexity()}


WORLD = 2  # what the lone process of `test_equals_one_process` imitates


def work(rank: int, world: int, names: list[str]) -> dict[str, dict[str, Tensor]]:
    return {name: train(name, rank, world) for name in names}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    return run(work, 2, tmp_path_factory.mktemp("two"), list(CASES))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    names = [name for name in CASES if name != "compiled"]
    return run(work, 4, tmp_path_factory.mktemp("four"), names)


def same_on_all(results: list[dict[str, dict[str, Tensor]]]) -> None:
    for name, first in results[0].items():
        for rank, other in enumerate(results[1:], 1):
            for key, value in first.items():
                assert torch.equal(value, other[name][key]), f"{name}: {key} of rank {rank}"
        assert all(bool(value.isfinite().all()) for value in first.values()), name


def test_two_ranks_keep_one_book(two: list[dict[str, dict[str, Tensor]]]) -> None:
    same_on_all(two)


def test_four_ranks_keep_one_book(four: list[dict[str, dict[str, Tensor]]]) -> None:
    same_on_all(four)


def test_dead_codes_are_re_seeded(two: list[dict[str, dict[str, Tensor]]]) -> None:
    for name in ("kmeans, expiry", "head codebooks", "compiled"):
        assert float(two[0][name]["_codebook.cluster_size"].min()) >= 2, name


@pytest.mark.parametrize("name", ["default", "affine"])
def test_equals_one_process(name: str, two: list[dict[str, dict[str, Tensor]]]) -> None:
    """Two ranks on halves of a batch make the codebook that one process makes on the whole."""
    alone = train(name, 0, 1)
    for key, value in two[0][name].items():
        torch.testing.assert_close(alone[key], value, atol=1e-5, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
