"""Every public function and class has an example in its docstring, and every example gives what it says."""

from __future__ import annotations

import doctest
import inspect
import re
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import vecbank
import vecbank.onnx

_NAMES = "anchors cluster codes embedding multivector nn onnx pq reference residual sparse"
FAMILIES = tuple(_NAMES.split())
METHODS = (vecbank.Bank, vecbank.pq.ProductCodec, vecbank.multivector.FixedEncoding)  # their methods have examples too
RESULTS = tuple(name for name in dir(vecbank.results) if name in vecbank.__all__)  # tuples that functions return


def _is_public(name: str, value: Any) -> bool:
    return not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value))


def _found() -> Iterator[tuple[str, Any]]:
    modules = [*((f"vecbank.{name}", getattr(vecbank, name)) for name in FAMILIES), ("vecbank", vecbank)]
    seen: set[int] = set()
    for prefix, module in modules:
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, types.ModuleType) or id(value) in seen or name in RESULTS:
                continue
            own = getattr(value, "__module__", "").startswith("vecbank")
            if own and _is_public(name, value):
                seen.add(id(value))
                yield f"{prefix}.{name}", value
    for owner in METHODS:
        for name in ("update_", "repack", *vars(owner)) if owner is vecbank.Bank else tuple(vars(owner)):
            value = inspect.getattr_static(owner, name)
            if inspect.isfunction(value) and not name.startswith("_") and name not in ("forward", "extra_repr"):
                yield f"{owner.__name__}.{name}", value


PUBLIC = dict(_found())
MODULES = [n for n, cls in vars(vecbank.nn).items() if inspect.isclass(cls) and issubclass(cls, torch.nn.Module)]


def test_the_public_names_are_found() -> None:
    assert len(PUBLIC) > 90 and len(MODULES) > 19
    assert {"vecbank.topk", "vecbank.Bank", "Bank.update_", "vecbank.sparse.encode"} <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name: str) -> None:
    text = inspect.getdoc(PUBLIC[name]) or ""
    assert "``" not in text and not re.search(r":\w+:`", text), "the docstrings have one dialect: single backticks"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    assert example.examples, "there is no example"
    said: list[str] = []
    runner.run(example, out=said.append)
    assert runner.failures == 0, "".join(said)


@pytest.mark.parametrize("name", MODULES)
def test_the_help_of_a_module_is_whole(name: str) -> None:
    """A class names its source, and points at nothing that stands outside of what `help` shows."""
    cls = getattr(vecbank.nn, name)
    text = inspect.getdoc(cls) or ""
    assert re.search(r"^Sources?: \S", text, re.M), "there is no source"
    for part in (text, inspect.getdoc(cls.forward) or ""):
        assert not re.search(r"\babove\b", part), "say what is meant by its name: what stood above may have moved"
