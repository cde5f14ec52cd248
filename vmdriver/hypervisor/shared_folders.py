"""Folders of the host in a machine: what its XML and its box say of them. Pure.

The programs that read the folders are ours and run before the machine (vmdriver/folders); libvirt
is told of their sockets alone (its docs/formatdomain.rst, `<source socket=…>`). They work in the
guest's memory, which such a machine therefore has in a file without a name that both map.
"""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from vmdriver.model.passage import Passage
from vmdriver.model.plan import LaunchPlan

_FOLDER = "/folders"
"""Of the sockets, in the box. Short: a socket's path has at most 107 bytes."""
_QUEUE = 1024
"""Requests that may be under way; QEMU's default of 128 makes a reading guest wait."""


def _place(tag: str) -> str:
    return f"{_FOLDER}/{tag}"


def share_memory(root: Xml.Element, plan: LaunchPlan) -> None:
    """How the domain has its memory, where that is not the usual way."""
    if plan.host_mounts:
        backing = Xml.SubElement(root, "memoryBacking")
        Xml.SubElement(backing, "source", {"type": "memfd"})
        Xml.SubElement(backing, "access", {"mode": "shared"})


def render(devices: Xml.Element, plan: LaunchPlan) -> None:
    """What of the domain's <devices> is theirs. Who may write is decided at the other end."""
    for folder in plan.host_mounts:
        kind = {"type": "mount", "accessmode": "passthrough"}
        element = Xml.SubElement(devices, "filesystem", kind)
        driver = {"type": "virtiofs", "queue": str(_QUEUE)}
        Xml.SubElement(element, "driver", driver)
        Xml.SubElement(element, "source", {"socket": _place(folder.tag)})
        Xml.SubElement(element, "target", {"dir": folder.tag})


def sockets(plan: LaunchPlan, passage: Passage) -> tuple[tuple[str, str], ...]:
    """Where its QEMU's user finds each, and where it is in the box."""
    return tuple(
        (passage.theirs(folder.socket), _place(folder.tag))
        for folder in plan.host_mounts
    )
