"""What the real libvirt and the real QEMU make of a machine with a device, as far as that goes without one."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from tests.unit.test_plan_rendering import TCG, with_devices
from vmdriver.host import facts
from vmdriver.hypervisor.domain_xml import render
from vmdriver.hypervisor.wall.box import Box, arguments, of_plan
from vmdriver.hypervisor.wall.boxes import find_ground
from vmdriver.model.passage import DIRECT
from vmdriver.model.plan import LaunchPlan

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="libvirt's own driver")


def defined(embedded: Any, plan: LaunchPlan) -> tuple[Xml.Element, str]:
    """As libvirt understands it, and QEMU's command line."""
    domain = embedded.defineXML(render(plan, TCG, "vmdriver/test/s1"))
    try:
        text = domain.XMLDesc()
        return Xml.fromstring(text), embedded.domainXMLToNative("qemu-argv", text)
    finally:
        domain.undefine()


def test_libvirt_puts_each_device_behind_a_port_of_its_own(embedded: Any) -> None:
    machine, command = defined(embedded, with_devices(288, 256))
    ports = {
        int(port.get("index", ""))
        for port in machine.findall("devices/controller[@model='pcie-root-port']")
    }
    devices = machine.findall("devices/hostdev[@managed='no']")
    buses = [int(device.find("address").get("bus"), 16) for device in devices]  # type: ignore[union-attr, arg-type]
    assert len(set(buses)) == 2
    assert set(buses) <= ports
    for address in ("0000:3b:00.0", "0000:3c:00.0"):
        assert f'"driver":"vfio-pci","host":"{address}"' in command
    assert "0000:3b:00.1" not in command, "what goes along is no guest's"
    assert "pci-hole64-size" not in command


def test_libvirt_gives_devices_the_room_that_they_need(embedded: Any) -> None:
    _, command = defined(embedded, with_devices(64 * 1024))
    assert f"pci-hole64-size={128 * 2**20}K" in command


def test_qemu_finds_a_devices_group_in_its_box_and_no_other_device() -> None:
    """It comes as far as the group's node, which is not there: no more of sysfs is asked for before that."""
    box = of_plan(with_devices(288), DIRECT, 0)
    box = dataclasses.replace(Box(), links=box.links)
    words = arguments(box, dataclasses.replace(find_ground(), no_nesting=False))
    qemu = f"/usr/bin/qemu-system-{facts.machine_architecture()}"
    options = ("-M", "q35", "-display", "none", "-nodefaults", "-S")
    port = ("-device", "pcie-root-port,id=p1")
    for address, says in (
        ("0000:3b:00.0", "/dev/vfio/7"),
        ("0000:3c:00.0", "no such host device"),
    ):
        device = ("-device", f"vfio-pci,host={address},bus=p1")
        done = subprocess.run(
            ["bwrap", *words, "--", qemu, *options, *port, *device],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 1, done.stderr
        assert says in done.stderr
