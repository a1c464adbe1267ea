"""Runs vector-quantize-pytorch's own tests with our classes in place of its own.

Its tests are not in its wheel: clone the repository and name the clone. One of them, the transformer of its README,
wants x-transformers, einx and loguru installed as well.

    python scripts/peer_suite.py path/to/vector-quantize-pytorch [pytest arguments]
"""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import vector_quantize_pytorch as peer

from vecbank import nn as ours


def swap() -> list[str]:
    """Puts our classes where the peer's tests import them from; the names that were swapped."""
    names = [name for name in dir(ours) if name[0].isupper() and isinstance(getattr(peer, name, None), type)]
    modules = [peer, *(import_module(f"{peer.__name__}.{m.name}") for m in pkgutil.iter_modules(peer.__path__))]
    for module in modules:
        for name in names:
            if hasattr(module, name):
                setattr(module, name, getattr(ours, name))
    return names


def main(arguments: list[str]) -> int:
    if not arguments or not (Path(arguments[0]) / "tests").is_dir():
        print(__doc__, file=sys.stderr)
        return 2
    print("swapped:", ", ".join(swap()))
    return int(pytest.main([str(Path(arguments[0]) / "tests"), "-q", "-p", "no:cacheprovider", *arguments[1:]]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
