"""A row with NaN or inf moves nothing, and a batch of one row, or of equal rows, has a loss in scale."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import gauss, seeded
from torch import Tensor, nn

from vecbank import nn as vn

pytestmark = pytest.mark.usefixtures("one_thread")

D = 6
Made = Callable[[], nn.Module]


def sae(activation: str, **options: Any) -> Made:
    return lambda: vn.SparseAutoencoder(
        D, 24, 3, activation=activation, dead_after=12, threshold=0.1, bandwidth=0.1, generator=seeded(), **options
    )


MADE: dict[str, Made] = {
    "fsq": lambda: vn.FSQ([5] * D),
    "fsq, two codes": lambda: vn.FSQ([5] * 3, num_codebooks=2, preserve_symmetry=True, bound_hard_clamp=True),
    "residual fsq": lambda: vn.ResidualFSQ(levels=[5] * D, num_quantizers=3),
    "residual fsq, clamped": lambda: vn.ResidualFSQ(
        levels=[5] * D, num_quantizers=3, bound_hard_clamp=False, soft_clamp_input_value=2.0
    ),
    "lfq": lambda: vn.LFQ(dim=D, commitment_loss_weight=0.5),
    "lfq, projected": lambda: vn.LFQ(dim=D, codebook_size=16, num_codebooks=2, commitment_loss_weight=0.5),
    "lfq, spherical": lambda: vn.LFQ(dim=D, spherical=True, orthogonal_rotation=True),
    "lfq, clamped": lambda: vn.LFQ(
        dim=D, codebook_size=8, num_codebooks=2, soft_clamp_input_value=1.5, commitment_loss_weight=0.5
    ),
    "residual lfq, clamped": lambda: vn.ResidualLFQ(
        dim=D, codebook_size=2**D, num_quantizers=3, soft_clamp_input_value=1.5
    ),
    "residual lfq": lambda: vn.ResidualLFQ(dim=D, codebook_size=16, num_quantizers=3, commitment_loss_weight=0.5),
    "latent, two codes": lambda: vn.LatentQuantize([5] * 3, dim=D, num_codebooks=2),
    "latent": lambda: vn.LatentQuantize([5] * D, dim=D, value_gradient=True),
    "latent, projected": lambda: vn.LatentQuantize([5, 4], dim=D, num_codebooks=2, value_gradient=True),
    "bits": lambda: vn.BinaryMapper(D, deterministic_on_eval=True, kl_loss_threshold=0.0),
    "features": lambda: vn.CodebookFeatures(D, 12, 3, heads=2, commitment_weight=0.5, generator=seeded()),
    "features, l2": lambda: vn.CodebookFeatures(D, 12, 3, metric="l2", commitment_weight=0.5, generator=seeded()),
    "sparse": sae("topk"),
    "sparse, jump": sae("jumprelu"),
    "sparse, jump, lists": sae("jumprelu", max_k=12),
}


def step(name: str, module: Any, x: Tensor, train: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Vectors, codes, loss, and the gradient to x of rows (n, D); the gradients of the loss stay in the module."""
    module.train(train)
    x = x.clone().requires_grad_()
    if name.startswith("latent"):
        out, codes, loss = module(x.t().unsqueeze(0))
        out, codes = out[0].t(), codes[0]
    elif name == "bits":
        out, codes, loss = module(x, deterministic=True, return_indices=True)
    elif name.startswith("sparse"):
        found = module(x)
        out, codes, loss = found.reconstruction, found.indices, found.loss
    elif name.startswith("features"):
        out, codes, loss = module(x)
    else:
        out, codes, *rest = module(x.unsqueeze(0))
        out, codes, loss = out[0], codes[0], rest[0].sum() if rest else None
    if train and loss is not None:
        loss.backward()
    grad = torch.zeros_like(x) if x.grad is None else x.grad
    return out.detach(), codes, None if loss is None else loss.detach(), grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", MADE)
def test_a_row_that_is_no_number_moves_nothing(name: str, bad: float) -> None:
    """Losses, states, gradients and all other rows are those of the batch without it."""
    torch.manual_seed(0)
    module: Any = MADE[name]()
    x = 0.5 * gauss(15, D)
    with_it = x.clone()
    with_it[4, 1] = bad
    with_it[9] = bad
    others = torch.tensor([i for i in range(15) if i not in (4, 9)])
    same = copy.deepcopy(module)
    for train in (True, True, False):
        got, want = step(name, module, with_it, train), step(name, same, x[others], train)
        valid = name == "bits" and not math.isnan(bad)  # infinite log-odds: a bit that is certain
        codes = got[1][[4, 9]]
        assert (codes >= 0).all() if valid else (codes == -1).all()
        if not valid:
            assert got[0][[4, 9]].isnan().all()
        torch.testing.assert_close(got[0][others], want[0], rtol=1e-5, atol=1e-6)
        used = codes_of(got[1][others]), codes_of(want[1])
        assert torch.equal(*used)
        if got[2] is not None and not (valid and name == "bits"):
            torch.testing.assert_close(got[2], want[2], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(got[3][others], want[3], rtol=1e-4, atol=1e-6)
        assert got[2] is None or got[2].isfinite()
        if not valid:
            for one, other in zip(module.parameters(), same.parameters(), strict=True):
                assert (one.grad is None) == (other.grad is None)
                if one.grad is not None and other.grad is not None:
                    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(module.state_dict(), same.state_dict(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["fsq", "residual fsq", "lfq", "residual lfq", "residual vq"])
def test_beside_such_a_row_the_others_keep_their_bits(name: str) -> None:
    """In 16 bits, projected, features on axis 1: where products round by how memory is laid out."""
    made: dict[str, Made] = {
        "fsq": lambda: vn.FSQ([5, 4, 3], dim=8, channel_first=True),
        "residual fsq": lambda: vn.ResidualFSQ(levels=[5, 4, 3], dim=8, num_quantizers=3, is_channel_first=True),
        "lfq": lambda: vn.LFQ(dim=8, codebook_size=16, channel_first=True),
        "residual lfq": lambda: vn.ResidualLFQ(dim=8, codebook_size=16, num_quantizers=3, channel_first=True),
        "residual vq": lambda: vn.ResidualVQ(
            dim=8, codebook_dim=4, num_quantizers=3, codebook_size=12, channel_last=False, freeze_codebook=True
        ),
    }
    torch.manual_seed(0)
    module: Any = made[name]().bfloat16()
    x = gauss(2, 8, 64).bfloat16()
    bad = x.clone()
    bad[0, 3, 5] = math.nan
    others = torch.ones(2, 1, 64, dtype=torch.bool)
    others[0, :, 5] = False
    found = []
    for batch in (x, bad):
        given = batch.clone().requires_grad_()
        out = torch.where(others, module(given)[0], 0.0)
        out.sum().backward()
        assert given.grad is not None
        found.append((out.detach(), torch.where(others, given.grad, 0.0)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def codes_of(codes: Tensor) -> Tensor:
    """Lists of another width hold the same codes."""
    return codes[..., : int((codes >= 0).sum(-1).max())] if codes.dim() > 1 else codes


@pytest.mark.parametrize("rows", [1, 7], ids=["one row", "equal rows"])
@pytest.mark.parametrize("name", [*MADE, "sparse, batch"])
def test_rows_without_a_variance(name: str, rows: int) -> None:
    """Before and after training on ordinary batches: in scale with the loss of those."""
    torch.manual_seed(0)
    module: Any = {**MADE, "sparse, batch": sae("batch_topk")}[name]()
    one = gauss(1, D, seed=9).expand(rows, D)
    before = step(name, module, one, True)[2]
    ordinary = [step(name, module, gauss(32, D, seed=i), True)[2] for i in range(5)]
    if before is None or ordinary[0] is None:
        return
    scale = max(float(loss) for loss in ordinary if loss is not None)
    assert float(before) <= 16 * max(scale, 1.0)
    for train in (True, False):
        out, _, loss, grad = step(name, module, one, train)
        assert loss is not None and float(loss) <= 16 * max(scale, 1.0)
        assert out.isfinite().all() and grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    assert all(t.isfinite().all() for t in module.state_dict().values() if t.is_floating_point())


def test_the_variance_that_errors_are_relative_to() -> None:
    module = vn.SparseAutoencoder(D, 24, 3, aux_k=0, generator=seeded())
    one = torch.full((1, D), 2.0)
    assert module.variance == -1 and module(one).error == 1 and module.variance == -1
    first, x = 3 * gauss(40, D), 3 * gauss(50, D, seed=2)
    out = module(first)
    own = first.var(0, unbiased=False).mean()
    torch.testing.assert_close(out.error, (out.reconstruction - first).square().mean() / own)
    torch.testing.assert_close(module.variance, first.var(0).mean())
    module(x)
    running = 0.99 * first.var(0).mean() + 0.01 * x.var(0).mean()
    torch.testing.assert_close(module.variance, running)
    for train in (True, False):
        out = module.train(train)(one)
        torch.testing.assert_close(out.error, (out.reconstruction - one).square().mean() / (running / 4))
        torch.testing.assert_close(module.variance, running)
    near = one + 1e-4 * gauss(20, D)
    assert module.eval()(near).error < 8
    old = {k: v for k, v in module.state_dict().items() if k != "variance"}
    module.load_state_dict(old)
    assert module.variance == -1  # a state from before it was kept: it starts again


def test_nothing_left_over_does_not_make_the_dead_shout() -> None:
    """What the dead are trained on counts as no less than a hundredth of the variance."""
    module = vn.SparseAutoencoder(D, 2 * D, D, dead_after=1, aux_k=2, generator=seeded())
    with torch.no_grad():  # the first half is a perfect code, the second is never chosen and answers loudly
        module.encoder.copy_(torch.cat([torch.eye(D), 0.5 * torch.eye(D)]))
        module.decoder.copy_(torch.cat([torch.eye(D), torch.eye(D)]))
    x = 1 + 0.5 * torch.rand(64, D, generator=seeded())
    out = module(x)
    loud = (0.5 * x).topk(2).values.square().sum() / x.numel()
    assert out.error == 0
    torch.testing.assert_close(out.auxiliary, loud / (0.01 * x.var(0, unbiased=False).mean()))


@pytest.mark.parametrize("name", [*MADE, "sparse, batch"])
def test_training_resumes_bit_for_bit(name: str) -> None:
    """From a saved state and the optimiser's, two more steps are those of the run that was not stopped."""
    made = {**MADE, "sparse, batch": sae("batch_topk")}[name]
    torch.manual_seed(0)
    module = made()
    parameters = list(module.parameters())
    optimiser = torch.optim.Adam(parameters, lr=1e-2) if parameters else None

    def train(module: nn.Module, optimiser: Any, first: int, last: int) -> None:
        for i in range(first, last):
            if optimiser is not None:
                optimiser.zero_grad()
            step(name, module, gauss(1 if i == 3 else 20, D, seed=i), True)
            if optimiser is not None:
                optimiser.step()

    train(module, optimiser, 0, 4)
    saved = io.BytesIO()
    torch.save((module.state_dict(), None if optimiser is None else optimiser.state_dict()), saved)
    saved.seek(0)
    state, moments = torch.load(saved, weights_only=True)
    torch.manual_seed(5)
    other = made()
    other.load_state_dict(state)
    again = torch.optim.Adam(list(other.parameters()), lr=1e-2) if parameters else None
    if again is not None:
        again.load_state_dict(moments)
    train(module, optimiser, 4, 7)
    train(other, again, 4, 7)
    for key, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    x = gauss(9, D, seed=20)
    for got, want in zip(step(name, other, x, False), step(name, module, x, False), strict=True):
        assert got is want is None or torch.equal(got, want)  # type: ignore[arg-type]


PROJECTED: dict[str, Made] = {
    "fsq": lambda: vn.FSQ([5, 5], dim=D),
    "residual fsq": lambda: vn.ResidualFSQ(levels=[5, 5], num_quantizers=2, dim=D),
    "lfq": lambda: vn.LFQ(dim=D, codebook_size=16),
    "lfq, cosine": lambda: vn.LFQ(dim=D, codebook_size=16, cosine_sim_project_in=True),
    "residual lfq": lambda: vn.ResidualLFQ(dim=D, codebook_size=16, num_quantizers=2),
    "latent": lambda: vn.LatentQuantize([5, 4], dim=D),
    "vector quantisation": lambda: vn.VectorQuantize(D, 8, codebook_dim=3),
    "residual vector quantisation": lambda: vn.ResidualVQ(dim=D, codebook_size=8, codebook_dim=3, num_quantizers=2),
}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", PROJECTED)
def test_a_row_that_is_no_number_leaves_the_linear_maps_alone(name: str, train: bool, bad: float) -> None:
    torch.manual_seed(0)
    module = PROJECTED[name]().train(train)
    x = gauss(1, 4, D)
    with_it = x.clone()
    with_it[0, 2, 1] = bad
    grads = []
    for rows in (with_it, x):
        rows = rows.movedim(-1, 1) if name == "latent" else rows
        made = copy.deepcopy(module)
        out = made(rows)[0]
        out = out.movedim(1, -1) if name == "latent" else out
        (out[0, :2].square().sum() + out[0, 3:].square().sum()).backward()
        grads.append([p.grad for p in made.parameters()])
    for got, want in zip(*grads, strict=True):
        assert (got is None) == (want is None)
        if got is not None and want is not None:
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("image", [False, True], ids=["tokens", "image"])
@pytest.mark.parametrize("kind", ["GroupedResidualVQ", "GroupedResidualFSQ", "GroupedResidualLFQ"])
def test_a_row_is_lost_in_all_groups(kind: str, image: bool, bad: float) -> None:
    options: dict[str, Any] = {"levels": [5] * 3} if "FSQ" in kind else {"codebook_size": 8}
    module = getattr(vn, kind)(dim=D, groups=2, num_quantizers=2, accept_image_fmap=image, **options)
    x = gauss(1, 4, 5, D)
    x = x if image else x.flatten(1, 2)
    x[0, 2, ..., 1] = bad
    found, codes, *_ = module(x.movedim(-1, 1) if image else x)
    found = found.movedim(1, -1) if image else found
    codes = codes.movedim(2, -1) if kind == "GroupedResidualFSQ" and image else codes
    lost = torch.zeros(found.shape[:-1], dtype=torch.bool)
    lost[0, 2] = True
    assert torch.equal(found.isnan().all(-1), lost) and torch.equal(found.isnan().any(-1), lost)
    assert torch.equal((codes == -1).all(-1).all(0), lost) and torch.equal((codes == -1).any(-1).any(0), lost)
