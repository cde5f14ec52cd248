"""Where files are, as far as the core asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vmdriver.model.plan import MachineUser


class Paths(Protocol):
    """What the launcher needs to know about files."""

    def boot(self) -> BootChoice:
        """Kernel and initramfs of new launches; Refused when there are none."""

    def of(self, sandbox_id: str) -> SandboxPaths:
        """A sandbox's files."""

    def new_layer(self, sandbox_id: str, user: MachineUser | None) -> str:
        """A path for one more layer of its root disk; never the same one twice. `user`: None for
        one that others will stand on when it is made.
        """

    def volume_copy(self, sandbox_id: str, user: MachineUser | None) -> str:
        """A path for a copy of one of its volumes, beside its layers; never the same one twice."""

    def volume(self, volume_id: str) -> str:
        """The disk of the volume with that id."""


@dataclass(frozen=True)
class BootChoice:
    """Kernel and initramfs of new launches."""

    kernel: str
    initramfs: str
    digest: str
    knows: tuple[str, ...] = ()
    """What the guest can do that guests of earlier boot files could not."""


@dataclass(frozen=True)
class SandboxPaths:
    """Where this sandbox's files are."""

    seed: str
    status: str
    console: str
    suspended: str
    """Checkpoint of the suspended machine."""
    mapped: str
    """Memory that a resumed machine maps; no checkpoint any more."""
    kept: str
    """The last checkpoint that could not be restored."""
    snapshots: str
    """Directory of the snapshots' checkpoints."""
    part: str
    """A checkpoint under way."""
    scratch: str
    """A file that loading a machine needs for a moment."""
    folders: str
    """Directory of the sockets by which its machine reaches folders of the host."""
