"""Binary Paragraph Vector: documents are found by the Hamming distance of learned codes, and ranked by real vectors.

Grzegorczyk, "Vector representations of text data in deep learning", 2019; with Kurdziel, "Binary Paragraph Vectors",
2017.

    code = round(sigmoid(h)), with the gradient passed by the rounding; 100 rows by Hamming distance, ranked again

Here the documents are digits, the code is the middle of an autoencoder that knows no labels (sigmoid(h) rounds to 1
where h > 0), and the real vector is the digit itself. Beside it: the signs of random projections.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vecbank
from vecbank import bits, codes

from ._data import accuracy, digits, generator, mlp, normal
from ._sheet import Sheet

TITLE = "Binary Paragraph Vector"
FAMILY = "top-k search"
WIDTHS, RANDOM, AGAIN = (32, 64, 128, 256), [0.775, 0.855, 0.902, 0.921], (0.938, 0.947, 0.947)


def learn(x: Tensor, width: int, seed: int) -> nn.Module:
    """The first half of an autoencoder."""
    encoder, decoder, draw = mlp(x.shape[1], width, seed=seed), mlp(width, x.shape[1], seed=seed + 1), generator(seed)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    for _ in range(70):
        batch = x[torch.randint(len(x), (64,), generator=draw)]
        optimiser.zero_grad()
        code = codes.round_quantize(encoder(batch).sigmoid(), 1.0).quantized
        nn.functional.mse_loss(decoder(code), batch).backward()
        optimiser.step()
    return encoder


def equal_to_brute_force(width: int, seed: int) -> bool:
    """Distances, and neighbours with their ties, of random rows; bits that pad the last byte are set on one side."""
    a, b = (torch.rand(n, width, generator=generator(seed + n)) < 0.5 for n in (50, 600))
    words = [codes.pack_bits(nn.functional.pad(t, (0, -width % 8), value=v)) for t, v in ((a, True), (b, False))]
    found, brute = bits.topk(words[0], words[1], 20, bits=width), (a.unsqueeze(1) ^ b).sum(2)
    same = torch.equal(bits.scores(words[0], words[1], bits=width).long(), brute)
    return same and all(torch.equal(t.long(), u[:, :20]) for t, u in zip(found, brute.sort(stable=True), strict=True))


def run(sheet: Sheet) -> None:
    from matplotlib.figure import Figure

    same = [equal_to_brute_force(width, sheet.seed) for width in (37, 64, 100)]
    sheet.check("37, 64, 100 bits: distances and neighbours, by brute force", same, "equal", all(same))
    data = digits(seed=sheet.seed)
    x, q = data.x - data.x.mean(0), data.x_test - data.x.mean(0)

    def precisions(of_q: Tensor, of_x: Tensor) -> list[float]:
        """Precision@10 by the Hamming distance of signs, and of 100 rows ranked again."""
        found = bits.topk(codes.pack_signs(of_q), codes.pack_signs(of_x), 100).indices
        again = vecbank.topk(q, x, 10, "l2", allowed=vecbank.Allowed.rows(found)).indices
        return [accuracy(data.y[rows], data.y_test[:, None]) for rows in (found[:, :10], again)]

    draws = [[normal(64, width, seed=3 * sheet.seed + i) for width in WIDTHS] for i in range(3)]
    random = torch.tensor([[precisions(q @ turn, x @ turn) for turn in turns] for turns in draws]).mean(0)
    learned = torch.tensor([precisions(f(q), f(x)) for f in (learn(x, width, sheet.seed) for width in WIDTHS)])
    hamming, again = random.T.tolist()
    near = all(abs(a - b) < 0.06 for a, b in zip(hamming, RANDOM, strict=True))
    sheet.check("precision@10 of signs of random projections, 32 to 256 bits", hamming, RANDOM, near)
    exact = accuracy(data.y[vecbank.topk(q, x, 10, "l2").indices], data.y_test[:, None])
    ends, near = [min(again), max(again), exact], min(again) > exact - 0.03
    sheet.check("least and most of them, 100 ranked again; exact", ends, AGAIN, near and abs(exact - AGAIN[2]) < 0.03)
    best = float(learned[0, 0])
    sheet.check("precision@10 of 32 learned bits", best, f"{hamming[0]:.3f} + 0.03 or more", best >= hamming[0] + 0.03)
    axes = (plot := Figure(figsize=(4.4, 2.8), layout="constrained")).subplots()
    for name, found in (("random", random), ("learned", learned)):
        axes.plot([*map(str, WIDTHS)], found.numpy(), "o-", label=[name, f"{name}, 100 ranked again"])
    axes.set(xlabel="bits", ylabel="precision@10")
    axes.legend()
    sheet.picture("Codes of digits, and the first 100 of them ranked again by the digits themselves", plot)
