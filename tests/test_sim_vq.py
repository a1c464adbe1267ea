"""SimVQ, ResidualSimVQ and RandomProjectionQuantizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from drop_in import assert_alike, assert_close, gauss, peer, run
from torch import nn

from vecbank.nn.random_projection import RandomProjectionQuantizer
from vecbank.nn.sim_vq import ResidualSimVQ, SimVQ

HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"rotation_trick": False},
    {"channel_first": True},
    {"frozen_codebook_dim": 5, "input_to_quantize_commit_loss_weight": 0.5, "commitment_weight": 2.0},
    {"codebook_transform": network, "init_fn": lambda t: 3 * t},
]


def build(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v() if k == "codebook_transform" else v for k, v in options.items()}


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ", ".join(o) or "default")
@pytest.mark.parametrize("train", [True, False])
def test_like_peer(options: dict[str, Any], train: bool) -> None:
    x = gauss(2, 50, 8)
    x = x.movedim(1, 2) if options.get("channel_first") else x
    ours, theirs = SimVQ(8, 64, **build(options)), peer.SimVQ(8, 64, **build(options))
    assert_alike(ours, theirs, x, train)
    indices = ours(x)[1]
    assert_close(ours.indices_to_codes(indices), theirs.indices_to_codes(indices), 1e-5, "indices_to_codes")
    more = {"dim": 8, "codebook_size": 64, "num_quantizers": 3}
    stages, others = ResidualSimVQ(**more, **build(options)), peer.ResidualSimVQ(**more, **build(options))
    assert_alike(stages, others, x, train, return_all_codes=True)
    indices = stages(x)[1]
    assert_close(stages.get_output_from_indices(indices), others.get_output_from_indices(indices), 1e-5, "decoded")
    assert_close(stages.codebooks, others.codebooks, 1e-6, "codebooks")
    assert stages.codebook_size == others.codebook_size and stages.codebook_dim == 8


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 4, 8), (2, 0, 8)])
def test_shapes(shape: tuple[int, ...]) -> None:
    quantized, indices, loss = SimVQ(8, 16)(gauss(*shape))
    assert quantized.shape == shape and indices.shape == shape[:-1] and loss.shape == ()
    image = SimVQ(8, 16, channel_first=True)
    quantized, indices, _ = image(gauss(2, 8, 3, 4))
    assert quantized.shape == (2, 8, 3, 4) and indices.shape == (2, 3, 4)
    assert torch.equal(image.indices_to_codes(indices), quantized)


def test_five_steps_like_peer() -> None:
    """The map learns as the peer's does, on data with margins."""
    ours, theirs, x = SimVQ(8, 32), peer.SimVQ(8, 32), gauss(1, 300, 8)
    ours.load_state_dict(theirs.state_dict())
    losses = []
    for module in (ours, theirs):
        optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
        for _ in range(5):
            optimiser.zero_grad()
            quantized, _, loss = module(x)
            loss.backward()
            optimiser.step()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(ours.code_transform.weight, theirs.code_transform.weight)


def test_gradient_of_the_map_is_that_of_the_dense_form() -> None:
    module = SimVQ(4, 12, rotation_trick=False).double()
    x = gauss(30, 4).double().requires_grad_()
    weight = gauss(30, 4, seed=1).double()
    quantized, indices, loss = module(x)
    ((quantized * weight).sum() + loss).backward()
    y = x.detach().clone().requires_grad_()
    codebook = module.code_transform(module.frozen_codebook)
    dense = nn.functional.one_hot(indices, 12).double() @ codebook
    want = (y.detach() - dense).square().mean() + 0.25 * (y - dense.detach()).square().mean()
    (grad,) = torch.autograd.grad(want, module.code_transform.weight, retain_graph=True)
    torch.testing.assert_close(module.code_transform.weight.grad, grad)
    ((y * weight).sum() + want).backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_every_code_moves_with_the_map() -> None:
    """64 clusters, 256 codes that all start near zero: a plain codebook leaves clusters without a code, SimVQ
    none.
    """
    used = []
    for plain in (False, True):
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(64, 16, generator=generator)
        torch.manual_seed(0)
        if plain:  # the table itself learns
            module = SimVQ(16, 256, nn.Identity(), init_fn=lambda t: 0.04 * t)
            module.frozen_codebook = nn.Parameter(module.frozen_codebook)
        else:
            module = SimVQ(16, 256, init_fn=lambda t: 4 * t)
            nn.init.eye_(module.code_transform.weight).data.mul_(0.01)
        optimiser, seen = torch.optim.SGD(module.parameters(), lr=2.0), torch.zeros(256, dtype=torch.bool)
        for step in range(600):
            x = centres[torch.randint(0, 64, (256,), generator=generator)]
            optimiser.zero_grad()
            _, indices, loss = module(x + 0.1 * torch.randn(256, 16, generator=generator))
            loss.backward()
            optimiser.step()
            if step >= 400:
                seen[indices] = True
        used.append(int(seen.sum()))
    assert used[0] >= 64 > used[1], used


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_sixteen_bits(dtype: torch.dtype) -> None:
    for module in (SimVQ(8, 32), ResidualSimVQ(dim=8, codebook_size=32, num_quantizers=3)):
        x = gauss(2, 40, 8).to(dtype)
        got, want = module(x), module(x.float())
        assert got[0].dtype == dtype
        assert torch.equal(got[1], want[1])  # read exactly, and residuals are not rounded
        torch.testing.assert_close(got[2], want[2])
        with torch.no_grad():
            assert torch.equal(module(x)[1], module(x.float())[1])
        y = x.clone().requires_grad_()
        module(y)[0].float().sum().backward()
        assert y.grad is not None and y.grad.dtype == dtype and y.grad.isfinite().all()
        cast = module.to(dtype)
        assert cast(x)[0].dtype == dtype


def test_autocast_decides_nothing() -> None:
    x = gauss(2, 40, 8)
    for module in (SimVQ(8, 32), ResidualSimVQ(dim=8, codebook_size=32, num_quantizers=3)):
        want = module(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = module(x)
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("channel_first", [False, True])
def test_cascade_in_one_call_is_the_cascade(channel_first: bool) -> None:
    module = ResidualSimVQ(dim=8, codebook_size=32, num_quantizers=4, channel_first=channel_first)
    x = gauss(2, 8, 40) if channel_first else gauss(2, 40, 8)
    for stages in (None, 2):
        want = module(x, num_stages=stages)
        with torch.no_grad():
            got = module(x, num_stages=stages)
        torch.testing.assert_close(got, want)
        assert [t.dtype for t in got] == [t.dtype for t in want]


@pytest.mark.parametrize("channel_first", [False, True])
def test_dropout_like_peer(channel_first: bool) -> None:
    options: dict[str, Any] = {
        "dim": 8,
        "codebook_size": 16,
        "num_quantizers": 6,
        "channel_first": channel_first,
    }
    options |= {"quantize_dropout": True, "quantize_dropout_multiple_of": 2}
    ours, theirs = ResidualSimVQ(**options), peer.ResidualSimVQ(**options)
    x = gauss(2, 8, 5, 6) if channel_first else gauss(2, 30, 8)
    for seed in range(4):
        assert_alike(ours, theirs, x, rand_quantize_dropout_fixed_seed=seed)
    counts = [int((ours(x)[1].flatten(0, -2)[0] >= 0).sum()) for _ in range(40)]
    assert set(counts) == {2, 4, 6}
    coarse = ours(x, rand_quantize_dropout_fixed_seed=1)[1][..., :2]
    assert_close(ours.get_output_from_indices(coarse), theirs.get_output_from_indices(coarse), 1e-5, "coarse")


def test_codes_of_minus_one_are_zero_vectors() -> None:
    module = ResidualSimVQ(dim=8, codebook_size=16, num_quantizers=2, quantize_dropout=True)
    indices = torch.tensor([[[3, -1], [-1, -1]]])
    codes = module.get_codes_from_indices(indices)
    assert torch.equal(codes[1], torch.zeros(1, 2, 8)) and torch.equal(codes[0, 0, 1], torch.zeros(8))
    assert torch.equal(codes[0, 0, 0], module.layers[0].codebook[3])


@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_compiles_whole(rotation: bool, grad: bool) -> None:
    x = gauss(2, 30, 8)
    for module, options in (
        (SimVQ(8, 32, rotation_trick=rotation), {}),
        (
            ResidualSimVQ(dim=8, codebook_size=32, num_quantizers=3, rotation_trick=rotation),
            {"num_stages": 2},
        ),
    ):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        if grad:
            got, want = run(compiled, x, **options), run(module, x, **options)
        else:
            with torch.no_grad():
                got, want = compiled(x, **options), module(x, **options)
        torch.testing.assert_close(got, want)


def test_refuses_by_name() -> None:
    with pytest.raises(ValueError, match="heads"):
        ResidualSimVQ(dim=8, codebook_size=16, num_quantizers=2, heads=2)
    with pytest.raises(ValueError, match="x must have dim = 8"):
        SimVQ(8, 16)(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="num_stages"):
        ResidualSimVQ(dim=8, codebook_size=16, num_quantizers=2)(torch.zeros(2, 3, 8), num_stages=0)


# ---- RandomProjectionQuantizer
# ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"norm": False}, {"num_codebooks": 3}], ids=str)
def test_random_projection_like_peer(options: dict[str, Any]) -> None:
    more: dict[str, Any] = {"dim": 8, "codebook_size": 16, "codebook_dim": 4, **options}
    ours, theirs, x = (
        RandomProjectionQuantizer(**more),
        peer.RandomProjectionQuantizer(**more),
        gauss(2, 50, 8),
    )
    assert_alike(ours, theirs, x)
    given = ours(x)
    assert given.dtype == torch.int64
    assert_alike(ours, theirs, x, indices=given.roll(1, 0))
    assert not ours.vq.training


def test_random_projection_has_frozen_targets() -> None:
    module, x = (
        RandomProjectionQuantizer(dim=8, codebook_size=16, codebook_dim=4, num_codebooks=2),
        gauss(2, 50, 8),
    )
    before = {k: v.clone() for k, v in module.state_dict().items()}
    assert torch.equal(module.train()(x), module.eval()(x))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(x), module(x))
    # By definition: the code with the largest cosine to the projection.
    normal = nn.functional.layer_norm(x, (8,))
    projected = module.vq.project_in(torch.cat([normal @ p for p in module.rand_projs], -1)).chunk(2, -1)
    for head in range(2):
        rows = nn.functional.normalize(projected[head], dim=-1).double()
        codebook = nn.functional.normalize(module.vq._codebook.embed[head], dim=-1).double()
        assert torch.equal(module(x)[..., head], (rows @ codebook.t()).argmax(-1))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_16_bit_cascade_is_the_same_without_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = ResidualSimVQ(dim=8, num_quantizers=3, codebook_size=16).to(dtype).eval()
    x = gauss(2, 30, 8).to(dtype)
    want = module(x)
    with torch.no_grad():
        got = module(x)
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[0], want[0])
    torch.testing.assert_close(got[2], want[2])
