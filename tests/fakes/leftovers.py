"""What a driver instance has left on this host. Looks for itself, with the host's own tools."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vmdriver.model.ids import domain_name


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _if_there(*command: str) -> str:
    """ "" where it is gone by now: others on this host come and go."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _namespaces(mark: str) -> list[str]:
    found = []
    for line in _output("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if mark in _if_there("ip", "-n", name, "-o", "link", "show", "lo"):
            found.append(f"namespace {name}")
    return found


def leftovers(instance: str, state: Path) -> list[str]:
    """Taps, namespaces, tables, QEMU processes and sandbox directories of an instance."""
    found = []
    prefix = domain_name(instance, "").rpartition("-")[0]
    for line in _output("ip", "-o", "link").splitlines():
        if f"vmdriver/{instance}/" in line:
            found.append("tap " + line.split(":")[1].strip())
    found += _namespaces(f"vmdriver/{instance}/")
    for line in _output("nft", "list", "tables").splitlines():
        name = line.split()[-1]
        if name.startswith("vmdriver_") and f'"vmdriver/{instance}/' in _if_there(
            "nft", "list", "table", "inet", name
        ):
            found.append("table " + name)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"qemu-system" in command[0] and any(
            f"guest={prefix}-".encode() in part for part in command
        ):
            found.append(f"QEMU {process.name}")
    sandboxes = state / "sandboxes"
    if sandboxes.exists():
        found += [f"directory {path}" for path in sandboxes.iterdir()]
    libvirt = state / "libvirt" / "etc" / "qemu"
    if libvirt.exists():
        found += [f"domain {path.stem}" for path in libvirt.glob("*.xml")]
    return found
