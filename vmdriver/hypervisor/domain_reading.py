"""What a domain's XML, libvirt's own output, says. Pure."""

from __future__ import annotations

import re
from xml.etree import ElementTree as Xml

from vmdriver.hypervisor.guest_channel import CHANNEL
from vmdriver.lifecycle.ports.host import Ownership

METADATA = "https://openshell.dev/vmdriver/1"
"""Namespace of what is ours in it."""
_LABEL = re.compile(r"\+([0-9]+):\+([0-9]+)")


def read_element(domain_xml: str, tag: str) -> str:
    """An element of a domain's XML as text, or ""."""
    element = Xml.fromstring(domain_xml).find(tag)  # noqa: S314 - libvirt's own output
    return "" if element is None else Xml.tostring(element, encoding="unicode").strip()


def _read(domain_xml: str, path: str, attribute: str) -> str:
    """An attribute of the first element there, or ""."""
    element = Xml.fromstring(domain_xml).find(path)  # noqa: S314 - libvirt's own output
    return "" if element is None else element.get(attribute, "")


def read_machine_type(domain_xml: str) -> str:
    """Such as pc-q35-7.2, or ""."""
    return _read(domain_xml, "os/type", "machine")


def read_memory_bytes(domain_xml: str) -> int:
    """The guest's memory. libvirt's own XML has it in KiB (virDomainGetXMLDesc)."""
    element = Xml.fromstring(domain_xml).find("memory")  # noqa: S314 - libvirt's own output
    return 0 if element is None else int(element.text or "0") * 1024


def read_user(domain_xml: str) -> Ownership:
    """The host's user and group that QEMU runs as; root's where it does not say."""
    root = Xml.fromstring(domain_xml)  # noqa: S314 - libvirt's own output
    label = root.findtext("seclabel[@model='dac']/label", "")
    found = _LABEL.fullmatch(label)
    return Ownership(int(found[1]), int(found[2])) if found else Ownership(0, 0)


def read_channel(domain_xml: str) -> str:
    """Path of the agent's socket of a running domain, or ""."""
    target = f"devices/channel/target[@name='{CHANNEL}']"
    return _read(domain_xml, f"{target}/../source", "path")


def read_root_layer(domain_xml: str) -> str:
    """The file that the root disk is written to, or "". It is libvirt's word: QEMU may be
    further.
    """
    return _read(domain_xml, "devices/disk[serial='root']/source", "file")


def read_other_disks(domain_xml: str) -> tuple[str, ...]:
    """Names of the disks besides the root disk, as vdb."""
    disks = Xml.fromstring(domain_xml).findall("devices/disk")  # noqa: S314 - libvirt's own output
    others = [disk for disk in disks if disk.findtext("serial") != "root"]
    targets = [disk.find("target") for disk in others]
    return tuple(t.get("dev", "") for t in targets if t is not None)


def read_alias(domain_xml: str, role: str) -> str:
    """libvirt's name for the device of the disk with that role in a running QEMU, or ""."""
    return _read(domain_xml, f"devices/disk[serial='{role}']/alias", "name")


def read_mark(metadata: str) -> str:
    """The mark in our element of a domain's metadata, or ""."""
    return _read(metadata, ".", "mark")
