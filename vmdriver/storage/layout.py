"""Where every file is. Nothing else in this project joins paths of the state directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vmdriver.errors import ConfigError
from vmdriver.host.clearing import Clearing
from vmdriver.model.ids import check_sandbox_id


class Named:
    """A path of always the same name below a directory."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: Layout | SandboxFiles | VolumeFiles, _kind: type) -> Path:
        return owner.root / self._name


@dataclass(frozen=True)
class Layout:
    """The state directory.

    Directories are 0711: QEMU, another user, must reach its own files through them but
    may not list them.
    """

    root: Path
    sandboxes = Named("sandboxes")
    """One directory per sandbox, named by its id."""
    deleted = Named("deleted")
    """An empty directory per sandbox that is gone, for as long as watchers are told so."""
    images = Named("images")
    """The shared OCI layout and the base disks made from it."""
    boot = Named("boot")
    """Kernel and initramfs, by digest; `current` names those that new launches use."""
    supervisors = Named("supervisors")
    """Read-only disks with the operator's supervisor, by digest."""
    layers = Named("layers")
    """qcow2 layers of root disks. Several sandboxes may stand on the same one."""
    templates = Named("templates")
    """Checkpoints of booted guests that belong to nobody yet, by key."""
    volumes = Named("volumes")
    """Disks that outlive sandboxes, each with what is known of it in a folder of its own."""
    warm = Named("warm")
    """Files of machines that wait at a template's barrier for their sandbox."""
    libvirt = Named("libvirt")
    """Root of the embedded libvirt driver."""
    lock = Named("driver.lock")
    """Held by the one driver process that works on this directory."""
    accelerator = Named("accelerator.json")
    """Results of the accelerator probe."""
    questions = Named("questions.json")
    """Whether libvirt may begin machines without questions (hypervisor/questions)."""
    wall = Named("wall.json")
    """Parts of machines' walls that can be had here (wall_found.py)."""
    probe = Named("probe")
    """The probe guest's status disk and console."""

    @property
    def clearing(self) -> Clearing:
        """Gets out of the way what does not belong where it lies."""
        return Clearing(self.root / "set-aside")

    def sandbox(self, sandbox_id: str) -> SandboxFiles:
        """One sandbox's files; refuses ids that are no single path component."""
        return SandboxFiles(self.sandboxes / check_sandbox_id(sandbox_id))

    def volume(self, volume_id: str) -> VolumeFiles:
        """One volume's files, by its id."""
        return VolumeFiles(self.volumes / check_sandbox_id(volume_id))

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
        for path in (self.lock, self.accelerator, self.questions, self.wall):
            self.clearing.make_way_for_file(path)
        for path in (
            self.sandboxes,
            self.deleted,
            self.images,
            self.boot,
            self.supervisors,
            self.layers,
            self.templates,
            self.volumes,
            self.warm,
            self.libvirt,
            self.probe,
        ):
            self.clearing.make_directory(path)


@dataclass(frozen=True)
class VolumeFiles:
    """The files of one volume, in a directory of their own."""

    root: Path
    note = Named("volume.json")
    """What is known of it (JSON)."""
    disk = Named("disk.raw")
    """A guest's file system: nobody here reads it."""
    back = Named("disk.back")
    """What it is to be again, whole."""
    back_part = Named("disk.back.part")


@dataclass(frozen=True)
class SandboxFiles:
    """The files of one sandbox, in a directory of their own."""

    root: Path
    record = Named("record.json")
    """What we know of it (JSON)."""
    ledger = Named("ledger.jsonl")
    """What we hold for it (one JSON object a line)."""
    token = Named("token")
    """The sandbox token, 0600, ours alone."""
    seed = Named("seed.img")
    """What the guest is given, as a tar on a raw disk."""
    status = Named("status.img")
    """What the guest says last, on a raw disk of fixed size."""
    console = Named("console.log")
    """The guest's serial console."""
    suspended = Named("suspended")
    """The checkpoint of a suspended machine."""
    mapped = Named("mapped")
    """The memory that a resumed machine maps; no checkpoint any more."""
    kept = Named("not-restored")
    """The last checkpoint that could not be restored, for the operator."""
    snapshots = Named("snapshots")
    """Checkpoints of snapshots, by name."""
    part = Named("capture.part")
    """A checkpoint that is being made."""
    scratch = Named("load.image")
    """What libvirt loads a machine's state from; there for a moment only."""
    folders = Named("folders")
    """Sockets by which its machine reaches folders of the host, while it runs."""

    def extension(self, name: str) -> Path:
        """An extension's private directory, 0700."""
        return self.root / "extensions" / name
