"""What of a pool is whose. In memory; ledgers are what is on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from vmdriver.lifecycle.engine.resource import Given

T = TypeVar("T")


class Owned(Generic[T]):
    """By owner. What was given back is the next one's only when the ledger says so too: until then
    it may be given back once more, by this process or the next, which nobody else who has it would
    live through; and no two ledgers may hold the same.
    """

    def __init__(self) -> None:
        self._all: dict[str, T] = {}
        self._given: dict[str, Given] = {}

    @property
    def now(self) -> Mapping[str, T]:
        """What everybody has."""
        for owner, given in list(self._given.items()):
            if given.ledger.get(given.held.key) is None:
                self.free(owner)
        return self._all

    def adopt(self, owner: str, thing: T) -> None:
        """It is that owner's, as its ledger says, or is about to."""
        self._all[owner] = thing
        self._given.pop(owner, None)

    def free(self, owner: str) -> None:
        """It has none that a ledger holds."""
        self._all.pop(owner, None)
        self._given.pop(owner, None)

    def returned(self, given: Given) -> None:
        """That is back."""
        self._given[given.owner] = given
