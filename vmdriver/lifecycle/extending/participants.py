"""What the machinery asks of an extension, whichever of the two languages its author chose."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from vmdriver.lifecycle.engine.ledger import Held
from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.lifecycle.extending.hooks import LifecycleExtension, SandboxView
from vmdriver.lifecycle.extending.notes import Notes
from vmdriver.lifecycle.extending.phases import Extension
from vmdriver.lifecycle.extending.subject import Subject
from vmdriver.model.runs import Reason

Registered = Extension | LifecycleExtension


@dataclass(frozen=True)
class Site:
    """One extension at one sandbox: all that a call of it is made of."""

    subject: Subject
    config: Any
    given: Callable[[], Awaitable[tuple[Any, Path]]]
    """Its parameters, and its own directory, which is there; for a call of its own code only: what
    the request said long ago it may not understand any more. DriverError.
    """
    notes: Notes
    driver: str
    base_driver: str
    others: Callable[[], tuple[SandboxView, ...]]
    call: Callable[[str, Awaitable[None]], Awaitable[None]]
    """Makes a call of that name: bounds its time, gives its errors a name, tells observers."""
    tell: Callable[[str], None]
    """Shows an error that changes nothing."""


Part = Callable[..., Awaitable[None]]
"""Takes the site, and what the call point has to say. Raises nothing but DriverError."""


class Participant(Protocol):
    """An extension that is loaded."""

    extension: Any
    """As its author wrote it: Registered."""
    name: str
    language: str
    configuration: type[BaseModel] | None
    """Model of its table; None: the table as it is."""
    required: frozenset[CallPoint]
    """Without these it must not take part."""
    observer: Extension | None
    """Who is told of every call."""
    defined: tuple[str, ...]
    """What it defines, in its own language's words."""

    def part(self, moment: str) -> Part | None:
        """What it has to do at a call point, or where the runner's method of that name is called;
        None if nothing.
        """

    async def undo(self, site: Site, held: Held, reason: Reason) -> None:
        """What stands behind an entry of its own, as often as asked."""
