"""Boot files that were installed with the driver, put to where machines get them from.

Machines, templates and kept memory hold on to the files that they were made with, and a package's
go with its next release: so they are copied, and stay.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from vmdriver.errors import DriverError
from vmdriver.storage import files
from vmdriver.storage.layout import Layout
from vmdriver.storage.programs import boot
from vmdriver.storage.programs.boot import BootFiles

_log = logging.getLogger(__name__)
_FILES = ("kernel", "initramfs", "manifest.json")
_MARK = "provided"
"""In a folder of boot files that were copied: those of somebody's own making are not replaced."""


def provided(directory: Path) -> BootFiles | None:
    """What is installed there, if it is whole."""
    try:
        return boot.load(directory)
    except DriverError:
        return None


def provide(layout: Layout, directory: Path) -> None:
    """Have new launches use those that are installed in `directory`, unless others were made
    here. Blocking; some 0.1 s where there are new ones. OSError where they cannot be copied.
    """
    for part in layout.boot.glob(".provided-*"):
        layout.clearing.remove(part)
    found = provided(directory)
    if found is None:
        return
    current = layout.boot / "current"
    theirs = current.exists() and not (current / _MARK).exists()
    target = layout.boot / found.digest
    whole = boot.is_whole(target)
    if theirs or (whole and current.exists() and current.samefile(target)):
        return
    if not whole:
        part = layout.boot / f".provided-{os.getpid()}"
        try:
            _copy(found.kernel.parent, part, target)
        except OSError:
            layout.clearing.remove(part)  # on a full disk, somebody needs the room
            raise
    link = layout.boot / f".provided-{os.getpid()}.current"
    link.symlink_to(found.digest)
    link.rename(current)
    files.sync_directory(layout.boot)
    _log.info("new machines boot kernel %s", found.kernel_release)


def _copy(source: Path, part: Path, target: Path) -> None:
    part.mkdir(mode=0o755)
    part.chmod(0o755)
    for name in _FILES:
        shutil.copyfile(source / name, part / name)
        (part / name).chmod(0o644)
        files.sync_file(part / name)
    (part / _MARK).touch()
    files.sync_directory(part)
    if target.exists():  # half a folder, or a damaged one: nothing boots from it
        target.rename(part.with_name(f"{part.name}.before"))
    part.rename(target)
