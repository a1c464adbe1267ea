"""Late interaction: docstrings as sets of token vectors, searched by maxsim, beside one vector for each.

    python examples/late_interaction.py ["a question" ...] [--quick]

A question is the first line of a docstring, and what is looked for is the rest of it: the share that is found says how
good a search is. One vector is the mean of a text's tokens, as the sentence model was trained; by maxsim every token of
the question looks for its own best token. (That model was not trained for this; those that are gain more.) Encodings of
fixed size (MUVERA) find the candidates of maxsim without a look at every token. It runs as docstring_search.py does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from common import arguments, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import vecbank
from vecbank import TokenSets
from vecbank.multivector import FixedEncoding, encoded_topk

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of bench/

from bench import embeddings  # noqa: E402

QUESTIONS = [
    "How do I split text at a separator?",
    "Pick random elements without repeats",
    "Compress data before sending it",
]
BEST, MOST, ASKED = 3, 100, 500
QUICK = ("builtins", "math", "itertools", "torch.linalg")
T = TypeVar("T")


def texts(quick: bool) -> tuple[list[str], list[str], list[str]]:
    """Names, first lines, and what follows these in docstrings of functions that are written in C."""
    modules = QUICK if quick else embeddings.BUILT_IN
    entries = embeddings.distinct(pair for module in modules for pair in embeddings.built_in(module))
    split = [(name, line, text.partition(line)[2].strip()) for name, line, text in entries if not name.count("_")]
    names, lines, rest = zip(*[found for found in split if len(found[2]) > 60], strict=True)
    return list(names), list(lines), list(rest)


def timed(what: str, search: Callable[[], T], questions: int) -> T:
    start = time.perf_counter()
    found = search()
    print(f"{what:44}{1e3 * (time.perf_counter() - start) / questions:8.2f} ms for a question")
    return found


def recall(indices: Tensor, wanted: Tensor) -> Tensor:
    """The share of wanted documents among the first 1, 2, ... that a search names."""
    return (indices == wanted[:, None]).cummax(1).values.double().mean(0)


def draw_match(axis: Axes, question: embeddings.Tokens, document: embeddings.Tokens, i: int, j: int) -> None:
    """Which token of the document each token of the question found."""
    rows, columns = question.words[i], document.words[j][:24]
    scores = vecbank.project(question.rows[i], document.rows[j][:24])
    axis.imshow(scores, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axis.plot(scores.argmax(1), range(len(rows)), "o", color="#c04b3a", ms=4)
    axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)


def main() -> None:
    options = arguments(__doc__.splitlines()[0], questions="what to ask for (default: a fixed list)")
    names, lines, rest = texts(options.quick)
    asked = torch.randperm(len(names), generator=torch.Generator().manual_seed(options.seed))[:ASKED]
    documents = embeddings.encode_tokens(rest, progress=True)
    known = embeddings.encode_tokens([lines[i] for i in asked], progress=True)
    sets, queries = TokenSets.of(documents.rows), TokenSets.of(known.rows)
    most, n = min(MOST, len(names)), len(asked)
    print(f"{len(names):,} docstrings, {len(sets.rows):,} tokens; {n} questions, {len(queries.rows):,} tokens")

    bank = vecbank.Bank(documents.sentences, "dot").prepare("search")
    one = timed("one vector", lambda: bank.topk(known.sentences, most).indices, n)
    late = timed("maxsim", lambda: vecbank.maxsim_topk(queries, sets, most).indices, n)
    encoding = FixedEncoding(embeddings.WIDTH, bits=5, repetitions=20, projection=32, generator=options.seed)
    encoded = vecbank.Bank(
        timed(f"encoding, to {encoding.size:,} numbers", lambda: encoding.documents(sets), len(sets))
    )
    few = timed(
        f"maxsim of {most} candidates",
        lambda: encoded_topk(queries, sets, encoded, encoding, most, candidates=most).indices,
        n,
    )
    promised = encoded.topk(encoding.queries(queries), most, metric="dot").indices

    figure = Figure(figsize=(12, 7))
    axes = list(figure.subplots(2, 2).flat)
    places = range(1, most + 1)
    for name, found in (("one vector", one), ("maxsim", late), (f"maxsim of {most} candidates", few)):
        shares = recall(found, asked)
        print(f"{name:44}{shares[0]:8.3f} first, {shares[min(9, most - 1)]:.3f} among ten")
        axes[0].semilogx(places, shares, label=name)
    axes[0].set(title="The rest of a docstring, by its first line", xlabel="answers", ylabel="share found")
    for name, found in (("encodings", promised), ("one vector", one)):
        axes[1].semilogx(places, recall(found, late[:, 0]), label=name)
    axes[1].set(title="The best by maxsim", xlabel="candidates", ylabel="share found")
    for axis in axes[:2]:
        axis.legend(fontsize=8)

    questions = options.questions or QUESTIONS
    mine = embeddings.encode_tokens(questions)
    best = vecbank.maxsim_topk(TokenSets.of(mine.rows), sets, BEST).indices.tolist()
    alone = bank.topk(mine.sentences, BEST).indices.tolist()
    for question, by_tokens, by_mean in zip(questions, best, alone, strict=True):
        print(f"\n{question}")
        for j, k in zip(by_tokens, by_mean, strict=True):
            print(f"  maxsim: {names[j]:32}one vector: {names[k]}")
    for i, axis in enumerate(axes[2:]):
        if i < len(questions):
            draw_match(axis, mine, documents, i, best[i][0])
            axis.set_title(f"{names[best[i][0]]}: the token that each token finds", fontsize=9)
    save(figure, options.out / "late_interaction.png")


if __name__ == "__main__":
    main()
