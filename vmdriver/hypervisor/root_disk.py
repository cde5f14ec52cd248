"""The root disk's layers as QEMU has them. libvirt's account may be older than QEMU: a driver
that was killed between the two leaves it so until the machine ends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import libvirt

from vmdriver.errors import HypervisorError
from vmdriver.hypervisor import domain_reading, monitor

_AS_LIBVIRT_HAS_IT = {"discard": "unmap", "auto-read-only": True}
_FLAGS = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
)
_MOST_NODES = 1000
"""A disk has 200 layers at most, of two nodes each."""


@dataclass(frozen=True)
class Top:
    """What the root disk is written to."""

    node: str
    file: str


def switch(machine: Any, layer: str) -> None:
    """Have the root disk written to `layer` from now on, through libvirt, or past it where
    it does not know what the disk consists of: its own switch would then put the layer in
    the middle of the chain.
    """
    text = machine.XMLDesc()
    devices = monitor.ask(machine, "query-block")
    with monitor.reading("query-block"):
        _drop_strays(machine, devices)
        top = find_top(devices, domain_reading.read_alias(text, "root"))
    if top.file == layer:
        return
    if top.file == domain_reading.read_root_layer(text):
        others = domain_reading.read_other_disks(text)
        machine.snapshotCreateXML(_snapshot(layer, others), _FLAGS)
    else:
        _switch_by_hand(machine, top, layer)


def find_top(devices: Any, alias: str) -> Top:
    """From query-block's answer. HypervisorError if the disk is not there."""
    for device in devices:
        inserted = device.get("inserted")
        if inserted and alias in str(device.get("qdev", "")).split("/"):
            return Top(inserted["node-name"], plain_name(inserted["file"]))
    raise HypervisorError("QEMU has no such disk")


def plain_name(filename: str) -> str:
    """The path in QEMU's name of an image: with options it is a JSON text."""
    while filename.startswith("json:"):
        found = json.loads(filename.removeprefix("json:"))
        while isinstance(found.get("file"), dict):
            found = found["file"]
        filename = str(found.get("filename", ""))
    return filename


def _snapshot(layer: str, others: Sequence[str]) -> str:
    """libvirt makes a layer of its own for every disk that can be written to and is not named."""
    escaped = layer.replace("&", "&amp;").replace("<", "&lt;").replace("'", "&apos;")
    left = "".join(f"<disk name='{name}' snapshot='no'/>" for name in others)
    return (
        "<domainsnapshot><disks>"
        "<disk name='vda' snapshot='external' type='file'><driver type='qcow2'/>"
        f"<source file='{escaped}'/></disk>{left}</disks></domainsnapshot>"
    )


def _switch_by_hand(machine: Any, top: Top, layer: str) -> None:
    """As libvirt does it, with names that it does not use (at most 31 bytes)."""
    _have_let_go(machine, top)
    node = f"vm-{hashlib.sha256(layer.encode()).hexdigest()[:20]}"
    file = {"driver": "file", "node-name": f"{node}-file", "filename": layer}
    monitor.ask(machine, "blockdev-add", **file, **_AS_LIBVIRT_HAS_IT)
    disk = {"driver": "qcow2", "node-name": node, "file": file["node-name"]}
    options = {"discard": "unmap", "detect-zeroes": "unmap", "backing": None}
    monitor.ask(machine, "blockdev-add", **disk, **options)
    monitor.ask(machine, "blockdev-snapshot", node=top.node, overlay=node)


def _have_let_go(machine: Any, top: Top) -> None:
    """Have QEMU open that file anew for reading only, in the same step in which nobody writes to it
    any more, however it was opened: else it can be written to for as long as the machine runs,
    which is no layer for others.
    """
    nodes = _nodes(machine)
    with monitor.reading("query-named-block-nodes"):
        files = [
            {"driver": "file", "node-name": node["node-name"], "filename": top.file}
            for node in nodes
            if node["drv"] == "file" and plain_name(node["file"]) == top.file
        ]
    for file in files:
        # By a QEMU older than 6.1 it is refused; then the layer is, if it is held.
        options = [file | _AS_LIBVIRT_HAS_IT]
        monitor.tried(machine, "blockdev-reopen", options=options)


def _nodes(machine: Any) -> Any:
    """All images that QEMU says it has open; each may be asked to be closed."""
    nodes = monitor.ask(machine, "query-named-block-nodes", flat=True)
    with monitor.reading("query-named-block-nodes"):
        if len(nodes) > _MOST_NODES:
            raise HypervisorError("QEMU says that it has too many images open")
    return nodes


def _used(devices: Any) -> set[str]:
    """Paths of all images that the machine's disks consist of."""

    def chain(image: Any) -> Iterator[str]:
        while image:
            yield plain_name(image["filename"])
            image = image.get("backing-image")

    inserted = [device["inserted"] for device in devices if device.get("inserted")]
    return {path for found in inserted for path in chain(found["image"])}


def _drop_strays(machine: Any, devices: Any) -> None:
    """Close what a killed driver had opened for a switch that did not come. The names would be
    used again.
    """
    used = _used(devices)
    nodes = [node for node in _nodes(machine) if plain_name(node["file"]) not in used]
    for node in sorted(nodes, key=lambda node: node["drv"] == "file"):
        # QEMU refuses for what is in use in a way that we did not see.
        monitor.tried(machine, "blockdev-del", **{"node-name": node["node-name"]})
