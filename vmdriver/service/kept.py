"""Bytes of what is told to many: made once, kept as long as somebody holds the value itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """The encodings of frozen values, by identity: a value that has changed is another object.

    Comparing them instead would cost more than half of what encoding does. Nothing is held for a
    value that nobody else holds, so there is no limit to set.
    """

    def __init__(self, encode: Callable[[T], bytes]) -> None:
        self._encode = encode
        self._found: dict[int, tuple[weakref.ref[T], bytes]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def of(self, value: T) -> bytes:
        """As `encode` makes it. `value` must take weak references."""
        key = id(value)
        found = self._found.get(key)
        if found is not None and found[0]() is value:
            return found[1]
        encoded = self._encode(value)
        # It goes with the value, before another one can be where it was.
        gone = weakref.ref(value, partial(self._drop, key))
        self._found[key] = (gone, encoded)
        return encoded

    def _drop(self, key: int, gone: weakref.ref[T]) -> None:
        found = self._found.get(key)
        if found is not None and found[0] is gone:
            del self._found[key]
