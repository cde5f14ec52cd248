"""The run-time state of libvirt's QEMU driver inside this process: which machines it believes to
run. It is looked through before libvirt reads it, by whoever holds the state directory's lock.

libvirt takes a status file's word for which process a machine is. When it cannot reach the
machine's monitor it ends that process, whoever that is by now (libvirt 9.0, measured): after a
restart of the host, or a long time without a driver, some other program.
"""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from vmdriver.hypervisor import qemu_process
from vmdriver.hypervisor.qemu_process import is_machine

_log = logging.getLogger(__name__)
_BOOT_ID = "boot-id"
_BOOT_ID_FORM = re.compile(r"[A-Za-z0-9-]{1,64}")


@dataclass(frozen=True)
class _Status:
    """One machine as libvirt noted it. `pid` 0: QEMU was never begun. `user`: see own_user."""

    path: Path
    pid: int
    user: int | None
    directories: tuple[Path, ...]

    def remove(self) -> None:
        """With the directories that are the run's alone. The status file goes last."""
        for directory in self.directories:
            shutil.rmtree(directory, ignore_errors=True)
        self.path.with_suffix(".pid").unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def _read(path: Path, root: Path) -> _Status | None:
    """None: torn, so that libvirt passes over it, or no machine's."""
    status = qemu_process.read_status(path)
    if status is None:
        return None
    try:
        pid = int(status.get("pid", ""))
    except ValueError:
        return None
    own, directories = root.resolve() / "lib" / "qemu", []
    for element in ("libDir", "channelTargetDir"):
        found = status.find(element)
        directory = Path(found.get("path", "") if found is not None else "")
        if directory.resolve().is_relative_to(own) and directory.resolve() != own:
            directories.append(directory)
    user = qemu_process.own_user(status)
    return _Status(path, pid, user, tuple(directories))


def _statuses(root: Path) -> list[_Status]:
    paths = sorted((root / "run" / "qemu").glob("*.xml"))
    return [status for path in paths if (status := _read(path, root)) is not None]


def forget_earlier_boot(root: Path, boot_id: str) -> None:
    """Remove all of it when the host was restarted since it was written. The present boot is noted
    beside it, once nothing of another is left.
    """
    note = root / _BOOT_ID
    try:
        noted = note.read_text(errors="replace").strip()
    except OSError:
        noted = ""  # of an earlier release; what has ended is known by its process
    if noted and not _BOOT_ID_FORM.fullmatch(noted):
        _log.warning("%s is no boot id and is written anew", note)
        noted = ""  # it says nothing about the machines
    if noted == boot_id:
        return
    if noted:
        _log.warning("the host was restarted: no machine of before runs any more")
        for status in _statuses(root):
            status.remove()
        shutil.rmtree(root / "run" / "qemu", ignore_errors=True)
    part = note.with_suffix(".part")
    try:
        part.write_text(boot_id)
        part.replace(note)
    except OSError as error:
        _log.warning("the host's boot id cannot be noted: %s", error)


def forget_ended_machines(root: Path) -> None:
    """Remove that of machines whose process has ended, also where another has its number now.
    libvirt then finds them shut off, as it would have had it reached nobody.
    """
    for status in _statuses(root):
        name = status.path.stem
        if status.pid == 0:
            continue
        # In doubt it runs: libvirt then decides.
        if not is_machine(status.pid, name, status.user, in_doubt=True):
            _log.warning("%s has ended; removing its run-time state", name)
            status.remove()


def forget_unstarted_machines(root: Path) -> None:
    """Remove that of machines whose QEMU was never begun.

    libvirt writes it with process id 0 and the job "start" just before it begins QEMU. Killed
    in between, it finds the file later, takes the domain for one that is being started, does not
    look for its process (there is none) and never ends that job: no call can change or end the
    domain any more (libvirt 9.0, measured).
    """
    for status in _statuses(root):
        if status.pid == 0:
            name = status.path.stem
            _log.warning("%s was never begun; removing its run-time state", name)
            status.remove()
