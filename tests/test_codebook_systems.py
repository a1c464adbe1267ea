"""Published systems of codebooks and dictionaries, each in a few lines on what is here, by its acceptance check.

Those that are elsewhere: QLAE, LR2VQ's decoding (test_codes), Codebook Features (test_codebook_features), SimVQ
(test_sim_vq), Unified Embedding, vector storage, OptEmbed, DNIS, OptFS (test_embedding), top-AFA, g-SAE, evaluation by
editing (test_sparse), sparse coding (test_sparse_autoencoder), k-means of known classes (test_kmeans).
"""

from __future__ import annotations

import pytest
import torch
from helpers import gauss, seeded
from torch import Tensor, nn

import vecbank
from vecbank import (
    Bank,
    kmeans,
    lookup,
    nearest,
    project,
    residual_lookup,
    residual_quantize,
    sparse_decode,
    sparse_encode,
    sparse_encode_threshold,
)
from vecbank.codes import bernoulli_quantize, pack_bits, unpack_bits
from vecbank.nn import GroupedResidualVQ
from vecbank.pq import pq_train
from vecbank.sparse import adapt_bias_, firing_counts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    found = pytest.importorskip("sklearn.datasets").load_digits()
    return torch.from_numpy(found.data).float(), torch.from_numpy(found.target).long()


def perplexity(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1).exp()


def test_obow_soft_words_and_their_queue(digits: tuple[Tensor, Tensor]) -> None:
    """OBoW: softmax over words of -(delta / m) |f - v|^2, m the mean smallest distance; a bag is the largest of each
    word over an image's positions; the words are a queue."""
    x = digits[0][:1790]
    words = Bank(x[torch.randperm(1790, generator=seeded())[:128]].clone(), metric="sqeuclidean")
    m = words.nearest(x).values.mean()
    found = []
    for delta in (1, 15, 1000):
        soft = (-delta / m * words.project(x)).softmax(-1)
        found.append((float(perplexity(soft).mean()), float(perplexity(soft.mean(0)))))
    rows, batch = zip(*found, strict=True)
    assert rows[0] > 20 and rows[1] < 4 and rows[2] < 1.01  # the reference: 58.3, 1.5, 1.0
    assert batch[0] > batch[1] > 0.5 * 128 and batch[2] > 0.5 * 128  # 124.6, 97.6, 93.5
    images = x.view(179, 10, 64)  # an image at a time is all that is ever dense
    bags = torch.stack([(-15 / m * words.project(one)).softmax(-1).amax(0) for one in images])
    dense = (-15 / m * words.project(images)).softmax(-1).amax(1)
    torch.testing.assert_close(nn.functional.normalize(bags, p=1), nn.functional.normalize(dense, p=1))
    at, recent = 0, x[:0]
    for step in range(5):  # 5 x 50 rows through 128 places
        fresh = x[50 * step : 50 * (step + 1)]
        words.update_((at + torch.arange(50)) % 128, fresh)
        at, recent = (at + 50) % 128, torch.cat([recent, fresh])[-128:]
    assert torch.equal(words.vectors.roll(-at, 0), recent)
    assert (words.nearest(recent).values == 0).all()


def test_mcquic_levels_and_groups(digits: tuple[Tensor, Tensor]) -> None:
    """McQuic: groups of books, levels of residuals, codes drawn by their distance, unused codes from used ones."""
    x = digits[0]
    variance, rest, books, errors = (x - x.mean(0)).square().mean(), x, [], []
    for _ in range(4):
        books.append(kmeans(rest, 16, generator=seeded()).centres)
        found = residual_quantize(x, books)
        rest = x - found.quantized
        errors.append(float(rest.square().mean() / variance))
    assert errors == pytest.approx([0.467, 0.352, 0.287, 0.240], rel=0.05)  # 2.185, 1.646, 1.343, 1.123 of 4.679
    packed = pack_bits(found.codes, 4)
    assert packed.shape == (len(x), 2)  # four codes of four bits
    assert torch.equal(residual_lookup(unpack_bits(packed, 4, 4), books), found.quantized)
    codec = pq_train(x, 4, 4, generator=seeded())
    product = float((codec.decode(codec.encode(x)) - x).square().mean() / variance)
    assert product == pytest.approx(1.404 / 4.679, rel=0.08)
    # training: drawn codes, level after level in two groups; then what is not used is taken from what is used most
    model = GroupedResidualVQ(
        dim=64,
        groups=2,
        num_quantizers=2,
        codebook_size=32,
        kmeans_init=True,
        stochastic_sample_codes=True,
        sample_codebook_temp=0.5,
        generator=seeded(),
    )
    for rows in x[:1600].split(400):
        quantized, codes, losses = model(rows[None])
    assert quantized.shape == (1, 400, 64) and codes.shape == (2, 1, 400, 2) and losses.isfinite().all()
    book = model.rvqs[0].layers[0]._codebook
    book.embed[0, 16:] = 1e3  # half of the codes are lost
    model.eval()
    before = model(x[None])[1][0, ..., 0].unique().numel()
    used = firing_counts(model(x[None])[1][0, ..., 0], 32)
    best, lost = used.topk(16).indices, (used == 0).nonzero().squeeze(1)[:16]
    book.embed[0, lost] = book.embed[0, best[: len(lost)]] + 0.5 * gauss(len(lost), 32)
    assert model(x[None])[1][0, ..., 0].unique().numel() > before + 8


def test_lr2vq_error_is_that_of_both_parts() -> None:
    """LR2VQ: sub-vectors of length m as C[code] B, codes in d~ < m dimensions; log2 k bits per m weights."""
    weight = gauss(512, 8) @ gauss(8, 256, seed=1) + gauss(512, 256, seed=2)
    vectors = weight.view(-1, 16)
    axes = torch.linalg.svd(vectors, full_matrices=False).Vh
    errors = []
    for width in (8, 4, 2):
        basis = axes[:width]
        low = project(vectors, basis, "dot")
        found = kmeans(low, 64, iterations=10, generator=seeded())
        decoded = lookup(found.codes, found.centres) @ basis
        fused = lookup(found.codes, found.centres @ basis)  # one gather: the book C B
        torch.testing.assert_close(decoded, fused)
        approximation = (vectors - low @ basis).double().square().sum()
        clustering = (low - found.centres[found.codes]).double().square().sum()
        total = (vectors - decoded).double().square().sum()
        torch.testing.assert_close(total, approximation + clustering, rtol=1e-4, atol=0)
        errors.append(float(total))
    assert errors == sorted(errors)
    assert pack_bits(found.codes.view(512, -1), 6).numel() * 8 / weight.numel() == 6 / 16  # bits per weight


def test_binary_latents_of_a_linear_autoencoder(digits: tuple[Tensor, Tensor]) -> None:
    """Binary Latent Diffusion's first stage: b = Bernoulli(sigmoid(h)), straight-through; no table."""
    x = digits[0][::2] / 16
    errors = []
    for bits in (16, 64):
        torch.manual_seed(0)
        encoder, decoder, draws = nn.Linear(64, bits), nn.Linear(bits, 64), seeded()
        optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-2)
        for _ in range(100):
            chance = encoder(x - x.mean(0)).sigmoid()
            code = bernoulli_quantize(chance, draws)
            error = (decoder(code.quantized) - x).square().mean()
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
        errors.append(error.item())
        assert torch.equal(unpack_bits(pack_bits(code.codes), bits).bool(), code.codes)
        assert (code.codes.float().mean(0) - chance.detach().mean(0)).abs().max() < 0.05
    assert errors[1] < 0.8 * errors[0] < 0.8 * float((x - x.mean(0)).square().mean())


def test_depict_keeps_every_cluster(digits: tuple[Tensor, Tensor]) -> None:
    """DEPICT: p = softmax(z . theta); the target divides p by the square root of what each cluster holds, so that no
    cluster is left empty where plain self-training ends with one. (The features stay: no encoder learns here, and the
    balance then costs some of k-means's 0.725 in mutual information.)"""
    x, y = digits[0] / 16, digits[1]
    normalized_mutual_info = pytest.importorskip("sklearn.metrics").normalized_mutual_info_score
    axes = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:16]
    z = (x - x.mean(0)) @ axes.T
    start = kmeans(z, 10, generator=seeded())
    ones = torch.cat([z, torch.ones(len(z), 1)], 1)

    def clusters(balanced: bool) -> Tensor:
        theta = nn.Parameter(8 * torch.cat([start.centres, -start.centres.square().sum(1, keepdim=True) / 2], 1))
        optimiser = torch.optim.Adam([theta], lr=0.05)
        for _ in range(60):
            p = project(ones, theta, "dot").softmax(1)
            target = (p / p.sum(0).sqrt() if balanced else p.square()).detach()
            target = target / target.sum(1, keepdim=True)
            optimiser.zero_grad()
            (target * (target / p).log()).sum(1).mean().backward()
            optimiser.step()
        return nearest(ones, theta.detach(), "dot").indices

    codes = clusters(balanced=True)
    assert torch.bincount(codes, minlength=10).min() > 50
    assert normalized_mutual_info(y.numpy(), codes.numpy()) > 0.6
    assert clusters(balanced=False).unique().numel() < 5


def test_dam_vp_routes_to_the_nearest_expert(digits: tuple[Tensor, Tensor]) -> None:
    """DAM-VP: the nearest of a few centres picks the prompt (here: the linear model) that is used."""
    x, odd = digits[0] / 16, (digits[1] % 2).float() * 2 - 1
    train = torch.rand(len(x), generator=seeded()) < 0.6
    centres = kmeans(x[train], 8, generator=seeded()).centres
    ones = torch.cat([x, torch.ones(len(x), 1)], 1)

    def solve(rows: Tensor, want: Tensor) -> Tensor:
        return torch.linalg.solve(rows.T @ rows + torch.eye(65), rows.T @ want)

    codes = nearest(x, centres).indices
    experts = torch.stack([solve(ones[train & (codes == i)], odd[train & (codes == i)]) for i in range(8)])
    chosen = lookup(codes, experts)
    assert torch.equal(chosen, experts[codes])
    one = ((ones @ solve(ones[train], odd[train])) * odd > 0)[~train].float().mean()
    routed = ((ones * chosen).sum(1) * odd > 0)[~train].float().mean()
    assert one < 0.93 and routed > 0.95  # the reference: 0.913 and 0.965


class Planted:
    """Sums of 3 of 64 unit directions in 32 dimensions."""

    def __init__(self) -> None:
        self.draws = seeded(1)
        self.directions = nn.functional.normalize(torch.randn(64, 32, generator=self.draws), dim=1)

    def batch(self, n: int = 256) -> Tensor:
        place = torch.rand(n, 64, generator=self.draws).argsort(1)[:, :3]
        return sparse_decode(0.5 + torch.rand(n, 3, generator=self.draws), place, self.directions)

    def recovered(self, decoder: Tensor) -> float:
        return float((vecbank.topk(self.directions, decoder.detach(), 1, "cosine").values > 0.9).float().mean())


def test_variational_top_k_lets_latents_die() -> None:
    """TopK vSAE: top-k of a sample of N(mu(x), sigma^2), and KL to a standard normal: the more KL, the more dead."""
    dead = []
    for weight in (0.0, 1.0):
        planted, noise = Planted(), seeded(2)
        w = nn.Parameter(0.3 * torch.randn(128, 32, generator=seeded()))
        decoder = nn.Parameter(w.detach().clone())
        optimiser = torch.optim.Adam([w, decoder], lr=1e-2)
        for _ in range(120):
            x = planted.batch(128)
            sample = 0.1 * torch.randn(128, 128, generator=noise)
            code = sparse_encode(x, w, None, 3, score=lambda z, rows, s=sample: (z + s[rows], z + s[rows]))
            divergence = project(x, w, "dot").square().mean() / 2
            error = (sparse_decode(code.values, code.indices, decoder) - x).square().mean()
            optimiser.zero_grad()
            (error + weight * divergence).backward()
            optimiser.step()
        fired = firing_counts(sparse_encode(planted.batch(1000), w.detach(), None, 3).indices, 128)
        dead.append(int((fired == 0).sum()))
    assert dead[1] > 2 * dead[0]


def test_gba_biases_recover_the_dictionary() -> None:
    """GBA: relu(W x + b), biases nudged so that each latent fires at its target frequency; no top-k."""
    planted = Planted()
    w = nn.Parameter(nn.functional.normalize(torch.randn(128, 32, generator=seeded()), dim=1))
    bias = torch.full((128,), -0.2)
    optimiser = torch.optim.Adam([w], lr=2e-2)
    counts, last = torch.zeros(128, dtype=torch.int64), torch.zeros(128, dtype=torch.int64)
    for step in range(300):
        x = planted.batch()
        fired = sparse_encode_threshold(x, w, bias, max_k=16)
        unit = nn.functional.normalize(w, dim=1)
        error = (sparse_decode(fired.values, fired.indices, unit) - x).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        counts += firing_counts(fired.indices, 128, fired.values)
        if step >= 250:
            last += firing_counts(fired.indices, 128, fired.values)
        if step % 5 == 4:
            adapt_bias_(bias, counts, 5 * 256, 0.05, 0.02)
            counts.zero_()
    assert (last > 0).all() and last.sum() < 6 * 50 * 256  # none is dead, and a row has few
    assert planted.recovered(w) > 0.9  # the reference, by top-k: 0.938
