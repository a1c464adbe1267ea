"""Fixtures shared by all tests: every ISA and device there is, and settings put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers import ISAS, TARGETS, Target

import vecbank


def pytest_report_header() -> list[str]:
    cuda = "" if torch.cuda.is_available() else " (no CUDA device: the table is not run on one)"
    return [f"vecbank {vecbank.__version__}, torch {torch.__version__}, ISAs {', '.join(ISAS)}{cuda}"]


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Puts back what a test may change for the whole process, and makes its random numbers its own."""
    isa, threads = vecbank._C.isa(), torch.get_num_threads()
    torch.manual_seed(0)
    yield
    vecbank._C.set_isa(isa)
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread(settings: None) -> None:
    """For tensors so small that waking other threads costs more than they save; a test of threads sets its own."""
    torch.set_num_threads(1)


@pytest.fixture(params=TARGETS, ids=str)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Each place a kernel can run in turn: the CPU once per ISA, then each other device."""
    place: Target = request.param
    if place.isa is not None:
        vecbank._C.set_isa(place.isa)
        assert vecbank._C.isa() == place.isa
    yield place


@pytest.fixture(params=TARGETS, ids=str)
def device(request: pytest.FixtureRequest) -> str:
    """The device of each target, its ISA in force."""
    place: Target = request.param
    if place.isa is not None:
        vecbank._C.set_isa(place.isa)
    return place.device
