"""Late interaction: docstrings as sets of token vectors, searched by maxsim, beside one vector for each.

    python examples/late_interaction.py ["a question" ...] [--quick]

A question is the first line of a docstring, and what is looked for is the rest of it. One vector is the mean of a
text's tokens, which the sentence model was trained for; by maxsim every token of the question looks for its own best
token, which it was not trained for. A token weighs more the fewer docstrings it is in (IDF): its row is scaled.
Encodings of fixed size (MUVERA) find the candidates of maxsim without a look at every token. The model is that of
docstring_search.py, and embeds the docstrings at every run, which takes minutes.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from pathlib import Path

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

QUESTIONS = ["How do I split text at a separator?", "Pick random elements without repeats"]
BEST, FEW, MOST, ASKED = 3, 30, 100, 300
QUICK = ("builtins", "math", "itertools", "torch.linalg")


def weighted(tokens: embeddings.Tokens, among: embeddings.Tokens) -> TokenSets:
    """The tokens as questions, each scaled by its IDF."""
    seen = Counter(word for words in among.words for word in set(words))
    idf = torch.tensor([math.log((1 + len(among.words)) / (1 + seen[w])) for words in tokens.words for w in words])
    sets = TokenSets.of(tokens.rows)
    return TokenSets(sets.rows * idf.unsqueeze(1), sets.offsets)


def texts(quick: bool) -> tuple[list[str], list[str], list[str]]:
    """Names, first lines, and what follows these in docstrings of functions that are written in C."""
    modules = QUICK if quick else embeddings.BUILT_IN
    entries = embeddings.distinct(pair for module in modules for pair in embeddings.built_in(module))
    split = [(name, line, text.partition(line)[2].strip()) for name, line, text in entries if not name.count("_")]
    names, lines, rest = zip(*[found for found in split if len(found[2]) > 60], strict=True)
    return list(names), list(lines), list(rest)


def recall(indices: Tensor, wanted: Tensor) -> Tensor:
    """The share of wanted documents among the first 1, 2, ... that a search names."""
    return (indices == wanted[:, None]).cummax(1).values.double().mean(0)


def draw_match(axis: Axes, question: embeddings.Tokens, document: embeddings.Tokens, i: int, j: int) -> None:
    """Which token of the document each token of the question found; of the document, those and their neighbours."""
    scores = vecbank.project(question.rows[i], document.rows[j])
    best = scores.argmax(1)
    shown = torch.cat([best - 1, best, best + 1]).clamp(0, scores.shape[1] - 1).unique()
    axis.imshow(scores[:, shown], vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axis.plot(torch.searchsorted(shown, best), range(len(best)), "o", color="#c04b3a", ms=4)
    axis.set_xticks(range(len(shown)), [document.words[j][t] for t in shown], rotation=90, fontsize=7)
    axis.set_yticks(range(len(best)), question.words[i], fontsize=8)


def main() -> None:
    options = arguments(__doc__.splitlines()[0], questions="what to ask for (default: a fixed list)")
    names, lines, rest = texts(options.quick)
    asked = torch.randperm(len(names), generator=torch.Generator().manual_seed(options.seed))[:ASKED]
    documents = embeddings.encode_tokens(rest, progress=True)
    known = embeddings.encode_tokens([lines[i] for i in asked], progress=True)
    sets, queries = TokenSets.of(documents.rows), weighted(known, documents)
    print(f"{sets.count:,} docstrings of {len(sets.rows):,} tokens; {queries.count} questions of {len(queries.rows):,}")
    bank = vecbank.Bank(documents.sentences, "dot").prepare("search")
    encoding = FixedEncoding(embeddings.WIDTH, bits=5, projection=32, generator=options.seed)
    encoded = vecbank.Bank(encoding.documents(sets), "dot").prepare("search")
    searches = {
        "one vector": lambda: bank.topk(known.sentences, MOST),
        "maxsim": lambda: vecbank.maxsim_topk(queries, sets, MOST),
        f"maxsim of {FEW} candidates": lambda: encoded_topk(queries, sets, encoded, encoding, FEW, candidates=FEW),
    }
    left, right, *below = (figure := Figure(figsize=(12, 7))).subplots(2, 2).flat
    found = {}
    for name, search in searches.items():
        start = time.perf_counter()
        found[name] = search().indices
        took, shares = time.perf_counter() - start, recall(found[name], asked)
        left.semilogx(range(1, len(shares) + 1), shares, label=name)
        print(f"{name:26}{shares[0]:6.3f} first, {shares[9]:.3f} among ten; {1e3 * took / len(asked):6.2f} ms each")
    left.legend(fontsize=8)
    left.set(title="The rest of a docstring, by its first line", xlabel="answers", ylabel="share found")
    promised = encoded.topk(encoding.queries(queries), MOST).indices
    for name, those in (("encodings", promised), ("one vector", found["one vector"])):
        right.semilogx(range(1, MOST + 1), recall(those, found["maxsim"][:, 0]), label=name)
    right.set(title="The best by maxsim", xlabel="candidates", ylabel="share found")
    right.legend(fontsize=8)

    questions = options.questions or QUESTIONS
    mine = embeddings.encode_tokens(questions)
    best = vecbank.maxsim_topk(weighted(mine, documents), sets, BEST).indices.tolist()
    alone = bank.topk(mine.sentences, BEST).indices.tolist()
    for question, by_tokens, by_mean in zip(questions, best, alone, strict=True):
        print(f"\n{question}")
        for j, k in zip(by_tokens, by_mean, strict=True):
            print(f"  maxsim: {names[j]:42}one vector: {names[k]}")
    for i, axis in enumerate(below[: len(questions)]):
        draw_match(axis, mine, documents, i, best[i][0])
        axis.set_title(f"{names[best[i][0]]}: the token that each token finds", fontsize=9)
    save(figure, options.out / "late_interaction.png")


if __name__ == "__main__":
    main()
