"""Loads the extensions that the operator listed, and no others, in that order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from types import UnionType
from typing import TypeVar

from vmdriver.errors import ConfigError
from vmdriver.lifecycle.extending.by_hooks import ByHooks
from vmdriver.lifecycle.extending.by_phases import ByPhases
from vmdriver.lifecycle.extending.participants import Participant, Registered
from vmdriver.lifecycle.extending.phases import Extension

GROUP = "vmdriver.extensions"
T = TypeVar("T")


def load_extensions(names: Sequence[str], kind: type[T] | UnionType) -> list[T]:
    """One object per name. ConfigError when a name is not installed, or is not an
    extension of that kind.
    """
    installed = {point.name: point for point in entry_points(group=GROUP)}
    loaded: list[T] = []
    for name in names:
        point = installed.get(name)
        if point is None:
            raise ConfigError(
                f"extensions: {name!r} is not installed",
                resolution=f"installed are: {', '.join(sorted(installed)) or 'none'}",
            )
        try:
            extension = point.load()()
        except Exception as error:
            raise ConfigError(
                f"extensions: {name!r} cannot be loaded: {type(error).__name__}: "
                f"{error}"
            ) from error
        if not isinstance(extension, kind):
            wanted = getattr(kind, "__name__", str(kind))
            raise ConfigError(
                f"extensions: {name!r} is not a {wanted}: it is for another driver"
            )
        loaded.append(extension)
    return loaded


def participants(extensions: Iterable[Registered]) -> list[Participant]:
    """Each behind the adapter of its language. Nobody asks again which one that is."""
    return [
        ByPhases(extension) if isinstance(extension, Extension) else ByHooks(extension)
        for extension in extensions
    ]
