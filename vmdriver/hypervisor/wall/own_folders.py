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

from vmdriver.errors import HypervisorError, Refused
from vmdriver.host.users import access_list
from vmdriver.hypervisor.domain_reading import read_channel, read_user
from vmdriver.model.wall import ISOLATION_UNAVAILABLE

_SYSTEM_LIBRARY = Path("/var/lib/libvirt/qemu")


def library(uri: str) -> Path:
    """Where libvirt keeps the folders of a connection's machines."""
    _, found, root = uri.partition("root=")
    return Path(root) / "lib" / "qemu" if found else _SYSTEM_LIBRARY


def let_through(uri: str, domain_xml: str, folder: Path | None = None) -> None:
    """Have a machine that is to be begun come to its folders, where its QEMU reads libvirt's key.
    A daemon may keep those above for its own user (Debian 13: 0750); ours are open. Refused, with
    the reason, where that cannot be.
    """
    if folder is None:
        if "root=" in uri or uri.startswith("test:"):
            return
        folder = library(uri)
    owner = read_user(domain_xml)
    try:
        info = folder.stat()
        if info.st_uid != owner.uid and not info.st_mode & 0o001:
            access_list.allow(folder, "x", gid=owner.gid)
    except OSError as error:
        raise Refused(
            f"machines cannot be let into {folder}: {error.strerror}",
            detail=f"an entry of its access list for group {owner.gid} cannot be made",
            reason=ISOLATION_UNAVAILABLE,
            resolution=f"chmod o+x {folder}",
        ) from error


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
