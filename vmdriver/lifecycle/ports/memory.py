"""Kept memory as the core sees it: the machine that it is taken from and given to, and the
checkpoints on disk. What ports/host.py says of errors and cancellation holds here too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from vmdriver.errors import NotRestorable
from vmdriver.model.checkpoint import FileIdentity, MemoryManifest, Part
from vmdriver.model.plan import LaunchPlan, MachineUser

STATE_BYTES = 16 * 2**20
"""Room for everything of a checkpoint that is not the guest's RAM; QEMU writes under 1 MiB."""


@dataclass(frozen=True)
class Captured:
    """A stopped machine's memory, written; the guest's RAM is in the file that was named."""

    state: bytes
    domain_xml: str
    stored_bytes: int
    machine: str
    """Machine type, versioned."""
    cpu: str
    """libvirt's <cpu> element."""


@dataclass(frozen=True)
class Streamed:
    """A stopped machine's memory as QEMU wrote it to the file `path`: no checkpoint yet. Or, of one
    that goes on `meanwhile`, as QEMU is writing it.
    """

    path: str
    domain_xml: str
    meanwhile: bool = False


@dataclass(frozen=True)
class SavedMachine:
    """What a machine is loaded from. `memory` is the path of the file with its RAM."""

    state: bytes
    domain_xml: str
    memory: str


def damaged(what: str) -> NotRestorable:
    """To be raised for a checkpoint that is not as it was written."""
    text = f"the checkpoint is damaged: {what}"
    return NotRestorable(text, reason="ImageDamaged")


class MachineMemory(Protocol):
    """A machine's memory, and its disk layer under it."""

    async def seals(self) -> bool:
        """Whether a machine can map a memory file that it may only read."""

    async def pause(self, domain: str) -> None:
        """Stop its virtual CPUs. NotFound."""

    async def go_on(self, domain: str) -> None:
        """Let them run. Fine with what runs already, and with no such machine."""

    async def capture(self, domain: str, memory: str, memory_mib: int) -> Captured:
        """Write a paused machine's RAM to the file `memory`, which is there and empty. It
        stays paused and can go on, also after an error. StorageError for the file's.
        """

    async def stream(self, domain: str, target: str) -> Streamed:
        """Write a paused machine's memory to a new file, as fast as QEMU does it. It stays
        paused and can go on, also after an error. StorageError for the file's.
        """

    async def why_still(self, domain: str) -> str:
        """Why the machine has to stand still while its memory is written; "": it need not."""

    async def begin_stream(self, domain: str, target: str) -> Streamed:
        """Have a paused machine's memory written to a new file, as it is now, while the machine
        goes on: it does when this returns. After an error nothing is being written, and it is
        paused, or goes on.
        """

    async def end_stream(self, domain: str, streamed: Streamed) -> None:
        """Wait until QEMU has written what `begin_stream` began. After an error, or cancelled,
        nothing is being written any more; the machine went on in any case. StorageError for the
        file's.
        """

    async def give_up_stream(self, domain: str) -> None:
        """Nothing is being written any more. Fine where nothing is, and with no such machine."""

    async def split(self, streamed: Streamed, memory: str, memory_mib: int) -> Captured:
        """What `capture` gives, from what `stream` wrote, which is gone afterwards. The
        machine is not needed.
        """

    async def load(
        self, plan: LaunchPlan, mark: str, saved: SavedMachine, scratch: str
    ) -> None:
        """Have the plan's machine as it was when it was saved, paused. It can only read the file
        with its RAM, which stays as it is. `scratch`: path of a file to use meanwhile.
        """

    async def begin_copies(self, domain: str, targets: Mapping[str, str]) -> None:
        """Have the disks of these roles copied, while the machine goes on, into these files: disks
        of zeros, of the same sizes. What an earlier call began is dropped.
        """

    async def uncopied_bytes(self, domain: str) -> int | None:
        """What is left to copy, or was written anew; None: it has not begun. StorageError where a
        copy has failed.
        """

    async def end_copies(self, domain: str, roles: Collection[str]) -> None:
        """Each file is from now on what its disk is at one moment of this call, and the machine has
        it open no more. Nothing should write meanwhile: then all are of one moment. StorageError,
        TimedOut.
        """

    async def drop_copies(self, domain: str) -> None:
        """Nothing is copied any more. Fine with what has ended, and with no such machine."""

    async def switch_layer(self, domain: str, layer: str) -> None:
        """From now on the root disk is written to `layer`, an empty one on the present
        one.
        """

    async def holds(self, layer: str, below: str) -> bool:
        """Whether a machine may be writing to `layer` already, an empty one on `below`, to
        which it wrote before. True when in doubt, and of a machine that has ended. Does not
        wait for a machine that hangs.
        """


class MemoryStore(Protocol):
    """Checkpoints on disk. `directory` is a checkpoint's."""

    async def begin(self, directory: str, needed_bytes: int) -> str:
        """Make the directory, empty, with an empty file for the memory, whose path is
        returned. Exhausted unless that much space is free beside what other checkpoints under
        way may need.
        """

    async def end(self, directory: str) -> None:
        """The checkpoint is complete or given up: its space is not reserved any more."""

    async def write_parts(self, directory: str, captured: Captured) -> tuple[Part, ...]:
        """Write the small parts, digest all, make all durable."""

    async def publish(
        self, directory: str, target: str, manifest: MemoryManifest
    ) -> str:
        """Write the manifest, then give the directory its name. The manifest's digest."""

    async def read(self, directory: str) -> tuple[MemoryManifest, str]:
        """Manifest and its digest. NotFound; Refused for one that cannot be read."""

    async def needs(self, directory: str) -> set[str]:
        """Every file that its manifest says it depends on, also a manifest of another release.
        None for what is no checkpoint. StorageError when that cannot be read now.
        """

    async def damage(self, directory: str, parts: tuple[Part, ...]) -> list[str]:
        """What of the parts is not as it was, in words."""

    async def saved(self, directory: str, parts: tuple[Part, ...] = ()) -> SavedMachine:
        """What to load. With all of its manifest's `parts`, state and domain are the very bytes
        that these describe. NotRestorable where there are no such.
        """

    async def lend(self, directory: str, user: MachineUser | None) -> None:
        """Let a machine open a checkpoint's memory to read it, which stays ours. Those that nobody
        is loading are ours alone.
        """

    async def take_back(self, directory: str) -> None:
        """What was lent is ours again; what is open stays open."""

    async def share(self, directory: str, user: MachineUser | None) -> None:
        """Let every machine open a checkpoint's memory, and none anything else in it. `user`: of
        the machine that it was taken from.
        """

    async def identify(self, paths: tuple[str, ...]) -> tuple[FileIdentity, ...]:
        """What these files are now. NotFound names the first that is missing."""

    async def retire(self, directory: str, target: str) -> None:
        """Make it no checkpoint any more, its memory only mapped by a machine. May be repeated."""

    async def unpublish(self, directory: str) -> None:
        """Durably make it no checkpoint any more: nobody can read it, what it consists of stays
        until `remove`. May be repeated.
        """

    async def read_ahead(self, directory: str) -> None:
        """Have the memory in the page cache, holes as well."""

    async def move(self, directory: str, target: str) -> None:
        """Give a checkpoint another name; what has it is removed."""

    async def remove(self, directory: str) -> None:
        """Remove a checkpoint."""

    async def listed(self, parent: str) -> list[str]:
        """Names of the directories in a directory; none if it is absent."""
