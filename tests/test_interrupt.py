"""Ctrl-C in a long call on the CPU: `KeyboardInterrupt` soon, nothing half done, and nobody else disturbed.

The calls run in one process of their own (`interrupt_calls.py`), one after the other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupt_calls import CALLS, SCENES

import vecbank
from vecbank import _ops

Facts = dict[str, Any]
LOOPS = ("kmeans", "pq_train", "gradients of project by l1")  # of calls that are shorter


@pytest.fixture(scope="module")
def came_of_it() -> dict[str, Facts]:
    """What came of every call and scene."""
    command = [sys.executable, str(Path(__file__).with_name("interrupt_calls.py")), *CALLS, *SCENES]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return {facts["name"]: facts for facts in map(json.loads, result.stdout.splitlines())}


@pytest.mark.parametrize("name", CALLS)
def test_a_long_call_is_interrupted(came_of_it: dict[str, Facts], name: str) -> None:
    facts = came_of_it[name]
    print(f"{name}: {facts['latency'] * 1e3:.0f} ms after the signal")
    assert facts["raised"] == "KeyboardInterrupt()"
    assert not facts["again"]  # one signal, one exception
    assert facts["latency"] < 5  # far less than the call takes; on an idle machine it is some milliseconds
    assert facts["restored"]


@pytest.mark.parametrize("name", [name for name in CALLS if name not in LOOPS])
def test_the_handler_is_there_during_the_call_alone(came_of_it: dict[str, Facts], name: str) -> None:
    assert came_of_it[name]["listened"]
    assert came_of_it[name]["restored"]


def test_a_handler_of_ones_own_is_respected(came_of_it: dict[str, Facts]) -> None:
    facts = came_of_it["own_handler"]
    assert facts["raised"] == facts["ignored"] == ""
    assert not facts["listened"]
    assert facts["seen"] == [2]
    assert facts["right"] == [True, True]


def test_calls_of_other_threads_go_on(came_of_it: dict[str, Facts]) -> None:
    facts = came_of_it["other_thread"]
    assert facts["main"] == ["KeyboardInterrupt()"] * 2
    assert facts["right"] == [True, True]


def test_again_and_again(came_of_it: dict[str, Facts]) -> None:
    facts = came_of_it["many_times"]
    assert facts["raised"] == ["KeyboardInterrupt()"] * 4
    assert facts["again"] == [False] * 4
    assert facts["right"]


def test_a_bank_stays_right(came_of_it: dict[str, Facts]) -> None:
    facts = came_of_it["bank_stays_right"]
    assert facts["raised"] == ["KeyboardInterrupt()"] * 6
    assert all(facts["right"])


def test_every_op_can_be_interrupted() -> None:
    """The package calls no op past `_ops.ops`, but for those that others call for it."""
    schemas = torch._C._jit_get_all_schemas()
    names = {s.name.removeprefix("vecbank::") for s in schemas if s.name.startswith("vecbank::")}
    assert set(vars(_ops.ops)) == names


def test_call_is_the_op() -> None:
    """Results, and errors that are none of Ctrl-C's, come through unchanged."""
    x, bank = torch.randn(3, 4), torch.randn(5, 4)
    got = vecbank._C.call(torch.ops.vecbank.nearest.default, x, bank, None, 2, True)
    assert torch.equal(got[1], torch.cdist(x, bank).argmin(1))
    with pytest.raises(RuntimeError, match="metric must be"):
        vecbank._C.call(torch.ops.vecbank.nearest.default, x, bank, None, 9, True)
    with pytest.raises(TypeError, match="needs an op"):
        vecbank._C.call()
