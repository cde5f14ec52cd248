"""What a machine holds: one thing each, with how it is had and how it is given back beside each
other.

A resource is made once per driver, over the ports that it works on. What it knows of one machine
is in that machine's ledger: its release works in a process that never acquired it, after an
acquisition that was cut off anywhere, and as often as it is asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vmdriver.lifecycle.engine.ledger import Held, Ledger, Scope
from vmdriver.model.record import SandboxRecord
from vmdriver.model.runs import Reason

# Stored in ledgers: earlier releases wrote them, so none is ever renamed.
LEASE = "lease"
OVERLAY = "overlay"
FILES = "launch-files"
TAP = "tap"
FIREWALL = "firewall"
MAPPED = "mapped-memory"
IMAGE_PART = "capture:image"
FROZEN = "capture:frozen"
PAUSED = "capture:paused"
WRITTEN = "capture:memory"
LAYER = "capture:layer"


class Data(BaseModel):
    """What a release needs, as the ledger has it. Whatever else is there is let be: another
    release may need it.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class OfDomain(Data):
    """It is a machine, or a state of one."""

    domain: str


class OfDirectory(Data):
    """It is a directory with a memory image or a part of one."""

    directory: str


class OfLayer(Data):
    """It is a layer of the root disk."""

    path: str


D = TypeVar("D", bound=Data)
T = TypeVar("T")


@dataclass(frozen=True)
class Holder:
    """Whose something is."""

    id: str
    """In leases and marks."""
    ledger: Ledger
    record: SandboxRecord | None = None
    """None: the machine is no sandbox's."""
    reason: Reason = Reason.STOPPED
    """Why it is given back."""


@dataclass(frozen=True)
class Given(Generic[D]):
    """One thing that is given back. `held` is its entry, `data` what that says."""

    data: D
    held: Held
    holder: Holder


class Releasable(Protocol):
    """What can be given back."""

    @property
    def data(self) -> type[Data]:
        """What its release needs."""

    async def release(self, given: Given[Any]) -> None:
        """Give it back. Any error: it is held still, and given back once more later."""


class Resource(Releasable, Protocol):
    """One kind of thing that a machine may hold."""

    @property
    def key(self) -> str:
        """Its name in ledgers."""

    @property
    def scope(self) -> Scope:
        """How long it is held."""


async def hold(
    ledger: Ledger,
    resource: Resource,
    data: Data,
    effect: Callable[[], Awaitable[T]],
    *,
    may_hang: bool = False,
) -> T | None:
    """Acquire it through the ledger; see Ledger.acquire. `data` is what its release is given."""
    key, scope = resource.key, resource.scope
    noted = data.model_dump()
    return await ledger.acquire(key, scope, noted, effect, may_hang=may_hang)


class Resources:
    """Every kind of thing that a ledger may hold, by key."""

    def __init__(
        self,
        resources: Iterable[Resource],
        by_prefix: Mapping[str, Releasable] | None = None,
    ) -> None:
        self._by_key: dict[str, Releasable] = {r.key: r for r in resources}
        self._by_prefix = dict(by_prefix or {})

    def keys(self) -> list[str]:
        """Of all of them; what many entries' keys begin with is among it."""
        return [*self._by_key, *self._by_prefix]

    def of(self, key: str) -> Releasable | None:
        """What an entry of that key is."""
        found = (r for p, r in self._by_prefix.items() if key.startswith(p))
        return self._by_key.get(key) or next(found, None)

    def can_be_undone(self, held: Held) -> bool:
        """Whether an entry says all that its release needs. One that we do not know may."""
        resource = self.of(held.key)
        try:
            return resource is None or bool(resource.data.model_validate(held.data))
        except ValidationError:
            return False

    async def release(self, held: Held, holder: Holder) -> None:
        """Give one entry's thing back, in whatever process, as often as asked; the entry stays.
        LookupError for one that nobody knows.
        """
        resource = self.of(held.key)
        if resource is None:
            raise LookupError(f"no undo for ledger entry {held.key}")
        data = resource.data.model_validate(held.data)
        await resource.release(Given(data, held, holder))
