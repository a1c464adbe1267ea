"""Published systems whose core is one of this library's verbs, each in one file, each with its acceptance check.

`python -m vecbank gallery` runs them all, or those that are named, and writes a page with the figures reached beside
those of a reference. The data are scikit-learn's bundled sets and synthetic arrays; the reference figures were measured
with plain NumPy and scikit-learn, once: orientation, not a tolerance.

Only the standard library is imported here, so that a missing package is named instead of a traceback shown.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import pkgutil
import re
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from .._needed import missing
from ._sheet import Result, Sheet, System

# module -> what pip calls it
_NEEDED = {"numpy": "numpy", "sklearn": "scikit-learn", "matplotlib": "matplotlib", "tqdm": "tqdm"}


def names() -> list[str]:
    """The files of the systems, without their ending."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def systems() -> list[System]:
    """All of them, by family, then by title."""
    return sorted(map(load, names()), key=lambda system: (system.family.casefold(), system.title.casefold()))


def load(name: str) -> System:
    try:
        module = import_module(f"{__name__}.{name}")
        return System(name, module.TITLE, module.FAMILY, inspect.cleandoc(module.__doc__ or ""), module.run)
    except Exception as problem:  # one file that cannot be imported must not hide the others
        return System(name, name, "does not load", "", None, _in_words(problem))


def choose(systems: Sequence[System], wanted: Sequence[str]) -> list[System]:
    """Those whose file is named, with - or _, or whose title has the text in it; LookupError names the closest."""
    chosen: set[str] = set()
    for text in wanted:
        part = _plain(text)
        found = {s.name for s in systems if s.name == part}
        found = found or {s.name for s in systems if part and (part in s.name or part in _plain(s.title))}
        if not found:
            raise LookupError(f"no system is named {text!r}; {_closest(systems, part)}")
        chosen |= found
    return [system for system in systems if system.name in chosen]


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.casefold()).strip("_")


def _closest(systems: Sequence[System], part: str) -> str:
    known: dict[str, str] = {}
    for system in systems:
        title = _plain(system.title)
        for text in (*title.split("_"), *system.name.split("_"), title, system.name):
            known.setdefault(text, system.name)
    close = dict.fromkeys(known[text] for text in difflib.get_close_matches(part, known, n=5, cutoff=0.6))
    return f"close: {', '.join(close)}" if close else "--list shows those there are"


def run(system: System, seed: int = 0) -> Result:
    """The system's figures and pictures. What it raises is kept as `problem`, beside what it had shown by then."""
    import matplotlib
    import torch

    from ._page import STYLE, draw

    result, start = Result(system, Sheet(seed), problem=system.problem), time.perf_counter()
    threads = torch.get_num_threads()
    if system.run is not None:
        torch.set_num_threads(1)  # the data are so small that other threads cost more than they save
        # The caller's random numbers stay as they are, and no system's figures depend on what ran before it.
        with torch.random.fork_rng(devices=[]), matplotlib.rc_context(STYLE):
            torch.manual_seed(seed)
            try:
                system.run(result.sheet)
                result.drawn = [draw(caption, plot) for caption, plot in result.sheet.pictures]
            except Exception as problem:
                result.problem = _in_words(problem)
            finally:
                torch.set_num_threads(threads)
    result.seconds = time.perf_counter() - start
    return result


def _in_words(problem: Exception) -> str:
    """The error, and the last line of a system that led to it."""
    here = Path(__file__)
    files = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(problem.__traceback__)]
    places = [f" ({file.name}, line {line})" for file, line in files if file.parent == here.parent and file != here]
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}{''.join(places[-1:])}"


def text(result: Result) -> str:
    """The figures as a small table."""
    rows = [("figure", "reached", "reference", "holds")]
    rows += [(c.what, c.reached, c.reference, "yes" if c.holds else "no") for c in result.sheet.checks]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    whys = {i: f"      {c.why}" for i, c in enumerate(result.sheet.checks, 1) if c.why and not c.holds}
    lines = [line for i, row in enumerate(table) for line in (row, whys.get(i, "")) if line]
    lines = lines if result.sheet.checks else []
    lines += [f"  {note}" for note in result.sheet.notes]
    lines += [f"  failed: {result.problem}"] if result.problem else []
    return "\n".join([f"{result.system.title} ({result.system.family})", *lines, ""])


def figures(results: Sequence[Result], seed: int) -> dict[str, object]:
    """The page's figures for other programs."""
    from .._version import __version__

    shown = [
        {
            "name": r.system.name,
            "title": r.system.title,
            "family": r.system.family,
            "seconds": round(r.seconds, 3),
            "problem": r.problem,
            "checks": [asdict(check) for check in r.sheet.checks],
            "notes": r.sheet.notes,
            "pictures": [picture.caption for picture in r.drawn],
        }
        for r in results
    ]
    return {"vecbank": __version__, "seed": seed, "systems": shown}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs systems and writes the page; returns 0, or 1 when one raises, a package is missing, a name is unknown or the
    folder cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m vecbank gallery", description="Published systems whose core is one verb, with their checks."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="file name of a system, or a part of its title")
    parser.add_argument("--out", type=Path, default=Path("gallery_report"), metavar="DIR", help="folder for the page")
    parser.add_argument("--seed", type=int, default=0, help="of the data, the networks and k-means")
    parser.add_argument("--list", action="store_true", help="the systems there are, and nothing else")
    options = parser.parse_args(argv)
    if absent := missing(_NEEDED):
        print(f"vecbank gallery: missing {', '.join(absent)}: pip install {' '.join(absent)}", file=sys.stderr)
        return 1
    if options.seed < 0:
        print(f"vecbank gallery: --seed: expected 0 or more, got {options.seed}", file=sys.stderr)
        return 1
    try:
        known = systems()
        chosen = choose(known, options.names) if options.names else known
        if options.list:
            width = max(len(system.name) for system in chosen)
            print("\n".join(f"{s.name:<{width}}  {s.title} ({s.family})" for s in chosen))
            return 0
        return _run(chosen, options.out, options.seed)
    except (LookupError, OSError) as problem:
        print(f"vecbank gallery: {problem.args[0] if isinstance(problem, LookupError) else problem}", file=sys.stderr)
        return 1


def _run(chosen: Sequence[System], folder: Path, seed: int) -> int:
    from tqdm import tqdm

    from ._page import page, summary

    folder.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    patience, start = 1, time.perf_counter()
    with tqdm(total=len(chosen), desc="gallery", unit="system", delay=patience, leave=False) as bar:
        for system in chosen:
            bar.set_postfix_str(system.name, refresh=False)
            results.append(run(system, seed))
            # write() draws the bar again below the text, even where it has not been drawn yet.
            (bar.write if time.perf_counter() - start > patience else print)(text(results[-1]))
            bar.update()
    numbers = json.dumps(figures(results, seed), indent=2, ensure_ascii=False)
    (folder / "gallery.json").write_text(numbers + "\n", encoding="utf-8")
    written = folder / "index.html"
    written.write_text(page(results, seed), encoding="utf-8")
    print(f"page: {written} (its figures: {folder / 'gallery.json'})\n{summary(results)}")
    return int(any(result.problem for result in results))
