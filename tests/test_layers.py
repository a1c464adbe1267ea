"""Layers of csrc, of the package and of the bench: dependencies point down only, none is a circle, no file is long."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
SOURCES = {".h", ".cpp", ".cu", ".cuh"}
ALLOWED = {  # a layer, and the layers that its files may include
    "core": {"core"},
    "cpu": {"cpu", "core"},
    "cuda": {"cuda", "core"},
    "torch": {"torch", "cpu", "cuda", "core"},
}
LONGEST = 500

if not CSRC.is_dir():
    pytest.skip("the sources are not here", allow_module_level=True)


def files() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in SOURCES)


def layer(path: Path) -> str:
    return path.relative_to(CSRC).parts[0]


def includes(path: Path) -> list[str]:
    return re.findall(r'^#include ["<]([^">]+)[">]', path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def own_includes(path: Path) -> list[Path]:
    found = [(path.parent / name).resolve() for name in includes(path)]
    return [target for target in found if target.is_file()]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(CSRC)))
def test_a_file_includes_its_own_layer_and_those_below(path: Path) -> None:
    for target in own_includes(path):
        assert layer(target) in ALLOWED[layer(path)], f"{path} includes {target}"
    if layer(path) != "torch":
        outside = [name for name in includes(path) if name.startswith(("torch/", "ATen/", "pybind11/", "Python"))]
        assert not outside, "only csrc/torch knows torch and Python"
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST, f"{lines} lines"


def test_the_cpu_module_includes_nothing_of_cuda() -> None:
    sizes = ROOT / "csrc" / "cuda" / "pack_layout.h"  # fake kernels of either device compute sizes
    for path in files():
        if layer(path) == "torch" and "cuda" not in path.name:
            assert all(layer(target) != "cuda" or target == sizes for target in own_includes(path)), path


def check_no_circle(graph: Mapping[Path, Iterable[Path]]) -> None:
    done: set[Path] = set()

    def visit(path: Path, above: tuple[Path, ...]) -> None:
        assert path not in above, " -> ".join(p.name for p in (*above[above.index(path) :], path))
        if path in done:
            return
        for target in graph[path]:
            visit(target, (*above, path))
        done.add(path)

    for path in graph:
        visit(path, ())


def test_no_file_includes_itself_through_others() -> None:
    graph = {path: own_includes(path) for path in files()}
    assert sum(map(len, graph.values())) > 100  # the includes were found
    check_no_circle(graph)


# ---- Python: imports inside functions and under TYPE_CHECKING count as well ------------------------------------------

PACKAGE, BENCH = ROOT / "python" / "vecbank", ROOT / "bench"
LOWEST_FIRST = ("results", "_ops", "_checks", "_prepared", "functional", "bank")  # none imports what is further right


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def module_file(name: str, top: Path) -> Path | None:
    """Where the module `name` lies, where it is one of those under `top`."""
    first, *rest = name.split(".")
    if first != top.name:
        return None
    path = top.joinpath(*rest)
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if found.is_file() else None


def own_imports(path: Path, top: Path) -> set[Path]:
    """The files under `top` that a file asks for; a package's own `__init__` is loaded before its modules anyway."""
    package = [top.name, *path.relative_to(top).parts[:-1]]
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names]
            names = [name if module_file(name, top) else stem for name in names]
        else:
            continue
        found |= {target for name in names if (target := module_file(name, top)) and target != top / "__init__.py"}
    return found - {path}


@pytest.mark.parametrize("top", [PACKAGE, BENCH], ids=["vecbank", "bench"])
def test_no_module_imports_itself_through_others(top: Path) -> None:
    graph = {path: own_imports(path, top) for path in python_files(top)}
    assert sum(map(len, graph.values())) > 2 * len(graph)  # the imports were found
    check_no_circle(graph)


@pytest.mark.parametrize("path", [*python_files(PACKAGE), *python_files(BENCH)], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_python_file_is_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST, f"{lines} lines"


def test_layers_of_the_package() -> None:
    graph = {path: own_imports(path, PACKAGE) for path in python_files(PACKAGE)}
    rank = {name: place for place, name in enumerate(LOWEST_FIRST)}

    def layer_of(path: Path) -> str:
        return path.relative_to(PACKAGE).parts[0].removesuffix(".py")

    for path, targets in graph.items():
        if layer_of(path) in rank:
            above = [t for t in targets if rank.get(layer_of(t), -1) > rank[layer_of(path)]]
            assert not above, f"{path.name} imports {[t.name for t in above]}"
        if layer_of(path) != "nn" and path != PACKAGE / "__init__.py":
            assert layer_of(path) == "demo" or all(layer_of(t) != "nn" for t in targets), f"{path.name} imports nn"
