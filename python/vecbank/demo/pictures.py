"""The demo's pictures. Drawn without pyplot, so that nothing global (backend, style, figures) changes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .codebook import Codebook
from .search import Search
from .stitching import PICTURE_ANCHORS, Stitching

# Okabe and Ito's colours: told apart by colour-blind readers, and by their greys in print.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
DPI = 110


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    """PNG with a palette of 256 colours: a third of the size, and no difference to see."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", bbox_inches="tight", pad_inches=0.08)
    image = Image.open(drawn).convert("RGB")
    image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)


def _digit(axes: Any, pixels: Tensor, edge: str | None = None) -> None:
    axes.imshow(pixels.numpy(), cmap="gray_r", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=edge or "#cccccc", linewidth=3 if edge else 0.8)


def stitching_bars(result: Stitching, path: Path) -> Path:
    """Own and stitched accuracy by number of anchors, absolute latents beside them."""
    figure = _figure(8, 4)
    axes = figure.subplots()
    names = [f"absolute\n({result.latent} latents)", *(str(n) for n in result.relative)]
    scores = [result.absolute, *result.relative.values()]
    # The absolute pair stands a little apart: it is the reference, not a number of anchors.
    places = np.arange(len(scores)) + np.where(np.arange(len(scores)) > 0, 0.35, 0.0)
    for shift, colour, label, values in (
        (-0.2, BLUE, "own: head and latents of one network", [s.own_mean for s in scores]),
        (0.2, ORANGE, "stitched: head of the other network", [s.stitched_mean for s in scores]),
    ):
        bars = axes.bar(places + shift, values, 0.38, color=colour, label=label)
        axes.bar_label(bars, labels=[f"{100 * v:.0f}" for v in values], fontsize=9, padding=2)
    axes.axhline(result.chance, color="black", linestyle="--", linewidth=1.2, label="chance")
    axes.set_xlim(places[0] - 0.55, places[-1] + 0.55)
    axes.set_ylim(0, 1.08)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{v:.0f}" for v in np.linspace(0, 100, 6)])
    axes.set_xticks(places, names)
    axes.set_xlabel("anchors (relative representation, cosine)")
    axes.set_ylabel("held-out accuracy (%)")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    _plain(axes)
    return _save(figure, path)


def stitching_digits(result: Stitching, path: Path) -> Path:
    """What network A's decoder draws from network B's latents."""
    figure = _figure(8, 2.9)
    grid = figure.subplots(3, len(result.originals))
    rows = (
        ("what network\nB was shown", result.originals),
        ("B's latents,\nA's decoder", result.decoded_absolute.stitched),
        (f"the same by\n{PICTURE_ANCHORS} anchors", result.decoded_relative.stitched),
    )
    for line, (name, pictures) in zip(grid, rows, strict=True):
        for axes, pixels in zip(line, pictures, strict=True):
            _digit(axes, pixels)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10, labelpad=6)
    return _save(figure, path)


def search_grid(result: Search, path: Path) -> Path:
    """Queries and their nearest neighbours; the frame says whether the labels agree."""
    columns = 8
    figure = _figure(8, 7.6)
    grid = figure.subplots(len(result.examples), 1 + columns, width_ratios=[1.25] + [1] * columns)
    for line, example in zip(grid, result.examples, strict=True):
        _digit(line[0], example.query, BLUE)
        line[0].set_ylabel(f"a {example.label}", rotation=0, ha="right", va="center", fontsize=11, labelpad=6)
        for axes, pixels, label in zip(line[1:], example.neighbours, example.labels, strict=False):
            right = label == example.label
            _digit(axes, pixels, GREEN if right else RED)
            if not right:  # said in words too, not by colour alone
                axes.set_xlabel(f"a {label}", fontsize=9, color=RED, labelpad=2)
    grid[0][0].set_title("query", fontsize=11)
    for place, axes in enumerate(grid[0][1:], 1):
        axes.set_title(f"{place}", fontsize=11)
    title = f"Nearest of the other {result.count - 1:,} digits (green: same label, red: another)"
    figure.suptitle(title, fontsize=12)
    return _save(figure, path)


def codebook_curve(result: Codebook, path: Path) -> Path:
    """Rate and distortion of every codebook size."""
    figure = _figure(6.5, 4)
    axes = figure.subplots()
    levels = [c.psnr for c in result.coded]
    for rates, colour, marker, label in (
        ([c.bits for c in result.coded], BLUE, "o", "code numbers only"),
        (
            [c.bits_with_codebook for c in result.coded],
            ORANGE,
            "s",
            "code numbers and the codebook (1 byte per entry)",
        ),
    ):
        axes.plot(rates, levels, marker=marker, color=colour, label=label)
    for coded in result.coded:
        axes.annotate(
            f"{coded.size} codes",
            (coded.bits, coded.psnr),
            (-6, 5),
            textcoords="offset points",
            fontsize=9,
            ha="right",
        )
    axes.set_xscale("log", base=2)
    ticks = [0.125, 0.25, 0.5, 1, 2]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.08, max(c.bits_with_codebook for c in result.coded) * 1.25)
    axes.margins(y=0.1)
    axes.set_xlabel("rate (bits per pixel)")
    axes.set_ylabel("PSNR (dB)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=10)
    _plain(axes)
    return _save(figure, path)


def codebook_pictures(result: Codebook, path: Path) -> Path:
    """The original and the rebuilt photograph side by side: a part of it, so that the patches show."""
    # About two screen pixels for one of the photograph: enlarged, and still a small file.
    top, left, height, width = 150, 60, 200, 170
    part = np.s_[top : top + height, left : left + width]
    shown = [("original\n24 bits per pixel", result.original)]
    for coded in (result.coded[len(result.coded) // 2], result.coded[-1]):
        shown.append((f"{coded.size} codes, PSNR {coded.psnr:.1f} dB\n{coded.bits:.3g} bits per pixel", coded.picture))
    figure = _figure(9, 4.1)
    for axes, (name, picture) in zip(figure.subplots(1, len(shown)), shown, strict=True):
        axes.imshow(picture.numpy()[part], interpolation="nearest")
        axes.set_title(name, fontsize=10)
        axes.set_axis_off()
    return _save(figure, path)
