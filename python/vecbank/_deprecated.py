"""Old names: each is accepted for one release, with a FutureWarning that says the new one."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


@torch.compiler.assume_constant_result
def warn(message: str, category: type[Warning] = FutureWarning) -> None:
    """A warning at the line outside of this package and of torch that led here (when a compiler traces it)."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in (__package__, "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def warn_renamed(old: str, new: str) -> None:
    """The warning of a name that was used."""
    warn(f"{old} is now {new}; the old name goes with the next release")


def new_keywords(function: str, given: dict[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """The keywords of a call by their new names.

    Raises:
        TypeError: a keyword by both of its names.
    """
    for old, new in renamed.items():
        if old in given:
            if new in given:
                raise TypeError(f"{function} got {old} and {new}, which are one argument: {old} is its old name")
            warn_renamed(f"{function}: the keyword {old}", new)
            given = {new if name == old else name: value for name, value in given.items()}
    return given


def renamed(**names: str) -> Callable[[F], F]:
    """A decorator for functions and constructors: `renamed(old="new")` accepts the keyword `old` as `new`."""

    def decorated(function: F) -> F:
        called = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old in names:
                if old in kwargs:
                    kwargs = new_keywords(called, kwargs, names)
            return function(*args, **kwargs)

        return cast(F, call)

    return decorated


def old_call(positions: int, positional: str, dropped: str = "") -> Callable[[F], F]:
    """A decorator for functions whose argument after the first `positions` was once taken by position, and is the
    keyword `positional` now; the keyword `dropped` is ignored.
    """

    def decorated(function: F) -> F:
        called = function.__qualname__

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(args) == positions + 1:
                if positional in kwargs:
                    raise TypeError(f"{called} got {positional} twice")
                warn(f"{called}: {positional} is a keyword now; by position it goes with the next release")
                args, kwargs = args[:positions], {**kwargs, positional: args[positions]}
            if dropped and dropped in kwargs:
                if kwargs[dropped] is not None:
                    name = called.rpartition(".")[2]
                    warn(f"{name} ignores {dropped}, which will go: its answer is always exact")
                kwargs = {name: value for name, value in kwargs.items() if name != dropped}
            return function(*args, **kwargs)

        return cast(F, call)

    return decorated


def old_attribute(old: str, new: str) -> Any:
    """A property under the old name of an attribute."""

    def get(self: object) -> Any:
        warn_renamed(f"{type(self).__name__}.{old}", new)
        return getattr(self, new)

    def put(self: object, value: Any) -> None:
        warn_renamed(f"{type(self).__name__}.{old}", new)
        setattr(self, new, value)

    return property(get, put, doc=f"The old name of `{new}`.")


def old_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` for its old names: `__getattr__ = old_names(__name__, {"old": "new"})`."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = names[name]
        warn_renamed(f"{module}.{name}", f"{module}.{new}")
        return getattr(sys.modules[module], new)

    return get


def old_module(old: str, new: str, **renamed: str) -> None:
    """Imports from the old place of a module, and pickles that name it, find what the module `new` has; `renamed` are
    those of its names that have changed. The package gets no attribute, as it may have another use for the name.
    """

    def get(name: str) -> Any:
        if name.startswith("__"):  # what the import system asks
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        value = getattr(sys.modules[new], renamed.get(name, name))
        warn_renamed(old, new)
        return value

    module = ModuleType(old, f"The old place of `{new}`.")
    module.__getattr__ = get  # type: ignore[method-assign]
    sys.modules[old] = module
