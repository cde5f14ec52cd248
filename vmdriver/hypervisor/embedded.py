"""The files of libvirt's QEMU driver when it runs inside this process (`qemu:///embed`): where
they lie, how it is configured, and what a killed process leaves of them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path
from xml.etree import ElementTree as Xml

from vmdriver.model.passage import PLACE

_log = logging.getLogger(__name__)
_LONGEST_ROOT = 27
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")


def embed_uri(root: Path, short_links: Path = PLACE) -> str:
    """URI of libvirt's QEMU driver inside this process, with its files below `root`.

    libvirt makes Unix sockets below it, whose paths may have 107 bytes, of which its own part
    takes up to 80. A longer root (or one that a URI would have to escape) is reached through
    a short link, always the same one, since libvirt stores these paths.
    """
    if len(os.fsencode(root)) <= _LONGEST_ROOT and _PLAIN_PATH.fullmatch(str(root)):
        return f"qemu:///embed?root={root}"
    short_links.mkdir(mode=0o711, parents=True, exist_ok=True)
    for stale in short_links.iterdir():
        if stale.is_symlink() and not stale.exists():
            stale.unlink()  # its state directory is gone
    link = short_links / hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    if not (link.is_symlink() and link.readlink() == root):
        link.unlink(missing_ok=True)
        link.symlink_to(root)
    return f"qemu:///embed?root={link}"


def write_embedded_configuration(root: Path, user: str, group: str) -> None:
    """qemu.conf for the embedded driver. There is no virtlogd, and we own our files:
    libvirt must not chown them.
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
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    file = directory / "qemu.conf"
    # On a full disk, writing the same again would leave nothing.
    if not file.exists() or file.read_text(errors="replace") != text:
        file.write_text(text)


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
            path.unlink()
