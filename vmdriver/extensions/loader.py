"""Loads the extensions that the operator listed, and no others, in that order."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points

from vmdriver.errors import ConfigError
from vmdriver.lifecycle.extension_runner import check_registration
from vmdriver.lifecycle.hooks import LifecycleExtension

GROUP = "vmdriver.extensions"


def load_extensions(names: Sequence[str]) -> list[LifecycleExtension]:
    """One object per name. ConfigError when a name is not installed, or is not an
    extension.
    """
    installed = {point.name: point for point in entry_points(group=GROUP)}
    loaded = []
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
        if not isinstance(extension, LifecycleExtension):
            raise ConfigError(f"extensions: {name!r} is not a LifecycleExtension")
        loaded.append(extension)
    check_registration(loaded)
    return loaded
