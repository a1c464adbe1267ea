"""One harness over every module: each check of `net_checks` and `net_torch` on options, layouts and dtypes.

`VECBANK_NET=full` runs every case; otherwise each check sees every module, and the cheap ones every option.
A failure prints one line for each case; `VECBANK_NET_CASE="CHECK: CASE"` runs that line alone.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import net_checks
import net_ranks
import net_torch
import pytest
import torch
from helpers import FULL
from net_core import DTYPES, Case, Entry, build, forget, legal, pairs, singles
from net_tables import PAIRS, TABLE, find

ONE = os.environ.get("VECBANK_NET_CASE", "")
ENTRIES = {entry.name: entry for entry in TABLE}


@dataclass(frozen=True)
class Check:
    """A function of a case, and how much of the table it sees when the net runs reduced."""

    run: Callable[[Case], None]
    options: bool  # every option alone, on one layout and one dtype drawn for it
    extra: int  # so many further cases drawn from all


CHECKS = {
    "decode": Check(net_checks.decode, True, 2),
    "integers": Check(net_checks.integers, False, 1),
    "missing codes": Check(net_checks.missing, False, 1),
    "bad rows": Check(net_checks.bad_rows, False, 3),
    "masked rows": Check(net_checks.masked_rows, False, 2),
    "small batches": Check(net_checks.small_batches, False, 2),
    "resume": Check(net_checks.resume, True, 1),
    "export": Check(net_torch.export, False, 0),
    "meta": Check(net_checks.meta, True, 1),
    "copies": Check(net_checks.copies, False, 2),
    "double backward": Check(net_torch.double_backward, False, 3),
    "forward mode": Check(net_torch.forward_mode, False, 3),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    forget()


def all_cases(entry: Entry) -> list[Case]:
    """Every option alone in float32 on every layout and in every dtype on one; random pairs on either, drawn."""
    rng, dtypes = random.Random(entry.name), [d for d in DTYPES if not (entry.ids and d == "autocast")]
    cases = []
    for options in singles(entry):
        cases += [Case(entry, options, layout) for layout in entry.layouts]
        cases += [Case(entry, options, rng.choice(entry.layouts), dtype) for dtype in dtypes[1:]]
    for options in pairs(entry, PAIRS, 0):
        case = Case(entry, options, rng.choice(entry.layouts), rng.choice(dtypes))
        cases += [case] if legal(case) else []
    return cases


def sample(entry: Entry, name: str) -> list[Case]:
    """The cases that a check sees of a module."""
    check, rng = CHECKS[name], random.Random(f"{entry.name} {name}")
    alone = singles(entry)[1:]
    if FULL:
        slow = name == "export"
        return all_cases(entry) if not slow else [Case(entry, o, rng.choice(entry.layouts)) for o in [{}, *alone]]
    layouts = entry.layouts if check.options else rng.sample(entry.layouts, min(2, len(entry.layouts)))
    cases = [Case(entry, {}, layout) for layout in layouts]
    if not check.options and not check.extra:
        return cases[:1]
    repeats = entry.name.startswith("Grouped") or (name == "resume" and entry.name.startswith("Residual"))
    if check.options and not repeats:  # cascades take the options of their stages
        cases += [Case(entry, options, rng.choice(entry.layouts)) for options in alone]
    return cases + rng.sample(all_cases(entry), check.extra)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("module", ENTRIES)
def test_net(module: str, name: str) -> None:
    if ONE:
        pytest.skip("VECBANK_NET_CASE names one case")
    failures = []
    for case in sample(ENTRIES[module], name):
        try:
            CHECKS[name].run(case)
        except Exception as e:
            failures.append(f"{name}: {case}\n    {type(e).__name__}: {' '.join(str(e).split())[:400]}")
    assert not failures, f"{len(failures)} cases\n" + "\n".join(failures)


@pytest.mark.skipif(not ONE, reason="VECBANK_NET_CASE names no case")
def test_one_case() -> None:
    name, text = ONE.split(": ", 1)
    case = find(text)
    if name != "ranks":
        CHECKS[name].run(case)


@pytest.mark.parametrize("module", ENTRIES)
def test_table_names_every_argument(module: str) -> None:
    entry = ENTRIES[module]
    assert entry.named() >= entry.arguments(), f"not in the table: {sorted(entry.arguments() - entry.named())}"
    for name, values in entry.options.items():
        assert all(name in value for value in values) and values, f"no value for {name}"


def test_table_names_every_module() -> None:
    import vecbank.nn as vn

    modules = {n for n in vn.__all__ if isinstance(c := getattr(vn, n), type) and issubclass(c, torch.nn.Module)}
    assert modules == set(ENTRIES) - {"Bank"}


@pytest.mark.parametrize("module", ENTRIES)
def test_options_are_legal_and_most_pairs(module: str) -> None:
    entry = ENTRIES[module]
    for options in singles(entry):
        build(Case(entry, options, entry.layouts[0]))
    tried = [Case(entry, options, entry.layouts[0]) for options in pairs(entry, PAIRS, 0)]
    refused = [case for case in tried if not legal(case)]
    assert 2 * len(refused) <= len(tried), f"{len(refused)} of {len(tried)} pairs refused"


NOT_SHARED = {"sync", "sync_codebook"}  # a module that is told to stay alone does


def test_ranks(tmp_path: Path) -> None:
    """Two processes fed different data end with the same state."""
    cases = []
    for entry in TABLE:
        rng, alone = random.Random(f"{entry.name} ranks"), singles(entry)[1:]
        few = alone if FULL or entry.name == "VectorQuantize" else rng.sample(alone, min(6, len(alone)))
        cases += [Case(entry, options, entry.layouts[0]) for options in [{}, *few]]
        if FULL:
            cases += [case for case in all_cases(entry) if case.dtype != "autocast"]
    names = list(dict.fromkeys(str(case) for case in cases if not case.options.keys() & NOT_SHARED))
    names = [name for name in names if not ONE or ONE == f"ranks: {name}"]
    problems = net_ranks.run(names, tmp_path, 1200 if FULL else 120) if names else {}
    assert not problems, "\n".join(f"ranks: {text}\n    {problem}" for text, problem in problems.items())
