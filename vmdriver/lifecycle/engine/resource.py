"""What a machine holds: one thing each, with how it is had and how it is given back beside each
other.

A resource is made once per driver, over the ports that it works on. What it knows of one machine
is in that machine's ledger: its release works in a process that never acquired it, after an
acquisition that was cut off anywhere, and as often as it is asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from vmdriver.lifecycle.engine.ledger import Held, Ledger
from vmdriver.model.record import SandboxRecord
from vmdriver.model.runs import Reason

# Keys of ledgers. Earlier releases wrote them, so none is ever renamed.
LEASE = "lease"
MACHINE_USER = "machine-user"
OVERLAY = "overlay"
DEVICES = "devices"
FILES = "launch-files"
TAP = "tap"
FIREWALL = "firewall"
VOLUMES = "volumes"
HOST_MOUNTS = "host-mounts"
MAPPED = "mapped-memory"
CHECKPOINT_PART = "capture:image"
FROZEN = "capture:frozen"
PAUSED = "capture:paused"
WRITTEN = "capture:memory"
LAYER = "capture:layer"
VOLUME_COPIES = "capture:volumes"
VOLUMES_BACK = "capture:volumes-back"


@dataclass(frozen=True)
class Given:
    """One thing that is given back, and by whom."""

    held: Held
    owner: str
    """In leases and marks."""
    ledger: Ledger
    record: SandboxRecord | None = None
    """None: the machine is no sandbox's."""
    reason: Reason = Reason.STOPPED

    def __getitem__(self, name: str) -> str:
        """What its entry says of one of its resource's `needs`."""
        return str(self.held.data[name])


class Resource(Protocol):
    """One kind of thing that a ledger may hold."""

    @property
    def key(self) -> str:
        """Its entry's; one that ends with ":" is what the keys of many begin with."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The texts in its entry's data without which it cannot be given back."""

    @property
    def release(self) -> Callable[[Given], Awaitable[None]]:
        """Give it back. Any error: it is held still, and given back once more later."""


class Resources:
    """All of them."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self._by_key = {resource.key: resource for resource in resources}

    def keys(self) -> list[str]:
        """Of all of them."""
        return list(self._by_key)

    def of(self, key: str) -> Resource | None:
        """What an entry of that key is."""
        prefix = key.partition(":")[0] + ":"
        return self._by_key.get(key) or self._by_key.get(prefix)

    def can_be_undone(self, held: Held) -> bool:
        """Whether an entry says all that its release needs. One that nobody knows may."""
        resource = self.of(held.key)
        needs = resource.needs if resource is not None else ()
        return all(isinstance(held.data.get(name), str) for name in needs)

    async def release(self, given: Given) -> None:
        """Give one entry's thing back, in whatever process; the entry stays. LookupError for one
        that nobody knows.
        """
        resource = self.of(given.held.key)
        if resource is None:
            raise LookupError(f"no undo for ledger entry {given.held.key}")
        await resource.release(given)
