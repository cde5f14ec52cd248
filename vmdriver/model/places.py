"""Paths in each other, by their names alone: links are not followed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from vmdriver.errors import InvalidRequest


def lies_in(path: str, folder: str) -> bool:
    """Whether it is that folder or anything in it.

    >>> lies_in("/data/x", "/data"), lies_in("/data", "/data"), lies_in("/data-b", "/data")
    (True, True, False)
    """
    return path == folder or path.startswith(f"{folder}/")


def check_apart(field: str, mounts: Sequence[str]) -> None:
    """InvalidRequest where something is to be mounted within something else of a request."""
    for inner, outer in permutations(mounts, 2):
        if lies_in(inner, outer):
            raise InvalidRequest(field, f"{inner} is within what is mounted at {outer}")
