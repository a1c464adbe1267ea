"""The plots of a bench run: time by case and candidate, extra memory by case and candidate."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

OURS = "vecbank"
OURS_COLOUR, PEER_COLOUR, TARGET_COLOUR = "#1f6f8b", "#b9c2c9", "#c0392b"
COLUMNS = 3
LONG_WORDS = 22  # characters before the sizes of a case
LONG_LINE = 52  # characters of a title that fit above a panel
HEADING = 0.7  # inches
Row = dict[str, Any]


def _bars(axes: Axes, names: list[str], values: list[float], labels: list[str], edge: float) -> None:
    """Horizontal bars, ours on top; a bar beyond `edge` is cut there, which an arrow shows."""
    places = range(len(names) - 1, -1, -1)
    colours = [OURS_COLOUR if name.split(" ")[0] == OURS else PEER_COLOUR for name in names]  # on every path
    lengths = [min(max(value, 0.0), edge) for value in values]
    axes.barh(places, lengths, color=colours, height=0.72)
    for place, value, length, label in zip(places, values, lengths, labels, strict=True):
        text = f"{label} →" if value > edge else label
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        axes.text(length + 0.02 * edge, place, text, va="center", fontsize=8, zorder=4, bbox=box)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_xlim(0, 1.2 * edge)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _grid(counts: list[int]) -> tuple[Any, list[Axes]]:
    """One panel per case, COLUMNS in a row; `counts` are the bars of each: all bars are equally thick."""
    tallest = [max(counts[i : i + COLUMNS]) for i in range(0, len(counts), COLUMNS)]
    figure, grid = plt.subplots(
        len(tallest),
        COLUMNS,
        figsize=(13, HEADING + sum(1.05 + 0.22 * t for t in tallest)),
        squeeze=False,
        height_ratios=tallest,
        dpi=80,
    )
    flat = list(grid.flat)
    for place, axes in enumerate(flat):
        if place >= len(counts):
            axes.set_visible(False)
            continue
        axes.set_ylim(counts[place] - 0.4 - tallest[place // COLUMNS], counts[place] - 0.4)
    return figure, flat[: len(counts)]


def _title(name: str) -> str:
    """A case name in at most two lines, three on a GPU: broken before words that follow its sizes, and before sizes
    that many words precede."""
    first = re.search(r"\d", name)
    start = first.start() if first else len(name)
    words, sizes = name[:start], re.sub(r", (?=[^\W\d_]{2})", ",\n", name[start:])
    lines = ((words.rstrip() + "\n" if len(words) > LONG_WORDS else words) + sizes).split("\n")
    return "\n".join(part for line in lines for part in textwrap.wrap(whole_sizes(line), LONG_LINE))


def whole_sizes(name: str) -> str:
    """The name with spaces that do not break within "d 384" and "10 iterations"."""
    return re.sub(r"\b([dk]) (?=\d)|(?<=\d) (?=iterations)", lambda space: space[0].replace(" ", "\u00a0"), name)


def _limit(row: Row) -> float | None:
    """The strictest target of all, where there are several."""
    limit: float | None = row["target"].get("line", row["target"]["limit"])
    return limit


def speed(rows: list[Row], path: Path, caption: str) -> None:
    timed = [{n: e for n, e in row["candidates"].items() if e["status"] == "ok"} for row in rows]
    figure, panels = _grid([len(t) for t in timed])
    for axes, row, entries in zip(panels, rows, timed, strict=True):
        ratios = [entry["ratio"] for entry in entries.values()]
        limit = _limit(row)
        scale = entries[OURS]["ratio"] if limit is None else limit
        edge = max(1.05 * scale, entries[OURS]["ratio"], min(max(ratios), 5 * scale))
        unit = {"read": "one read of the bank", "product": "one cuBLAS product"}.get(row["baseline"]["kind"], "sgemm")
        _bars(axes, list(entries), ratios, [f"{r:.2f}" for r in ratios], edge)
        axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
        if limit is not None:
            axes.axvline(limit, color=TARGET_COLOUR, linewidth=1.2)
        axes.set_title(_title(row["name"]), fontsize=9)
        axes.set_xlabel(f"time, x {unit}", fontsize=8)
    figure.suptitle("Time against the baseline of the same run, shorter is better\n" + caption, fontsize=11)
    aimed = any(_limit(row) is not None for row in rows)
    _legend(figure, ("red: target of vecbank · " if aimed else "") + "dotted: the baseline itself · → bar cut")
    _save(figure, path)


def memory(rows: list[Row], path: Path, caption: str) -> None:
    found = [{n: e["extra_mib"] for n, e in row["candidates"].items() if "extra_mib" in e} for row in rows]
    figure, panels = _grid([len(f) for f in found])
    for axes, row, extra in zip(panels, rows, found, strict=True):
        values = list(extra.values())
        limit = row["target"]["limit"]
        _bars(axes, list(extra), values, [f"{max(v, 0.0):.0f}" for v in values], max([limit, *values]))
        axes.axvline(limit, color=TARGET_COLOUR, linewidth=1.2)
        axes.set_title(_title(row["name"]), fontsize=9)
        axes.set_xlabel("extra memory, MiB", fontsize=8)
    figure.suptitle("Peak memory of one call beyond inputs, outputs and the Bank\n" + caption, fontsize=11)
    _legend(figure, "red: target of vecbank")
    _save(figure, path)


def _legend(figure: Any, text: str) -> None:
    figure.text(0.995, 0.004, text, fontsize=8, ha="right", va="bottom", color="#555555")


def _save(figure: Any, path: Path) -> None:
    """A PNG of few colours: bars and text need no more, and the file stays small."""
    height = figure.get_figheight()  # between the heading and the legend, whatever the titles of the first row
    figure.tight_layout(rect=(0, 0.2 / height, 1, 1 - 0.12 / height), h_pad=1.4, w_pad=2.0)
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    image.quantize(32).save(path, optimize=True)
    plt.close(figure)


def draw(report: Row, path: Path) -> list[Path]:
    """Draws what the run holds beside `path` and returns the files."""
    soft, machine = report["software"], report["machine"]
    model = "family {} model {}".format(*machine["cpu_family_model"])
    caption = f"{machine['cpu']} ({model}), {soft['threads']} threads, {soft['isa']}, torch {soft['torch']}"
    if gpu := report.get("gpu"):
        caption = f"{gpu['name']}, torch {soft['torch']}, CUDA {gpu['torch_cuda']}"
    drawn = []
    for section, plot in (("speed", speed), ("codebooks", speed), ("cuda", speed), ("memory", memory)):
        rows = [row for row in report["rows"] if row["section"] == section]
        if rows:
            target = path.with_name(f"{path.stem}-{section}.png")
            plot(rows, target, caption)
            drawn.append(target)
    return drawn
