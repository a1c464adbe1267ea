"""Thin: drives CMake (ninja) in a persistent build folder and puts the module where setuptools wants it.

Everything about the package itself is in pyproject.toml; everything about compiling is in CMakeLists.txt.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "scripts"))
from build_backend import check, find_torch, stop, tool  # noqa: E402

# Fail before pip downloads anything, and with nothing else in the output; an sdist needs none of what is checked.
if {"dist_info", "bdist_wheel", "editable_wheel", "build_ext"} & set(sys.argv):
    check()

from setuptools import Extension, setup  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402


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
            f"-DVECBANK_TORCH_DIR={find_torch()}",
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


# setuptools would pack whatever an earlier build left there, renamed modules included.
if "bdist_wheel" in sys.argv:
    for leftover in ROOT.glob("build/lib.*"):
        shutil.rmtree(leftover)

setup(ext_modules=[Extension("vecbank._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
