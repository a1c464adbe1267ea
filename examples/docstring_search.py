"""Ask in plain English and get the functions: a search over the docstrings of the installed packages.

    python examples/docstring_search.py ["a question" ...] [--quick]

A sentence model (requirements/embeddings.txt) makes a row of every docstring and of the question; the best answers are
the rows with the largest dot products. The first run embeds all docstrings, which takes minutes, and keeps them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import arguments, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import vecbank

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of bench/

from bench import embeddings  # noqa: E402

QUESTIONS = [
    "On which weekday is a given date?",
    "What is the shortest path between two nodes of a graph?",
    "How do I take the derivative of a formula?",
    "Pick random elements without repeats",
    "Train a tree that predicts a class",
    "Smooth a noisy signal",
    "How do I split text at a separator?",
    "Compress data before sending it",
]
BEST, COLUMNS = 5, 3


def texts(quick: bool) -> tuple[list[str], list[str], Tensor]:
    """Names, first lines and embeddings of all docstrings, or of a few that are embedded at once."""
    if not quick:
        found = embeddings.docstrings()
        return found.names, found.lines, found.embeddings
    modules = ("builtins", "math", "numpy", "torch")
    entries = embeddings.distinct(pair for module in modules for pair in embeddings.built_in(module))[::8]
    names, lines, few = (list(part) for part in zip(*entries, strict=True))
    return names, lines, embeddings.encode(few, progress=True)


def microseconds(search: Callable[[Tensor], object], x: Tensor) -> float:
    """Per row of x: the fastest of some calls."""
    seconds = []
    for _ in range(max(8, 100 // len(x))):
        start = time.perf_counter()
        search(x)
        seconds.append(time.perf_counter() - start)
    return 1e6 * min(seconds) / len(x)


def draw_times(axis: Axes, bank: vecbank.Bank, rows: Tensor) -> None:
    """Alone and among many, beside the same search in torch. Docstrings ask here: how many they are is what matters."""
    searches = {"vecbank": lambda x: bank.topk(x, BEST), "torch": lambda x: (x @ rows.T).topk(BEST)}
    for shift, (name, search) in zip((-0.2, 0.2), searches.items(), strict=True):
        times = [microseconds(search, rows[torch.arange(count) % len(rows)]) for count in (1, 1000)]
        print(f"{name:8}{times[0]:8.1f} us for one question, {times[1]:6.1f} us for each of 1000")
        axis.bar_label(axis.bar([shift, 1 + shift], times, 0.38, label=name), fmt="%.0f", fontsize=8)
    axis.set_xticks((0, 1), ("one question", "1000 at once"))
    axis.set_title(f"µs per question, {len(rows):,} docstrings", fontsize=9)
    axis.set_yscale("log")
    axis.margins(y=0.25)
    axis.legend(fontsize=8)


def main() -> None:
    options = arguments(__doc__.splitlines()[0], questions="what to ask for (default: a fixed list)")
    questions = options.questions or QUESTIONS
    names, lines, rows = texts(options.quick)
    bank = vecbank.Bank(rows, "dot").prepare("search")
    public = torch.tensor([not name.rsplit(".", 1)[-1].startswith("_") for name in names])
    found = bank.topk(embeddings.encode(questions), BEST, allowed=public)

    height = -(-(len(questions) + 1) // COLUMNS)
    figure = Figure(figsize=(13, 0.6 + 2.2 * height))
    axes = list(figure.subplots(height, COLUMNS, squeeze=False).flat)
    answers = zip(questions, axes, found.values.tolist(), found.indices.tolist(), strict=False)  # there are more axes
    for question, axis, scores, best in answers:
        print(f"\n{question}")
        axis.barh(range(BEST), scores, color="#a9cfdd")
        for place, (score, row) in enumerate(zip(scores, best, strict=True)):
            print(f"  {score:.3f}  {names[row]}\n         {lines[row]}")
            parts = names[row].split(".")  # the package and the end of the name say enough in a picture
            label = ".".join(parts) if len(parts) < 4 else f"{parts[0]} … {parts[-2]}.{parts[-1]}"
            axis.text(0.01, place, label, va="center", fontsize=8)
            axis.text(0.99, place, f"{score:.2f}", va="center", ha="right", fontsize=8)
        axis.set(xlim=(0, 1), ylim=(BEST - 0.5, -0.5), yticks=[])
        axis.tick_params(labelsize=7)
        axis.set_title(question, fontsize=9)
    print()
    draw_times(axes[len(questions)], bank, rows)
    for axis in axes[len(questions) + 1 :]:
        axis.axis("off")
    save(figure, options.out / "docstring_search.png")


if __name__ == "__main__":
    main()
