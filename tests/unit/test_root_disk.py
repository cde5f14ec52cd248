"""Which disks are switched to a new layer."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

import pytest

from vmdriver.hypervisor import monitor, root_disk

DOMAIN = """<domain><devices>
<disk><source file='/top'/><target dev='vda'/><serial>root</serial><alias name='virtio-disk0'/></disk>
<disk><target dev='vdb'/><serial>seed</serial></disk>
<disk><target dev='vdc'/><serial>status</serial></disk>
<disk><target dev='vdg'/><serial>another</serial></disk>
</devices></domain>"""
ANSWERS = {
    "query-named-block-nodes": [],
    "query-block": [
        {
            "qdev": "/machine/peripheral/virtio-disk0/virtio-backend",
            "inserted": {
                "node-name": "n",
                "file": "/top",
                "image": {"filename": "/top"},
            },
        }
    ],
}


class Machine:
    def __init__(self) -> None:
        self.snapshots: list[str] = []

    def XMLDesc(self, _flags: int = 0) -> str:
        return DOMAIN

    def snapshotCreateXML(self, text: str, _flags: int) -> None:
        self.snapshots.append(text)


def test_the_root_disk_alone_is_switched_whatever_disks_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """libvirt makes a layer of its own for each that it is not told to leave."""
    machine = Machine()
    monkeypatch.setattr(monitor, "ask", lambda _, command, **__: ANSWERS[command])
    root_disk.switch(machine, "/new & 'layer'")
    (text,) = machine.snapshots
    disks = Xml.fromstring(text).findall("disks/disk")
    how = {disk.get("name"): disk.get("snapshot") for disk in disks}
    assert how == {"vda": "external", "vdb": "no", "vdc": "no", "vdg": "no"}
    source = disks[0].find("source")
    assert source is not None
    assert source.get("file") == "/new & 'layer'"
