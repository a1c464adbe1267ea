"""The build backend and what an sdist holds. `make install-check` tries every way to install in fresh environments."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def backend() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("build_backend", ROOT / "scripts" / "build_backend.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


def test_a_build_has_what_it_needs_here(backend: ModuleType) -> None:
    backend.check()
    assert backend.find_torch() == Path(torch.__file__).parent
    assert backend.torch_version(backend.find_torch()) == tuple(int(n) for n in torch.__version__.split(".")[:2])


def test_one_message_names_all_that_is_missing(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "tool", lambda name: None)
    monkeypatch.setattr(backend, "has_torch", lambda: False)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(backend.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SystemExit) as stopped:
        backend.check()
    first, *commands = str(stopped.value).splitlines()
    assert first == "vecbank: the build needs more. Run this, then the same command again:"
    assert commands[0] == f"  {sys.executable} -m pip install cmake ninja pybind11 'torch>=2.11'"
    assert commands[1] == "  sudo apt-get install g++"


def test_an_old_torch_is_named(backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "version.py").write_text("__version__ = '2.9.1+cpu'\n")
    monkeypatch.setattr(backend, "find_torch", lambda: tmp_path)
    with pytest.raises(SystemExit, match="pip install 'torch>=2.11'"):
        backend.check()


def test_torch_is_found_behind_build_isolation(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is asked for where the environment has none: a wheel needs it, an sdist does not."""
    with monkeypatch.context() as isolated:
        isolated.setattr(backend.importlib.util, "find_spec", lambda name: None)
        assert backend.find_torch() == Path(torch.__file__).parent
    monkeypatch.setattr(backend.build_meta, "get_requires_for_build_wheel", lambda settings: [])
    assert backend.get_requires_for_build_wheel() == backend.get_requires_for_build_editable() == []
    monkeypatch.setattr(backend, "has_torch", lambda: False)
    assert backend.get_requires_for_build_wheel() == backend.get_requires_for_build_editable() == ["torch>=2.11"]
    assert backend.get_requires_for_build_sdist is backend.build_meta.get_requires_for_build_sdist


def test_an_sdist_holds_what_a_clone_holds(tmp_path: Path) -> None:
    """Built in a copy: setuptools leaves files beside the sources."""
    source = tmp_path / "source"
    left_out = shutil.ignore_patterns(
        ".*", "build", "dist", "*.so", "*.egg-info", "__pycache__", "demo_report", "gallery_report", "shared"
    )
    shutil.copytree(ROOT, source, ignore=left_out)
    want = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    command = "import build_backend; print(build_backend.build_sdist('out'))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, 'scripts'); {command}"],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(source / "out" / done.stdout.splitlines()[-1]) as archive:
        got = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"docs/cuda.md", "examples", "bench/run.py", "tests/cpp/main.cpp", "scripts/build_backend.py"} < got
    assert not want - got
