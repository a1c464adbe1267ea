"""The build backend of pyproject.toml: setuptools' own, which asks for torch only where the environment has none.

Build isolation hides the environment's packages. The folder of its torch is found all the same and compiled against, so
that nobody downloads a second one; one binary serves every torch from 2.11 on. `check` names all that a build lacks in
one message, whose commands can be run as they are.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import platform
import re
import shlex
import shutil
import site
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import NoReturn

LEAST_TORCH = (2, 11)
LEAST_SETUPTOOLS = 77
TORCH = f"torch>={LEAST_TORCH[0]}.{LEAST_TORCH[1]}"


def stop(message: str) -> NoReturn:
    """Ends the build with a message; a traceback would hide it."""
    raise SystemExit(f"vecbank: {message}")


if sys.version_info < (3, 10):  # noqa: UP036
    stop(f"Python 3.10 or newer is needed; this is {platform.python_version()} ({sys.executable})")


def find_torch() -> Path | None:
    """The folder of the environment's torch, whatever its version, hidden by build isolation or not."""
    spec = importlib.util.find_spec("torch") or importlib.machinery.PathFinder.find_spec(
        "torch", [*site.getsitepackages(), site.getusersitepackages()]
    )
    return Path(spec.origin).parent if spec and spec.origin else None


def torch_version(folder: Path) -> tuple[int, ...]:
    """(major, minor), read rather than imported: importing torch takes seconds."""
    found = re.search(r"^__version__.*?(\d+)\.(\d+)", (folder / "version.py").read_text(), re.MULTILINE)
    return tuple(int(part) for part in found.groups()) if found else (0, 0)


def has_torch() -> bool:
    folder = find_torch()
    return folder is not None and torch_version(folder) >= LEAST_TORCH


def tool(name: str) -> str | None:
    """The tool beside this Python (pip puts it there), else the one on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def missing_packages() -> list[str]:
    """What pip must install before a build, as requirements."""
    try:
        old = int(metadata.version("setuptools").split(".")[0]) < LEAST_SETUPTOOLS
    except metadata.PackageNotFoundError:
        old = True
    wanted = [f"setuptools>={LEAST_SETUPTOOLS}"] if old else []
    wanted += [name for name in ("cmake", "ninja") if tool(name) is None]
    wanted += ["pybind11"] if importlib.util.find_spec("pybind11") is None else []
    return wanted + ([] if has_torch() else [TORCH])


def missing_from_system() -> list[str]:
    """Commands that install what pip does not: the compiler and Python's headers."""
    commands = []
    compiler = os.environ.get("CXX", "").split()
    if compiler and shutil.which(compiler[0]) is None:
        commands.append(f"unset CXX    # it names a compiler that is not there: {compiler[0]}")
    if not compiler and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        commands.append("sudo apt-get install g++")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        commands.append("sudo apt-get install python3-dev")
    return commands


def check() -> None:
    """Ends the build with the commands that install what it lacks, if it lacks anything."""
    packages, commands = missing_packages(), missing_from_system()
    if packages:
        commands.insert(0, shlex.join([sys.executable, "-m", "pip", "install", *packages]))
    if commands:
        stop("the build needs more. Run this, then the same command again:\n  " + "\n  ".join(commands))


try:
    from setuptools import build_meta
    from setuptools.build_meta import *  # noqa: F403
except ImportError:  # pip without build isolation, in an environment without setuptools
    check()
    raise


def get_requires_for_build_wheel(config_settings: dict[str, str] | None = None) -> list[str]:
    """Asked in an isolated environment alone: torch is added to it where the interpreter's own environment has none."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *([] if has_torch() else [TORCH])]


get_requires_for_build_editable = get_requires_for_build_wheel
