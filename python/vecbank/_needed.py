"""What the commands need besides the library."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec


def missing(needed: Mapping[str, str]) -> list[str]:
    """What pip calls those of these modules that are not there; `needed`: pip's name by the module's."""
    return [package for module, package in needed.items() if find_spec(module) is None]
