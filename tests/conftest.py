"""Fixtures shared by all tests: every ISA and device there is, and settings put back afterwards."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import DISTINCT_TARGETS, ISAS, NO_CUDA, TARGETS, Target

import vecbank
from vecbank import _select

without_cuda = pytest.StashKey[int]()  # tests of the table that a GPU would have run once more


def pytest_report_header() -> list[str]:
    cuda = "" if NO_CUDA is None else f" ({NO_CUDA}: the table is not run on cuda)"
    return [f"vecbank {vecbank.__version__}, torch {torch.__version__}, ISAs {', '.join(ISAS)}{cuda}"]


@pytest.hookimpl(trylast=True)  # after -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`VECBANK_TEST_SHARD=i/n` keeps every n-th test, for n processes side by side."""
    first = TARGETS[0]
    params = [getattr(item, "callspec", None) for item in items]
    config.stash[without_cuda] = sum(p is not None and first in p.params.values() for p in params) if NO_CUDA else 0
    if shard := os.environ.get("VECBANK_TEST_SHARD"):
        index, count = (int(part) for part in shard.split("/"))
        items[:] = items[index::count]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """How much of CUDA was not tested, and why."""
    skipped = (report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", []))
    for reason, count in Counter(why for why in skipped if "CUDA" in why or "GPU" in why).items():
        terminalreporter.write_line(f"vecbank: {count} tests skipped: {reason}")
    if count := config.stash.get(without_cuda, 0):
        terminalreporter.write_line(f"vecbank: {count} tests of the table skipped on cuda: {NO_CUDA}")


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Puts back what a test may change for the whole process, and makes its random numbers its own."""
    isa, threads = vecbank._C.isa(), torch.get_num_threads()
    torch.manual_seed(0)
    yield
    vecbank._C.set_isa(isa)
    vecbank._C.force_ways()
    torch.set_num_threads(threads)


@pytest.fixture(params=["kernels", "blocks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """As the CPU goes, and as other devices do: in plain torch, a few queries or documents at a time."""
    if request.param == "kernels":
        yield request.param
        return
    monkeypatch.setattr("vecbank._select.BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr("vecbank._token_blocks.BLOCK_BYTES", 1 << 14)
    with _select.in_blocks():
        yield request.param


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, settings: None) -> str:
    """Each instruction set that this processor has."""
    vecbank._C.set_isa(request.param)
    return str(request.param)


@pytest.fixture(params=[0, 1], ids=["", "screened"])
def both_ways(request: pytest.FixtureRequest, settings: None) -> None:
    """Once as searches go by themselves, and once by screens alone: small searches score every pair otherwise."""
    vecbank._C.force_ways(search=request.param)


@pytest.fixture
def one_thread(settings: None) -> None:
    """For tensors so small that waking other threads costs more than they save; a test of threads sets its own."""
    torch.set_num_threads(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    own = {str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize")}
    for name in {"target", "device"} & set(metafunc.fixturenames) - own:
        every = metafunc.module.__name__ == "test_exact"
        metafunc.parametrize(name, TARGETS if every else DISTINCT_TARGETS, ids=str, indirect=True)


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Each place a kernel can run in turn: the CPU once per ISA, then each other device."""
    place: Target = request.param
    if place.isa is not None:
        vecbank._C.set_isa(place.isa)
        assert vecbank._C.isa() == place.isa
    yield place


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """The device of each target, its ISA in force."""
    place: Target = request.param
    if place.isa is not None:
        vecbank._C.set_isa(place.isa)
    return place.device
