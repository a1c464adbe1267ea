"""Thin: drives CMake (ninja) in a persistent build folder and puts the module where setuptools wants it.

Everything about the package itself is in pyproject.toml; everything about compiling is in CMakeLists.txt.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent


def stop(message: str) -> NoReturn:
    """Ends the build with one line; a traceback would hide it."""
    raise SystemExit(f"vecbank: {message}")


if sys.version_info < (3, 10):  # noqa: UP036
    stop(f"Python 3.10 or newer is needed; this is {platform.python_version()} ({sys.executable})")

import setuptools  # noqa: E402
from setuptools import Extension, setup  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402

# Without build isolation pip takes what is installed, and a venv's own setuptools is often too old.
if int(setuptools.__version__.split(".")[0]) < 77:
    stop(
        f"setuptools >= 77 is needed, {setuptools.__version__} is installed: "
        f"{sys.executable} -m pip install --upgrade setuptools cmake ninja pybind11"
    )


def check_torch() -> None:
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        stop(
            f"the build sees no torch ({sys.executable}): install torch >= 2.11 where vecbank is to be used, "
            "then call pip with --no-build-isolation"
        )
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < (2, 11):
        stop(f"torch >= 2.11 is needed; {sys.executable} has torch {version}")


def check_tools() -> None:
    wanted = [name for name in ("cmake", "ninja") if tool(name) is None]
    wanted += ["pybind11"] if importlib.util.find_spec("pybind11") is None else []
    if wanted:
        stop(f"the build needs more: {sys.executable} -m pip install {' '.join(wanted)}")


def tool(name: str) -> str | None:
    """The tool beside this Python (pip puts it there), else the one on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def check_compiler() -> None:
    compiler = os.environ.get("CXX", "").split()
    if compiler and shutil.which(compiler[0]) is None:
        stop(f"the C++ compiler named by CXX ({compiler[0]}) is not there")
    if not compiler and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        stop("no C++ compiler found: sudo apt-get install g++")
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        stop(f"Python.h is not in {include}: sudo apt-get install python3-dev")


class CMakeBuild(build_ext):
    def run(self) -> None:
        inplace = bool(self.inplace or getattr(self, "editable_mode", False))
        folder = ROOT / "build" / str(sysconfig.get_config_var("SOABI"))
        self.forget_if_moved(folder)
        cmake, ninja = str(tool("cmake")), str(tool("ninja"))
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DVECBANK_INPLACE={'ON' if inplace else 'OFF'}",
            "-DVECBANK_TORCH=ON",
            *os.environ.get("VECBANK_CMAKE_ARGS", "").split(),
        ]
        jobs = ["-j", str(self.parallel)] if self.parallel else []
        for command in (configure, [ninja, "-C", str(folder), *jobs, "_C"]):
            if subprocess.call(command) != 0:
                stop(f"building the C++ part failed: {' '.join(command[:2])} ... (its messages are above)")
        if not inplace:
            # All of them: _C, and _C_cuda where CUDA was built.
            package = Path(self.get_ext_fullpath(self.extensions[0].name)).parent
            package.mkdir(parents=True, exist_ok=True)
            for module in (folder / "module").glob("_C*.so"):
                shutil.copy2(module, package / module.name)

    @staticmethod
    def forget_if_moved(folder: Path) -> None:
        """CMake refuses a build folder whose source tree was elsewhere."""
        cache = folder / "CMakeCache.txt"
        if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
            shutil.rmtree(folder)


# Fail before pip downloads anything, and with nothing else in the output; an sdist needs none of these.
if {"dist_info", "bdist_wheel", "editable_wheel", "build_ext"} & set(sys.argv):
    check_tools()
    check_torch()
    check_compiler()

# setuptools would pack whatever an earlier build left there, renamed modules included.
if "bdist_wheel" in sys.argv:
    for leftover in ROOT.glob("build/lib.*"):
        shutil.rmtree(leftover)

setup(ext_modules=[Extension("vecbank._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
