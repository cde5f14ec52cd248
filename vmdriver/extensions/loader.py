"""Loads the extensions that the operator listed, and no others, in that order."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from types import UnionType
from typing import TypeVar

from vmdriver.errors import ConfigError
from vmdriver.lifecycle.extending.by_hooks import ByHooks
from vmdriver.lifecycle.extending.by_phases import ByPhases
from vmdriver.lifecycle.extending.participants import Participant, Registered
from vmdriver.lifecycle.extending.phases import Extension

_log = logging.getLogger(__name__)
GROUP = "vmdriver.extensions"
T = TypeVar("T")


def load_extensions(names: Sequence[str], kind: type[T] | UnionType) -> list[T]:
    """One object per name. ConfigError when a name is not installed, or is not an
    extension of that kind. That one of them uses what is going away is logged.
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
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("default", DeprecationWarning)
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
        for warning in told:  # Python shows them to nobody who runs a driver
            _log.warning("extension %s: %s", name, warning.message)
        loaded.append(extension)
    return loaded


def participants(extensions: Iterable[Registered]) -> list[Participant]:
    """Each behind the adapter of its language. Nobody asks again which one that is."""
    return [
        ByPhases(extension) if isinstance(extension, Extension) else ByHooks(extension)
        for extension in extensions
    ]
