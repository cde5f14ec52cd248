"""The folders that libvirt makes for a running machine: of its monitor, of its agent's channel.

libvirt gives them to the machine's user (9.0: qemuProcessPrepareHost), although QEMU is handed its
sockets open. A QEMU that somebody took over could put a link there in place of a socket: a driver
that begins again would talk to another machine, believing it is this one, and whatever root does
below would be led elsewhere. So they are root's from before a machine's first instruction on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vmdriver.errors import HypervisorError
from vmdriver.hypervisor.domain_reading import read_channel

_SYSTEM_LIBRARY = Path("/var/lib/libvirt/qemu")


def library(uri: str) -> Path:
    """Where libvirt keeps the folders of a connection's machines."""
    _, found, root = uri.partition("root=")
    return Path(root) / "lib" / "qemu" if found else _SYSTEM_LIBRARY


def take_over(uri: str, machine: Any) -> None:
    """Have a paused machine's folders be ours. HypervisorError."""
    folders = set(library(uri).glob(f"domain-{machine.ID()}-*"))
    if channel := read_channel(machine.XMLDesc()):
        folders.add(Path(channel).parent)
    try:
        for folder in folders:
            _take(folder)
    except OSError as error:
        raise HypervisorError(
            f"a folder of domain {machine.name()} cannot be closed to it: {error.strerror}",
            detail=str(error),
        ) from error


def _take(folder: Path) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder, flags)
    try:
        os.fchown(descriptor, os.geteuid(), os.getegid())
    finally:
        os.close(descriptor)
