"""Where every file is. Nothing else in this project joins paths of the state directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vmdriver.errors import ConfigError
from vmdriver.host.clearing import Clearing
from vmdriver.model.ids import check_sandbox_id


@dataclass(frozen=True)
class Layout:
    """The state directory.

    Directories are 0711: QEMU, another user, must reach its own files through them but
    may not list them.
    """

    root: Path

    @property
    def sandboxes(self) -> Path:
        """One directory per sandbox, named by its id."""
        return self.root / "sandboxes"

    @property
    def deleted(self) -> Path:
        """An empty directory per sandbox that is gone, for as long as watchers are told so."""
        return self.root / "deleted"

    @property
    def images(self) -> Path:
        """The shared OCI layout and the base disks made from it."""
        return self.root / "images"

    @property
    def boot(self) -> Path:
        """Kernel and initramfs, by digest; `current` names those that new launches use."""
        return self.root / "boot"

    @property
    def supervisors(self) -> Path:
        """Read-only disks with the operator's supervisor, by digest."""
        return self.root / "supervisors"

    @property
    def layers(self) -> Path:
        """qcow2 layers of root disks. Several sandboxes may stand on the same one."""
        return self.root / "layers"

    @property
    def templates(self) -> Path:
        """Memory images of booted guests that belong to nobody yet, by key."""
        return self.root / "templates"

    @property
    def warm(self) -> Path:
        """Files of machines that wait at a template's barrier for their sandbox."""
        return self.root / "warm"

    @property
    def libvirt(self) -> Path:
        """Root of the embedded libvirt driver."""
        return self.root / "libvirt"

    @property
    def lock(self) -> Path:
        """Held by the one driver process that works on this directory."""
        return self.root / "driver.lock"

    @property
    def accelerator(self) -> Path:
        """Results of the accelerator probe."""
        return self.root / "accelerator.json"

    @property
    def probe(self) -> Path:
        """The probe guest's status disk and console."""
        return self.root / "probe"

    @property
    def clearing(self) -> Clearing:
        """Gets out of the way what does not belong where it lies."""
        return Clearing(self.root / "set-aside")

    def sandbox(self, sandbox_id: str) -> SandboxFiles:
        """One sandbox's files; refuses ids that are no single path component."""
        return SandboxFiles(self.sandboxes / check_sandbox_id(sandbox_id))

    def make_way_for_socket(self, path: Path) -> None:
        """What lies where a socket below the state directory is to be, or its folder, is moved
        aside. Elsewhere it is the operator's to say what is wrong.
        """
        folder = path.parent
        if folder == self.root or not folder.is_relative_to(self.root):
            return
        if folder.is_symlink():
            self.clearing.displace(
                folder, "links to a socket's folder are not followed"
            )
        self.clearing.make_directory(folder, 0o700)
        if os.path.lexists(path) and (path.is_symlink() or not path.is_socket()):
            self.clearing.displace(path, "a socket belongs there")

    def make(self) -> None:
        """Make the directories that are always there. A gateway that launches us makes the first
        one itself, closed to everybody else: it is opened, if it is ours. What lies where a
        directory belongs is moved aside. ConfigError where nothing can be made.
        """
        try:
            self._make()
        except OSError as error:
            raise ConfigError(
                f"state_dir: {error.filename or self.root} cannot be made: {error.strerror}",
                resolution="choose a folder that can be written, on a disk with space",
            ) from error

    def _make(self) -> None:
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        info = self.root.stat()
        if info.st_uid == os.geteuid() and info.st_mode & 0o011 != 0o011:
            self.root.chmod(info.st_mode & 0o7777 | 0o011)
        for path in (self.lock, self.accelerator):
            self.clearing.make_way_for_file(path)
        for path in (
            self.sandboxes,
            self.deleted,
            self.images,
            self.boot,
            self.supervisors,
            self.layers,
            self.templates,
            self.warm,
            self.libvirt,
            self.probe,
        ):
            self.clearing.make_directory(path)


@dataclass(frozen=True)
class SandboxFiles:
    """The files of one sandbox."""

    directory: Path

    @property
    def record(self) -> Path:
        """What we know of it (JSON)."""
        return self.directory / "record.json"

    @property
    def ledger(self) -> Path:
        """What we hold for it (one JSON object a line)."""
        return self.directory / "ledger.jsonl"

    @property
    def token(self) -> Path:
        """The sandbox token, 0600, ours alone."""
        return self.directory / "token"

    @property
    def seed(self) -> Path:
        """What the guest is given, as a tar on a raw disk."""
        return self.directory / "seed.img"

    @property
    def status(self) -> Path:
        """What the guest says last, on a raw disk of fixed size."""
        return self.directory / "status.img"

    @property
    def console(self) -> Path:
        """The guest's serial console."""
        return self.directory / "console.log"

    @property
    def suspended(self) -> Path:
        """The memory image of a suspended machine."""
        return self.directory / "suspended"

    @property
    def mapped(self) -> Path:
        """The memory that a resumed machine maps; no image any more."""
        return self.directory / "mapped"

    @property
    def kept(self) -> Path:
        """The last memory image that could not be restored, for the operator."""
        return self.directory / "not-restored"

    @property
    def snapshots(self) -> Path:
        """Memory images of snapshots, by name."""
        return self.directory / "snapshots"

    @property
    def part(self) -> Path:
        """An image that is being made."""
        return self.directory / "capture.part"

    @property
    def scratch(self) -> Path:
        """What libvirt loads a machine's state from; there for a moment only."""
        return self.directory / "load.image"

    def extension(self, name: str) -> Path:
        """An extension's private directory, 0700."""
        return self.directory / "extensions" / name
