"""What is back in a pool, and not noted as such yet."""

from __future__ import annotations

from vmdriver.lifecycle.engine.resource import Given


class Returns:
    """Of one pool, by owner. What was given back is the next one's only when the ledger says so
    too: until then it may be given back once more, by this process or the next, which nobody else
    who has it would live through; and no two ledgers may hold the same.
    """

    def __init__(self) -> None:
        self._given: dict[str, Given] = {}

    def add(self, given: Given) -> None:
        """That is back."""
        self._given[given.owner] = given

    def forget(self, owner: str) -> None:
        """It has something anew."""
        self._given.pop(owner, None)

    def noted(self) -> list[str]:
        """Owners who have nothing any more, each told of once."""
        given = self._given.items()
        noted = [o for o, one in given if one.ledger.get(one.held.key) is None]
        for owner in noted:
            del self._given[owner]
        return noted
