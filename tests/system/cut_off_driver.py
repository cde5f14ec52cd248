"""A driver that is killed in the middle of a switch of layers: QEMU has done its part, libvirt's note of it is never
written. Usage: cut_off_driver.py opened|switched serve ...; `opened`: QEMU has opened the layer and no more.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import libvirt_qemu

from vmdriver.cli.main import main
from vmdriver.hypervisor.memory.machine_memory import DomainMemory

HOW_FAR = sys.argv.pop(1)


def ask(machine: Any, command: str, **arguments: Any) -> Any:
    text = json.dumps({"execute": command, "arguments": arguments})
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(machine, text, 0))
    assert "error" not in answer, answer
    return answer["return"]


def half_a_switch(machine: Any, layer: str) -> None:
    """What libvirt 9.0 says to QEMU, with the names that it would give, but for `auto-read-only`: without it QEMU holds
    the file open to write also when another layer is on top.
    """
    names = [node["node-name"] for node in ask(machine, "query-named-block-nodes")]
    numbers = [m[1] for n in names if (m := re.fullmatch(r"libvirt-(\d+)-format", n))]
    name = f"libvirt-{max(map(int, numbers)) + 1}"
    top = next(
        device["inserted"]["node-name"]
        for device in ask(machine, "query-block")
        if "virtio-disk0" in device.get("qdev", "")
    )
    storage, node = f"{name}-storage", f"{name}-format"
    add: dict[str, Any] = {"node-name": storage, "driver": "file", "filename": layer}
    ask(machine, "blockdev-add", discard="unmap", **add)
    add = {"node-name": node, "driver": "qcow2", "file": storage, "backing": None}
    ask(machine, "blockdev-add", discard="unmap", **add)
    if HOW_FAR == "switched":
        ask(machine, "blockdev-snapshot", node=top, overlay=node)
    Path(layer).with_suffix(f".{HOW_FAR}").touch()
    os.kill(os.getpid(), signal.SIGKILL)


async def switch_layer(self: DomainMemory, domain: str, layer: str) -> None:
    await self._connection.call(
        "half a switch", lambda c: half_a_switch(c.lookupByName(domain), layer)
    )


DomainMemory.switch_layer = switch_layer  # type: ignore[method-assign]
sys.exit(main())
