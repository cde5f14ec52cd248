"""The files of libvirt's QEMU driver when it runs inside this process (`qemu:///embed`): where
they lie, how it is configured, and what a killed process leaves of them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
from pathlib import Path
from xml.etree import ElementTree as Xml

from vmdriver.host.clearing import Clearing
from vmdriver.model.passage import PLACE

_log = logging.getLogger(__name__)
_LONGEST_ROOT = 27
_FULL = {errno.ENOSPC, errno.EDQUOT}
_BOXED = "namespaces = [ ]\n"
_DIRECTORIES = (
    *("etc", "etc/qemu", "cache", "cache/qemu", "cache/qemu/capabilities", "lib"),
    *("lib/qemu", "lib/qemu/channel", "lib/qemu/channel/target", "lib/qemu/checkpoint"),
    *(f"lib/qemu/{n}" for n in ("dump", "nvram", "ram", "save", "snapshot")),
    *("run", "run/qemu", "run/qemu/dbus", "run/qemu/passt", "run/qemu/slirp"),
    "boxes",
)
"""That libvirt or we make, or libvirt stumbles over (9.0), the outer ones first."""
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")


def embed_uri(root: Path, short_links: Path = PLACE) -> str:
    """URI of libvirt's QEMU driver inside this process, with its files below `root`.

    libvirt makes Unix sockets below it, whose paths may have 107 bytes, of which its own part
    takes up to 80. A longer root (or one that a URI would have to escape) is reached through
    a short link, always the same one, since libvirt stores these paths. Links of others stay until
    the host restarts: one that leads nowhere may lead to a mount that we do not see.
    """
    if len(os.fsencode(root)) <= _LONGEST_ROOT and PLAIN_PATH.fullmatch(str(root)):
        return f"qemu:///embed?root={root}"
    short_links.mkdir(mode=0o711, parents=True, exist_ok=True)
    link = short_links / hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    if not (link.is_symlink() and link.readlink() == root):
        link.unlink(missing_ok=True)
        link.symlink_to(root)
    return f"qemu:///embed?root={link}"


def write_embedded_configuration(
    root: Path,
    user: str,
    group: str,
    clearing: Clearing | None = None,
    *,
    own_cgroups: bool = False,
    boxed: bool = False,
) -> None:
    """qemu.conf for the embedded driver. There is no virtlogd, and we own our files:
    libvirt must not chown them. `own_cgroups`: we put machines into cgroups; libvirt does not.
    `boxed`: every QEMU is begun in a box, which has devices of its own; libvirt makes no second
    /dev around it, for which it would fork this process three times at each start.
    """
    directory = root / "etc"
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    lines = {
        "stdio_handler": '"file"',
        "seccomp_sandbox": "1",
        "user": f'"{user}"',
        "group": f'"{group}"',
        "dynamic_ownership": "0",
        "remember_owner": "0",
        "auto_dump_bypass_cache": "0",
    }
    if own_cgroups:
        lines["cgroup_controllers"] = "[ ]"
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    text += _BOXED if boxed else ""
    file, part = directory / "qemu.conf", directory / ".qemu.conf.part"
    # On a full disk, writing the same again would leave nothing.
    if file.exists() and file.read_text(errors="replace") == text:
        return
    part.unlink(missing_ok=True)
    try:
        part.write_text(text)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno not in _FULL or not _differs_by_boxes(file, text):
            raise
        # On a full disk no box can be tried either: that it had one is what was found before.
        _log.warning("libvirt is configured as it was last: %s", error.strerror)
        return
    try:
        part.replace(file)
    # chattr +i; libvirt must not run with what it says.
    except PermissionError as error:
        if clearing is None or not clearing.displace(file, str(error)):
            raise
        part.replace(file)


def _differs_by_boxes(file: Path, text: str) -> bool:
    """Whether a file says what this text says, but for what depends on boxes."""
    found = file.read_text(errors="replace") if file.exists() else ""
    return found.replace(_BOXED, "") == text.replace(_BOXED, "")


def make_way(root: Path, clearing: Clearing) -> None:
    """Have libvirt's directories be directories, and its files files: it gives up, or passes
    over things in silence, where they are not. What its probes left in a hurry is removed. Before
    anything else is done there, and only for whoever holds the state directory's lock.
    """
    for name in _DIRECTORIES:
        path = root / name
        if os.path.lexists(path) and not path.is_dir():
            clearing.displace(path, "a directory belongs there")
    clearing.remove(root / "etc" / ".qemu.conf.part")
    names = (
        *("etc/qemu.conf", "run/qemu/driver.pid", "run/qemu/autostarted"),
        *("boot-id", "boot-id.part", "boxed-qemu"),
    )
    files = [root / name for name in names]
    for directory in ("etc/qemu", "run/qemu"):
        files += (root / directory).glob("*.xml")
    for path in files:
        clearing.make_way_for_file(path)
    for path in (root / "lib" / "qemu").glob("qmp-*"):
        clearing.remove(path)


def remove_torn_definitions(root: Path) -> None:
    """Remove domain definitions that a killed process left half-written.

    libvirt ignores them, so nothing would ever undefine them. Only for whoever holds the
    state directory's lock.
    """
    for path in (root / "etc" / "qemu").glob("*.xml"):
        try:
            Xml.parse(path)  # noqa: S314 - written by libvirt for root alone
        except Xml.ParseError:
            _log.warning("removing the half-written definition %s", path.name)
            with contextlib.suppress(OSError):  # libvirt passes over it
                path.unlink()
