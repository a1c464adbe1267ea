"""The ops library `_C_cuda.so`, wherever one was built: what it exports and needs, and that it registers every op.

No GPU is needed. Beside a CPU build of torch, the empty libtorch_cuda of third_party/torch_cuda.cmake stands in.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_symbols import symbols

from vecbank import _cuda

ROOT = Path(__file__).resolve().parent.parent
BUILT = [path for path in [_cuda.LIBRARY, *ROOT.glob("build/*/module/_C_cuda.so")] if path.exists()]
if not BUILT:
    pytest.skip("no _C_cuda.so here: `make cuda-check` builds it", allow_module_level=True)
NEWEST = max(BUILT, key=lambda path: path.stat().st_mtime)

# The Library under test, and a check that every op has a kernel for CUDA. In a process of its own: ops stay registered.
LOAD = """
import sys, torch
from pathlib import Path
import vecbank
from vecbank import _cuda
library = _cuda.Library(Path(sys.argv[1]))
assert library.architectures()
if not torch.cuda.is_available():  # what the CUDA runtime says then becomes an error, or a note
    try:
        library.state(0)
    except RuntimeError as error:
        assert str(error).startswith("vecbank: CUDA: ") and "CUDA driver" in str(error), error
    assert "CUDA driver" in str(library.tensor_cores(0)), library.tensor_cores(0)
names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("vecbank::")]
print(*(n for n in names if not torch._C._dispatch_has_kernel_for_dispatch_key(n, "CUDA")))
"""


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
def test_it_needs_no_python_and_exports_its_functions_alone() -> None:
    """A CUDA runtime that it exported could be taken for torch's own, which has another version."""
    undefined = [name for _, name in symbols(NEWEST, "-D", "--undefined-only")]
    assert any(name.startswith("aoti_torch") for name in undefined), "is this the right file?"
    assert not [name for name in undefined if name.startswith(("Py", "_Py", "at::", "c10::", "cuda"))]
    exported = {name for kind, name in symbols(NEWEST, "-D", "--defined-only") if kind in "TDBR"}
    exported -= {"__bss_start", "_edata", "_end"}  # the linker's own
    assert exported == {f"vecbank_cuda_{name}" for name in _cuda.FUNCTIONS}


def loaded(path: Path) -> subprocess.CompletedProcess[str]:
    paths = [os.environ.get("LD_LIBRARY_PATH", ""), *map(str, path.parents[1].glob("stub"))]
    return subprocess.run(
        [sys.executable, "-c", LOAD, str(path)],
        env={**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, paths)), "VECBANK_CUDA": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_op_is_registered_for_cuda() -> None:
    if torch.version.cuda is None and not any(NEWEST.parents[1].glob("stub")):
        pytest.skip("this torch is a CPU build, and the stand-in for libtorch_cuda is not beside the library")
    done = loaded(NEWEST)
    assert done.returncode == 0, done.stderr
    # A pack on a CUDA device is made anew, and the gradient of project is ATen's products. What goes through plain
    # torch there, in blocks, is in python/vecbank/_select.py.
    in_blocks = {f"vecbank::{name}" for name in ("topk_among", "radius", "radius_count", "merge_topk")}
    in_blocks |= {"vecbank::attend", "vecbank::attend_backward"}  # _attend_blocks.py
    in_blocks |= {f"vecbank::sparse_{name}" for name in ("invert", "scores", "topk", "backward")}  # _sparse_search.py
    assert set(done.stdout.split()) == {
        "vecbank::repack_",
        "vecbank::project_backward",
        "vecbank::project_backward_small",
        *in_blocks,
    }
