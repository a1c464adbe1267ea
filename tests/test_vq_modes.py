"""VectorQuantize beyond single steps: dtypes, memory, random parts, compiled graphs, activation checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import vector_quantize_pytorch as peer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from vq_cases import CODES, DIM, LEARN, MASK, SGD, compare_states, make_input

from vecbank.nn.vector_quantize import VectorQuantize


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_rows_are_read_exactly(dtype: torch.dtype) -> None:
    """Codes and (float32) codebooks are those of the same values in float32, bit for bit."""
    narrow, wide = VectorQuantize(DIM, CODES), VectorQuantize(DIM, CODES)
    wide.load_state_dict(narrow.state_dict())
    for seed in range(3):
        x = make_input({}, seed).to(dtype)
        given = x.clone().requires_grad_()
        quantized, codes, loss = narrow(given)
        _, want_codes, want_loss = wide(x.float())
        (quantized.float().square().sum() + loss).backward()
        assert quantized.dtype == dtype and given.grad is not None and given.grad.dtype == dtype
        assert loss.dtype == torch.float32 and torch.equal(loss, want_loss)
        assert torch.equal(codes, want_codes)
    for (name, a), b in zip(narrow.state_dict().items(), wide.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_float64_and_autocast() -> None:
    module = VectorQuantize(DIM, CODES).eval()
    x = make_input({}, 1)
    quantized, codes, _ = module(x.double())
    assert quantized.dtype == torch.float64 and torch.equal(codes, module(x)[1])
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(x)
    for a, b in zip(inside, module(x), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    module.double()
    assert module(x.double())[0].dtype == torch.float64


class Largest(TorchDispatchMode):
    """Remembers the most elements that an operation returned in one tensor."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            self.most = max(self.most, t.numel() if isinstance(t, Tensor) else 0)
        return result


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cosine_sim": True},
        {"threshold_ema_dead_code": 2, "kmeans_init": True},
        {"stochastic_sample_codes": True},
        {"orthogonal_reg_weight": 1.0, "orthogonal_reg_active_codes_only": True},
        {"codebook_diversity_loss_weight": 1.0},
        {"commitment_use_cross_entropy_loss": True},
        LEARN,
    ],
    ids=str,
)
def test_nothing_is_rows_times_codes(options: dict[str, Any]) -> None:
    rows, codes = 8192, 1024
    module, x = VectorQuantize(4, codes, **options), torch.randn(1, rows, 4, requires_grad=True)
    with Largest() as seen:
        quantized, _, loss = module(x)
        (quantized.sum() + loss).backward()
    assert seen.most <= rows * codes // 4


def test_a_row_with_nan_is_left_out() -> None:
    module, clean = VectorQuantize(DIM, CODES), VectorQuantize(DIM, CODES)
    clean.load_state_dict(module.state_dict())
    x = make_input({}, 1)
    broken = x.clone()
    broken[0, 3] = torch.nan
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[0, 3] = False
    quantized, codes, _ = module(broken)
    clean(x, mask=mask)
    assert int(codes[0, 3]) == -1 and bool(quantized[0, 3].isnan().all())
    compare_states(module, clean)


def test_usage_and_perplexity() -> None:
    module = VectorQuantize(2, 4, decay=1.0)
    module.codebook = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    module(torch.tensor([[[0.0, 1], [9, 0], [9, 1], [1, 0]]]))
    assert float(module.usage()) == 0.5
    assert float(module.perplexity()) == pytest.approx(2.0)


# ---- randomness ---------------------------------------------------------------------------------------------------

RANDOM: dict[str, dict[str, Any]] = {
    "kmeans": {"kmeans_init": True},
    "kmeans, cosine": {"kmeans_init": True, "use_cosine_sim": True},
    "expiry": {"threshold_ema_dead_code": 2},
    "sampled": {"stochastic_sample_codes": True, "sample_codebook_temp": 0.3},
    "directional": {"directional_reparam": True, "threshold_ema_dead_code": 1},
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_parts_behave_as_the_peers(name: str) -> None:
    """Usage and error in evaluation after a few steps: the same on average over 20 seeds."""
    found: list[list[list[float]]] = [[], []]
    for seed in range(20):
        for which, cls in enumerate((VectorQuantize, peer.VectorQuantize)):
            torch.manual_seed(seed)
            module = cls(4, 32, **RANDOM[name])
            for _ in range(4):
                x = torch.randn(2, 100, 4).requires_grad_()
                quantized, codes, loss = module(x)
                (quantized.sum() + loss).backward()
            quantized, codes, _ = module.eval()(x)
            found[which].append([float((quantized - x).detach().square().mean()), float(codes.unique().numel())])
    ours, theirs = (torch.tensor(f) for f in found)
    spread = (ours.var(0) / 20 + theirs.var(0) / 20).sqrt()
    assert bool(((ours.mean(0) - theirs.mean(0)).abs() <= 4 * spread + 1e-3 * theirs.mean(0)).all()), (
        ours.mean(0),
        theirs.mean(0),
    )


@pytest.mark.parametrize("name", RANDOM)
def test_a_generator_decides(name: str) -> None:
    """Same seed, same bits, whatever the default generator does; which it leaves alone."""
    codebooks = []
    start = VectorQuantize(DIM, CODES, **RANDOM[name]).state_dict()
    for seed in (1, 1, 2):
        module = VectorQuantize(DIM, CODES, **RANDOM[name], generator=torch.Generator().manual_seed(seed))
        module.load_state_dict(start)
        before = torch.get_rng_state()
        outs = [module(make_input({}, i).requires_grad_())[0] for i in range(2)]
        assert torch.equal(before, torch.get_rng_state())
        codebooks.append(torch.cat([module.codebook.detach().flatten(), *(o.detach().flatten() for o in outs)]))
        torch.manual_seed(seed + 77)
    assert torch.equal(codebooks[0], codebooks[1]) and not torch.equal(codebooks[0], codebooks[2])


def test_expiry_uses_each_row_once_and_waits() -> None:
    module = VectorQuantize(2, 10, threshold_ema_dead_code=3)
    rows = torch.arange(12.0).view(1, 6, 2) * 100
    module(rows)
    moved = module.codebook[module.codebook.abs().sum(-1) > 10]
    assert len(moved.unique(dim=0)) == len(moved) <= 6
    mask = torch.tensor([[True, False, True, False, False, False]])
    module = VectorQuantize(2, 10, threshold_ema_dead_code=3)
    module(rows, mask=mask)
    assert all(any(torch.equal(code, row) for row in rows[mask]) for code in module.codebook if code.abs().sum() > 200)
    assert int((module._codebook.cluster_size == 3).sum()) == 2


# ---- compiled graphs ----------------------------------------------------------------------------------------------

COMPILED: dict[str, dict[str, Any]] = {
    "default": {},
    "cosine": {"use_cosine_sim": True},
    "head codebooks": {"heads": 2, "codebook_dim": 8, "separate_codebook_per_head": True},
    "image": {"accept_image_fmap": True, "codebook_dim": 4},
    "learnable": LEARN,
    "affine": {"affine_param": True},
    "diverse": {"codebook_diversity_loss_weight": 0.5, "codebook_diversity_temperature": 3.0},
    "cross-entropy": {"commitment_use_cross_entropy_loss": True},
    "orthogonal": {"orthogonal_reg_weight": 1.0, "orthogonal_reg_active_codes_only": True},
    "no commitment": {"commitment_weight": 0.0},
}
COMPILED_RANDOM: dict[str, dict[str, Any]] = {
    "kmeans, expiry": {"kmeans_init": True, "threshold_ema_dead_code": 2},
    "sampled": {"stochastic_sample_codes": True},
    "directional": {"directional_reparam": True, "threshold_ema_dead_code": 1},
}


def train_and_evaluate(call: Any, module: nn.Module, options: dict[str, Any], **forward: Any) -> list[Tensor]:
    """Everything that two training steps and an evaluation give and leave."""
    kept: list[Tensor] = []
    for step in range(2):
        x = make_input(options, step).requires_grad_()
        quantized, codes, loss = call(x, **forward)
        (quantized.square().sum() + loss.sum()).backward()
        assert x.grad is not None
        kept += [quantized, codes, loss, x.grad]
    module.eval()
    kept += [*call(make_input(options, 7), **forward), *module.state_dict().values()]
    return [t.detach().clone() for t in kept]


@pytest.mark.parametrize("name", [*COMPILED, *COMPILED_RANDOM, "mask", "topk"])
def test_compiles_whole(name: str) -> None:
    options = (COMPILED | COMPILED_RANDOM).get(name, {})
    forward: dict[str, Any] = {"mask": {"mask": MASK}, "topk": {"topk": 2}}.get(name, {})
    plain, module = VectorQuantize(DIM, CODES, **options), VectorQuantize(DIM, CODES, **options)
    module.load_state_dict(plain.state_dict())
    torch._dynamo.reset()
    got = train_and_evaluate(torch.compile(module, fullgraph=True, backend="aot_eager"), module, options, **forward)
    want = train_and_evaluate(plain, plain, options, **forward)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if name not in COMPILED_RANDOM:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_compiled_gradients_are_of_the_codebooks_before_the_update() -> None:
    """The real compiler, which makes values again in the backward pass from what went into the forward one."""
    options = {**COMPILED["diverse"], "affine_param": True}
    plain, module = VectorQuantize(DIM, CODES, **options), VectorQuantize(DIM, CODES, **options)
    module.load_state_dict(plain.state_dict())
    torch._dynamo.reset()
    got = train_and_evaluate(torch.compile(module, fullgraph=True), module, options)
    for a, b in zip(got, train_and_evaluate(plain, plain, options), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# ---- activation checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cosine_sim": True, "kmeans_init": True, "threshold_ema_dead_code": 1},
        {"stochastic_sample_codes": True, "threshold_ema_dead_code": 3},
        {"affine_param": True},
        {**LEARN, **SGD, "threshold_ema_dead_code": 2},
        {"stochastic_sample_codes": True, "seed": 3},
        {"codebook_diversity_loss_weight": 1.0, "codebook_diversity_temperature": 1.0},
        {"commitment_use_cross_entropy_loss": True},
        {
            "route_gradients_to_input": False,
            "stochastic_sample_codes": True,
            "straight_through": True,
            "rotation_trick": False,
        },
    ],
    ids=str,
)
def test_a_checkpointed_step_is_the_step(options: dict[str, Any], reentrant: bool) -> None:
    """Books move once; the repeated forward sees the old ones, and what draws after it draws the same."""
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        own = {k: v for k, v in options.items() if k != "seed"}
        generator = torch.Generator().manual_seed(options["seed"]) if "seed" in options else None
        module, before = VectorQuantize(DIM, CODES, **own, generator=generator), nn.Linear(DIM, DIM)

        def block(x: Tensor, module: nn.Module = module, before: nn.Module = before) -> tuple[Tensor, Tensor]:
            quantized, _, loss = module(before(x))
            return nn.functional.dropout(quantized, 0.5), loss

        kept = []
        for step in range(2):
            inputs = [make_input({}, 10 * step + i).requires_grad_() for i in range(2)]
            outs = [checkpoint(block, x, use_reentrant=reentrant) if checkpointed else block(x) for x in inputs]
            sum(q.square().sum() + loss for q, loss in outs).backward()
            kept += [x.grad for x in inputs] + [before.weight.grad.clone()]
            before.zero_grad(), module.zero_grad()
        results.append(kept + list(module.state_dict().values()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"route_gradients_to_input": False}])
def test_a_book_learns_by_codes_that_are_drawn(options: dict[str, Any]) -> None:
    """The gradient of mean (e_code - x)^2, by the codes that came out."""
    torch.manual_seed(0)
    learn = {"learnable_codebook": True, "ema_update": False, "stochastic_sample_codes": True}
    module = VectorQuantize(dim=8, codebook_size=12, **learn, **options)
    x = torch.randn(2, 30, 8)
    _, codes, loss = module(x)
    loss.sum().backward()
    codebook = module._codebook.embed.detach()[0].requires_grad_()
    (codebook[codes] - x).square().mean().backward()
    assert codebook.grad is not None and module._codebook.embed.grad is not None
    torch.testing.assert_close(module._codebook.embed.grad[0], codebook.grad)
