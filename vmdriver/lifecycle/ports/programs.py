"""What the core asks of the agent in a guest for an operator's command. What ports/guest.py says of
trust, limits and errors holds here too; the guest decides nothing here but about itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

MOST_WORDS = 8000
"""Bytes of a program's words, each with the NUL that ends it."""
MOST_GIVEN = 4096
"""Bytes of input in one exchange."""
MOST_SAID = 4096
"""Bytes of output in one exchange, of each way."""


@dataclass(frozen=True)
class Window:
    """Of a terminal."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Program:
    """What is run: by the image's user "sandbox", or by root. With a window, on a terminal."""

    words: tuple[str, ...]
    as_root: bool = False
    window: Window | None = None
    term: str = ""


@dataclass(frozen=True)
class Turn:
    """One exchange. `number`: one more than the last one's, from 1 on; the same once more is
    answered as before, and nothing is done. `room`: bytes of output that are taken on each way.
    """

    number: int
    given: bytes = b""
    last: bool = False
    """There is no input behind that."""
    room: int = MOST_SAID
    window: Window | None = None


@dataclass(frozen=True)
class Said:
    """The answer. `taken`: bytes of the input; the rest is to be given again."""

    taken: int
    out: bytes
    err: bytes
    code: int | None
    """How it ended, as a shell says it; None: it goes on, or has more to say."""


class GuestPrograms(Protocol):
    """Programs in guests, each by its machine's domain and a name of the caller's."""

    async def begin(
        self,
        domain: str,
        name: str,
        program: Program,
        limit_s: float,
        may: Callable[[], None],
    ) -> None:
        """Begin one. `may` is called when the agent is about to be asked: whatever else is asked of
        it later reaches it later. Refused by a guest that knows no commands, or was begun without
        them; what `may` raises: then it was not asked.
        """

    async def exchange(
        self, domain: str, name: str, turn: Turn, limit_s: float
    ) -> Said:
        """Give it input, take its output. GuestRefused where there is none of that name."""

    async def end(self, domain: str, name: str, limit_s: float) -> None:
        """Have it end, and forget it. Fine with one that has ended."""
