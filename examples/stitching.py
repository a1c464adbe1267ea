"""Zero-shot stitching: a classifier and a decoder learn from encoder A and then read encoder B. See docs/anchors.md.

python examples/stitching.py [--quick]
"""

import torch
from common import arguments, digits, save
from matplotlib.figure import Figure
from torch import Tensor, nn

from vecbank import anchors
from vecbank.nn import RelativeProjection


def fitted(model: nn.Module, loss: nn.Module, x: Tensor, target: Tensor, steps: int) -> nn.Module:
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for rows in (torch.randint(len(x), (200,)) for _ in range(steps)):
        optimiser.zero_grad()
        loss(model(x[rows]), target[rows]).backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 64))


options = arguments(__doc__.splitlines()[0])
torch.manual_seed(options.seed)
pixels, labels = digits()
order, steps = torch.randperm(len(pixels)), 100 if options.quick else 800
(x, x_test), (y, y_test) = pixels[order].split([1200, 597]), labels[order].split([1200, 597])
squares, entropy = nn.MSELoss(), nn.CrossEntropyLoss()

encoders = [nn.Sequential(mlp(64), nn.BatchNorm1d(64, affine=False)) for _ in "AB"]  # of two autoencoders
for encoder in encoders:
    fitted(nn.Sequential(encoder, mlp(64)), squares, x, x, steps)
index = anchors.random(x, 128)  # the same digits are the anchors of both encoders
relative = [nn.Sequential(encoder, RelativeProjection(encoder(x[index]))) for encoder in encoders]

shown = [int((y_test == digit).nonzero()[0]) for digit in range(10)]
strips = [("held-out digits", x_test)]
print(f"{'rows':10}{'of encoder':>11}{'accuracy':>10}{'error of pixels':>17}")
for kind, pair in {"absolute": encoders, "relative": relative}.items():
    rows = pair[0](x)  # the classifier and the decoder learn from encoder A alone
    classifier = fitted(nn.Linear(rows.shape[1], 10), entropy, rows, y, steps)
    decoder = fitted(mlp(rows.shape[1]), squares, rows, x, steps)
    for name, encoder in zip("AB", pair, strict=True):
        rows = encoder(x_test)
        accuracy = (classifier(rows).argmax(1) == y_test).double().mean()
        print(f"{kind:10}{name:>11}{accuracy:>10.1%}{squares(decoder(rows), x_test):>17.3f}")
        strips.append((f"decoded from {kind} rows of encoder {name}; {accuracy:.0%} classified right", decoder(rows)))

figure = Figure(figsize=(9, 6))
for axis, (title, pictures) in zip(figure.subplots(len(strips)), strips, strict=True):
    axis.imshow(pictures[shown].view(10, 8, 8).transpose(0, 1).reshape(8, 80), cmap="gray_r", vmin=0, vmax=1)
    axis.set_title(title, fontsize=9)
    axis.axis("off")
save(figure, options.out / "stitching.png")
