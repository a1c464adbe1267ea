"""The layers of csrc: dependencies point down only, no two files include each other, and no file is long."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
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
    for path in files():
        if layer(path) == "torch" and "cuda" not in path.name:
            assert all(layer(target) != "cuda" for target in own_includes(path)), path


def test_no_file_includes_itself_through_others() -> None:
    graph = {path: own_includes(path) for path in files()}
    assert sum(map(len, graph.values())) > 100  # the includes were found
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
