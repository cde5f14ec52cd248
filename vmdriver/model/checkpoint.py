"""A machine's memory on disk, and what must be true for it to be given back to a machine.

A checkpoint is a directory: `memory` (the guest's RAM, sparse, mapped copy-on-write by whoever
goes on from it), `state` (devices and the rest of QEMU's stream), `domain.xml` (the machine
as libvirt had it) and, written last, `manifest.json`. Without a manifest it does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from vmdriver.model.plan import LaunchPlan
from vmdriver.model.spec import Frozen, SandboxSpec
from vmdriver.model.timing import TimedStep

MEMORY, STATE, DOMAIN = "memory", "state", "domain.xml"
CheckpointKind = Literal["suspended", "snapshot", "template"]
_NAMED_CPU = re.compile(r"<cpu\b[^>]*\bmode=['\"]custom['\"]")


def is_expanded(cpu: str) -> bool:
    """Whether libvirt has written into a <cpu> element what the CPU can do: then it compares that
    itself when it loads the machine.
    """
    return _NAMED_CPU.match(cpu) is not None


class Part(Frozen):
    """One file of a checkpoint."""

    name: str
    size: int
    """Bytes, holes counted."""
    stored: int
    """Bytes that are not in holes."""
    digests: tuple[str, ...]
    """Of each 64 MiB: over the offset and the content of every 64 KiB block that is not zero.
    blake3:… or, up to 0.1.0, sha256 without a name.
    """


class FileIdentity(Frozen):
    """A file that a checkpoint depends on. Any write to it changes one of these."""

    path: str
    size: int
    inode: int
    modified_ns: int
    changed_ns: int
    """0 for a file that only root may write: its rights change with who stands on it."""


class Versions(Frozen):
    """What made the checkpoint, and must load it."""

    hypervisor: str
    libvirt: str
    machine: str
    """Versioned, such as pc-q35-7.2."""


class MemoryManifest(Frozen):
    """manifest.json."""

    schema_version: Literal[1] = 1
    kind: CheckpointKind
    name: str = ""
    """A snapshot's name."""
    sandbox_id: str
    workspace: str
    created_at: datetime
    host_boot_id: str
    guest_boot_id: str = ""
    spec: SandboxSpec | None = None
    """None for a template: it is unowned."""
    plan: LaunchPlan
    versions: Versions
    cpu: str
    """libvirt's <cpu> element of the running machine, expanded where libvirt expands it."""
    boot_digest: str
    supervisor_digest: str
    files: tuple[FileIdentity, ...]
    """Kernel, initramfs, supervisor disk, and every layer of the root disk down to its base."""
    parts: tuple[Part, ...]
    token_expires_at: int | None = None
    """Seconds since 1970, from the JWT's exp; None: no token, or one without an end."""
    secrets_digest: str = ""
    """sha256 over token and TLS files as the guest has them: tells whether to renew them."""
    extensions: Mapping[str, Any] = {}
    """What each extension had saved."""

    @property
    def stored_bytes(self) -> int:
        """Disk space of all parts."""
        return sum(part.stored for part in self.parts)


class MemoryRef(Frozen):
    """A record's pointer to the checkpoint that its machine goes on from."""

    directory: str
    digest: str
    """sha256 of manifest.json: an edited manifest is noticed."""
    kind: CheckpointKind
    name: str = ""
    stored_bytes: int = 0
    consumed: bool = False
    """True from before the first instruction on: then it is never loaded again."""


class SeenAge(Frozen):
    """For how long something has been there for sure: counted in the host's running time, which
    nobody can set. What passed between a last look and a restart of the host is not counted.
    """

    seconds: float = 0.0
    boot_id: str = ""
    """Of the host's boot in which that was so; "": never looked at."""
    uptime_s: float = 0.0
    """The host's seconds since that boot, then."""

    def at(self, boot_id: str, uptime_s: float) -> SeenAge:
        """As it is now."""
        if not self.boot_id:
            more = 0.0
        elif boot_id == self.boot_id:
            more = max(uptime_s - self.uptime_s, 0.0)
        else:
            more = uptime_s
        return SeenAge(seconds=self.seconds + more, boot_id=boot_id, uptime_s=uptime_s)


class VolumeCopy(Frozen):
    """A volume of the sandbox's workspace, as it was at a snapshot."""

    name: str
    size_mib: int
    path: str
    """A raw disk, beside the layers, that nobody writes to."""
    stored_bytes: int = 0


class SnapshotEntry(Frozen):
    """A named snapshot in its sandbox's record. Its layers are never written again."""

    name: str
    created_at: datetime
    layers: tuple[str, ...]
    """The root disk's qcow2 layers, bottom first."""
    memory: MemoryRef | None = None
    """None: of the disk only."""
    age: SeenAge = SeenAge()
    """Counts for its removal; `created_at` is for people."""
    disk_bytes: int = 0
    """What its top layer occupies."""
    steps: tuple[TimedStep, ...] = ()
    """How it was taken of what ran, in milliseconds from the beginning of that."""
    volumes: tuple[VolumeCopy, ...] = ()
    """Of the same moment; none unless they were asked for."""

    @property
    def stored_bytes(self) -> int:
        """Disk space that goes with it, as far as nobody else uses it."""
        memory = self.memory.stored_bytes if self.memory else 0
        return self.disk_bytes + memory + self.volume_bytes

    @property
    def volume_bytes(self) -> int:
        """Disk space of its volumes."""
        return sum(copy.stored_bytes for copy in self.volumes)

    @property
    def files(self) -> tuple[str, ...]:
        """Its layers, and its volumes' disks beside them."""
        return (*self.layers, *(copy.path for copy in self.volumes))
