"""What the linker sees: no AVX code where older processors could reach it, no C++ torch symbols."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import vecbank

NM = shutil.which("nm")
ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(NM is None, reason="nm (binutils) is not installed")


def symbols(path: Path, *options: str) -> Iterator[tuple[str, str]]:
    """(type letter, demangled name) of every symbol of an object or library."""
    out = subprocess.run([str(NM), "-C", *options, str(path)], capture_output=True, text=True, check=True).stdout
    for line in out.splitlines():
        found = re.match(r"[0-9a-fA-F]*\s+([A-Za-z?])\s+(.+)", line)
        if found:
            yield found[1], found[2]


def kernel_objects() -> list[Path]:
    """The per-ISA objects that are shipped (no sanitizer, no other machine), the newest of a name."""
    found: dict[str, Path] = {}
    others = ("sanitize", "aarch64", "cuda")
    for path in sorted((ROOT / "build").glob("**/kernels_*.o"), key=lambda p: p.stat().st_mtime):
        if path.relative_to(ROOT / "build").parts[0] not in others:
            found[path.name] = path
    return list(found.values())


def test_isa_objects_export_no_weak_symbols() -> None:
    """A weak inline function compiled for AVX-512 could be the copy that the linker keeps for all."""
    objects = kernel_objects()
    if not objects:
        pytest.skip("no build/**/kernels_*.o: vecbank was installed, not built in this checkout")
    for path in objects:
        defined = [(kind, name) for kind, name in symbols(path, "--defined-only")]
        weak = [name for kind, name in defined if kind in "WwVvu"]
        assert not weak, f"{path.name}: {weak}"
        isa = path.name.removeprefix("kernels_").split(".")[0]
        # Data symbols (names of constants) aside, all that is exported lives in the namespace of the ISA.
        stray = [name for kind, name in defined if kind == "T" and isa not in name]
        assert not stray, f"{path.name} exports {stray}"


def test_isa_objects_need_nothing_that_is_inline_elsewhere() -> None:
    """No call into std:: from a kernel object: it would be compiled under that object's flags somewhere."""
    objects = kernel_objects()
    if not objects:
        pytest.skip("no build/**/kernels_*.o: vecbank was installed, not built in this checkout")
    for path in objects:
        needed = [name for kind, name in symbols(path, "--undefined-only") if name.startswith(("std::", "__cxa"))]
        assert not needed, f"{path.name}: {needed}"


def test_library_uses_the_stable_abi_only() -> None:
    library = Path(vecbank._C.__file__)
    undefined = [name for kind, name in symbols(library, "-D", "--undefined-only")]
    assert any(name.startswith("aoti_torch") or "torch" in name for name in undefined), "is this the right file?"
    assert not [name for name in undefined if re.match(r"(typeinfo for |vtable for )?(at|c10|torch)::", name)]


def test_library_brings_no_openmp_of_its_own() -> None:
    undefined = [name for _, name in symbols(Path(vecbank._C.__file__), "-D", "--undefined-only")]
    assert not [name for name in undefined if re.match(r"(omp_|GOMP_|__kmpc_)", name)]


def test_library_exports_its_entry_point_only() -> None:
    defined = [name for kind, name in symbols(Path(vecbank._C.__file__), "-D", "--defined-only") if kind in "TDBR"]
    assert [name for name in defined if name.startswith("PyInit_")] == ["PyInit__C"]
    assert not [name for name in defined if "vecbank" in name]
