"""A list of objects in driver_config, as volumes and host folders are asked for: its form. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vmdriver.errors import InvalidRequest


def asked_objects(
    asked: Any, path: str, most: int, known: Collection[str], what: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each is and what it says, one after the other. `known`: the keys of one; `what`: one,
    for people. InvalidRequest.

    >>> list(asked_objects([{"name": "data"}], "volumes", 8, ["name"], "a volume"))
    [('volumes[0]', {'name': 'data'})]
    """
    if not isinstance(asked, list | tuple):
        raise InvalidRequest(path, "must be a list")
    if len(asked) > most:
        raise InvalidRequest(path, f"holds more than {most}")
    for index, value in enumerate(asked):
        place = f"{path}[{index}]"
        if not isinstance(value, Mapping):
            raise InvalidRequest(place, "must be an object")
        for key in value:
            if key not in known:
                raise InvalidRequest(
                    f"{place}.{key}",
                    f"is not a key of {what}",
                    resolution=f"known keys: {', '.join(known)}",
                )
        yield place, value


def flag(value: Mapping[str, Any], key: str, path: str, *, default: bool) -> bool:
    """What one says under that key. `path`: of the object. InvalidRequest."""
    found = value.get(key, default)
    if not isinstance(found, bool):
        raise InvalidRequest(f"{path}.{key}", "must be true or false")
    return found
