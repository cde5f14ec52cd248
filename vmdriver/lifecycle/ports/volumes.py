"""Volumes on disk, as the core sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from vmdriver.model.plan import MachineUser
from vmdriver.model.volume import Volume

FREE_KEPT = 256 * 2**20
"""Bytes that copying volumes leaves on the disk: one that becomes full has every machine stand
still.
"""


@dataclass(frozen=True)
class Piece:
    """A part of a disk's content. What is between the pieces is zero."""

    offset: int
    data: bytes


class CopyStore(Protocol):
    """Volumes as they were at a snapshot, a raw disk each, beside the layers of their sandbox:
    Disks.layers lists them, and Disks.remove removes them.
    """

    async def begin(
        self, path: str, size_mib: int, user: MachineUser | None, *, writes: bool
    ) -> None:
        """Make one of zeros among that machine's layers. `writes`: it may write to it. Exhausted,
        StorageError.
        """

    async def copy(self, volume_id: str, path: str) -> None:
        """Write what is on a volume, to which nobody writes meanwhile, into one that was begun.
        When it is cancelled, it ends soon. Exhausted, StorageError.
        """

    async def seal(self, path: str, size_mib: int) -> int:
        """It is durable, and ours alone, from now on; the bytes that it takes. StorageError where a
        machine can still write to it, as it has it open.
        """

    async def prepare(self, volume_id: str, path: str, size_mib: int) -> None:
        """Have what is on a copy lie beside a volume, whole and durable, for `put_back`. When it is
        cancelled, it ends soon. Exhausted, StorageError.
        """

    async def put_back(self, volume_id: str) -> None:
        """What lies there is the volume from now on, durably. Fine where nothing does: it has been
        put back. StorageError.
        """

    async def drop_back(self, volume_id: str) -> None:
        """Remove what lies there, whole or not."""

    def content(self, path: str) -> AsyncIterator[Piece]:
        """What is on it, as VolumeStore.content has it. StorageError."""


class VolumeStore(Protocol):
    """A folder for each: what is known of it, and its disk. It is there as a whole, or not at all.
    Nothing here reads what a guest wrote but to copy it.
    """

    async def load_all(self) -> tuple[list[Volume], Mapping[str, str]]:
        """All of them, and what is wrong with those that cannot be read, by id; nothing touches
        these. It changes nothing.
        """

    async def tidy(self) -> None:
        """Remove what was being made, or removed, when a driver ended. Before anything is made."""

    async def make(self, volume: Volume) -> None:
        """Have an empty file system lie beside, which `publish` makes the volume. Exhausted,
        HostError.
        """

    async def receive(self, volume: Volume, pieces: AsyncIterator[Piece]) -> None:
        """The same with that content."""

    async def publish(self, volume: Volume) -> None:
        """What lies beside is the volume from now on, durably. StorageError: there is none."""

    async def discard(self, volume: Volume) -> None:
        """Remove what lies beside."""

    async def note(self, volume: Volume) -> None:
        """Replace what is known of it. StorageError: it is as it was."""

    async def let_in(
        self, volume: Volume, user: MachineUser | None, *, read_only: bool
    ) -> None:
        """Have its disk be as large as is known of it, and that machine's to write or to read; no
        machine has it that could write to it. StorageError where one can still.
        """

    async def take_back(self, volume_id: str, user_id: int | None) -> None:
        """That user has no right to it any more. Fine with what is gone."""

    async def grow(self, volume: Volume) -> None:
        """Have its disk be as large as is known of it. Exhausted, StorageError."""

    async def remove(self, volume_id: str) -> None:
        """For good."""

    def content(self, volume: Volume) -> AsyncIterator[Piece]:
        """What is on its disk, from the beginning on. StorageError."""

    async def stored_bytes(self, volume_id: str) -> int:
        """What its disk takes."""
