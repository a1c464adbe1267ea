"""SparseAutoencoder: the dense form, recovery of planted dictionaries, dead latents, and its bookkeeping."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import gauss, seeded
from torch import Tensor

from vecbank import project, sparse_decode, sparse_encode
from vecbank.nn.sparse_autoencoder import SparseAutoencoder, SparseCode

pytestmark = pytest.mark.usefixtures("one_thread")


def step(sae: SparseAutoencoder, optimiser: torch.optim.Optimizer, x: Tensor) -> SparseCode:
    out: SparseCode = sae(x)
    optimiser.zero_grad()
    out.loss.backward()
    sae.project_decoder_gradient_()
    optimiser.step()
    sae.normalize_decoder_()
    return out


class Planted:
    """Sums of 2 of 24 unit directions in 16 dimensions."""

    def __init__(self) -> None:
        self.generator = seeded(1)
        self.directions = torch.nn.functional.normalize(torch.randn(24, 16, generator=self.generator), dim=1)

    def batch(self, n: int = 128) -> Tensor:
        place = torch.rand(n, 24, generator=self.generator).argsort(1)[:, :2]
        strength = 0.5 + torch.rand(n, 2, generator=self.generator)
        return sparse_decode(strength, place, self.directions)

    def recovered(self, decoder: Tensor) -> float:
        return float(((self.directions @ decoder.detach().T).max(1).values > 0.9).float().mean())


def trained(steps: int = 400, **options: Any) -> tuple[SparseAutoencoder, SparseCode, Planted]:
    planted = Planted()
    sae = SparseAutoencoder(16, 48, 2, generator=seeded(), **options)
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
    for _ in range(steps):
        out = step(sae, optimiser, planted.batch())
    return sae, out, planted


def test_top_k_form_is_the_dense_one() -> None:
    sae = SparseAutoencoder(16, 40, 5, generator=seeded(), aux_k=0).double()
    with torch.no_grad():
        sae.bias += gauss(16)
        sae.encoder_bias += 0.1 * gauss(40)
    x = gauss(30, 16, dtype=torch.float64).requires_grad_()
    out = sae(x)
    out.loss.backward()
    got = [x.grad, *(p.grad for p in sae.parameters())]
    x.grad = None
    sae.zero_grad()
    z = ((x - sae.bias) @ sae.encoder.T + sae.encoder_bias).relu()
    code = torch.where(z >= z.topk(5).values[:, -1:], z, 0.0)
    rebuilt = code @ sae.decoder + sae.bias
    error = (rebuilt - x).square().mean() / (x.detach() - x.detach().mean(0)).square().mean()
    error.backward()
    torch.testing.assert_close(out.reconstruction, rebuilt)
    torch.testing.assert_close(out.error, error)
    for ours, theirs in zip(got, [x.grad, *(p.grad for p in sae.parameters())], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [{"aux_k": 0}, {"activation": "batch_topk"}, {"activation": "jumprelu", "threshold": 0.1, "bandwidth": 0.1}],
)
def test_planted_directions_are_recovered(options: dict[str, Any]) -> None:
    sae, out, planted = trained(dead_after=10_000, **options)
    assert planted.recovered(sae.decoder) > 0.93
    assert out.error < 0.15
    sae.eval()
    x = planted.batch(1000)
    average = float((sae(x).values > 0).sum(1).float().mean())
    assert 1.6 <= average <= 3.5
    # an input's code does not depend on what comes with it
    alone, among = sae(x[:1]), sae(x)
    used = alone.indices[0] >= 0
    assert torch.equal(alone.indices[0][used].sort().values, among.indices[0][among.indices[0] >= 0].sort().values)


def test_auxiliary_loss_wakes_dead_latents() -> None:
    found = {}
    for aux_k in (0, 16):
        planted = Planted()
        sae = SparseAutoencoder(16, 48, 2, aux_k=aux_k, dead_after=500, generator=seeded())
        with torch.no_grad():
            sae.encoder[6:] *= 0.01  # fires, but never among the first
        optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
        for _ in range(200):
            out = step(sae, optimiser, planted.batch())
        found[aux_k] = (planted.recovered(sae.decoder), int((sae.counts[6:] > 0).sum()), float(out.auxiliary.detach()))
    assert found[16][1] > 2 * found[0][1] and found[0][2] == 0
    assert found[16][0] > found[0][0] + 0.5


def test_both_ways_of_reaching_the_dead_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = SparseAutoencoder(16, 40, 3, aux_k=4, dead_after=10, generator=seeded())
    sae.silent[::3] = 50
    x = gauss(20, 16)
    rest = gauss(20, 16, seed=3)
    gathered = sae._auxiliary(x, rest)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(gathered, sae._auxiliary(x, rest))
    sae.silent.zero_()
    assert sae._auxiliary(x, rest) == 0


def test_decoder_rows_stay_unit_vectors() -> None:
    sae, _, _ = trained(steps=5)
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(48))
    sae(gauss(20, 16)).loss.backward()
    sae.project_decoder_gradient_()
    assert (sae.decoder.grad * sae.decoder).sum(1).abs().max() < 1e-6  # type: ignore[operator]


def test_counts_and_silence() -> None:
    sae = SparseAutoencoder(8, 30, 2, generator=seeded(), dead_after=60)
    expected = torch.zeros(30, dtype=torch.int64)
    for i in range(4):
        out = sae(gauss(5, 5, 8, seed=i))
        expected += torch.bincount(out.indices[out.indices >= 0], minlength=30)
    assert torch.equal(sae.counts, expected) and sae.inputs == 100
    torch.testing.assert_close(sae.frequency, expected / 100)
    assert ((sae.silent == 100) == (expected == 0)).all()
    assert torch.equal(sae.dead, sae.silent >= 60)
    sae.eval()
    sae(gauss(5, 8))
    assert sae.inputs == 100
    sae.reset_counts_()
    assert sae.inputs == 0 and sae.counts.sum() == 0


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "jumprelu"])
def test_state_travels(activation: str) -> None:
    sae = SparseAutoencoder(8, 30, 2, activation=activation, generator=seeded()).start_(gauss(50, 8) + 3)
    sae(gauss(20, 8))
    other = SparseAutoencoder(8, 30, 2, activation=activation, generator=seeded(1))
    other.load_state_dict(sae.state_dict())
    x = gauss(10, 8, seed=5)
    for module in (other, copy.deepcopy(sae)):
        assert torch.equal(module.eval()(x).reconstruction, sae.eval()(x).reconstruction)
    assert (sae.bias - 3).abs().max() < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input(dtype: torch.dtype) -> None:
    sae = SparseAutoencoder(8, 30, 2, generator=seeded())
    x = gauss(20, 8).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = sae(x)
    assert torch.equal(out.reconstruction, sae(x.float()).reconstruction)


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "jumprelu"])
def test_compiles_whole(activation: str) -> None:
    plain = SparseAutoencoder(8, 30, 3, activation=activation, max_k=12, dead_after=30, generator=seeded())
    other = copy.deepcopy(plain)
    whole = torch.compile(other, fullgraph=True, backend="aot_eager")
    for i in range(3):
        x = gauss(20, 8, seed=i)
        a, b = plain(x), whole(x)
        torch.testing.assert_close(tuple(a), tuple(b), rtol=1e-5, atol=1e-6)
        a.loss.backward()
        b.loss.backward()
    for p, q in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    assert torch.equal(plain.counts, other.counts)


def test_variational_form() -> None:
    """Top-k of a sample of N(mu(x), sigma^2): the sample is chosen by and kept, the gradient is mu's."""
    w, sigma = gauss(60, 12).requires_grad_(), 0.3
    x, noise = gauss(20, 12), sigma * gauss(20, 60, seed=3)
    code = sparse_encode(x, w, None, 4, score=lambda z, rows: (z + noise[rows], z + noise[rows]))
    sample = (x @ w.T + noise).detach()
    want = sample.relu().topk(4)
    torch.testing.assert_close(code.values, want.values)
    assert torch.equal(code.indices, want.indices)
    code.values.sum().backward()
    torch.testing.assert_close(w.grad, torch.zeros(20, 60).scatter_(1, want.indices, 1.0).T @ x)


def test_thresholded_sparse_coding() -> None:
    """a <- T(a + step D^T (x - D a)) with a hard threshold finds planted 2-sparse codes."""
    planted = Planted()
    atoms = planted.directions
    place = torch.rand(100, 24, generator=seeded()).argsort(1)[:, :2]
    x = sparse_decode(torch.ones(100, 2), place, atoms)
    a = torch.zeros(100, 24)
    for _ in range(300):
        a = a + 0.2 * project(x - a @ atoms, atoms, "dot")
        a = torch.where(a.abs() > 0.05, a, 0)
    support = torch.zeros(100, 24).scatter_(1, place, 1.0) > 0
    assert ((x - a @ atoms).norm() / x.norm()) < 0.05
    assert ((a.abs() > 0.3) == support).float().mean() > 0.97


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "gelu"}, "activation must be one of"),
        ({"k": 0}, "k must lie between 1 and latents"),
        ({"threshold": 0.0}, "threshold must be greater than 0"),
    ],
)
def test_refuses_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseAutoencoder(8, 20, **{"k": 4, **options})
    with pytest.raises(ValueError, match="x must have shape"):
        SparseAutoencoder(8, 20, 2)(torch.zeros(3, 7))
