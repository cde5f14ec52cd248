"""Which processes of a driver there are: machines, helper programs, what was left behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One that lived a moment ago."""

    pid: int
    parent: int
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        """The program's; of an interpreter, its script's."""
        names = [
            Path(part).name for part in self.command[:3] if not part.startswith("-")
        ]
        script = names[1:2] if names and names[0].startswith("python") else []
        return (script or names or ["?"])[0]

    @property
    def domain(self) -> str:
        """The libvirt domain whose machine it is, or ""."""
        for part in self.command:
            if part.startswith("guest="):
                return part.removeprefix("guest=").partition(",")[0]
        return ""

    @property
    def is_probe(self) -> bool:
        """libvirt asks what a QEMU can do."""
        return "qemu-system" in self.command[0] and any(
            part.startswith("none") for part in self.command
        )


def processes() -> Iterator[Process]:
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            command = (directory / "cmdline").read_bytes().decode(errors="replace")
            stat = (directory / "stat").read_text().rpartition(")")[2].split()
            parts = tuple(command.rstrip("\0").split("\0"))
            if stat[0] != "Z" and parts[0]:
                yield Process(int(directory.name), int(stat[1]), parts)


def machines(instance: str) -> list[Process]:
    """Every QEMU that runs a machine of ours."""
    return [p for p in processes() if p.domain.startswith(f"{instance}-")]


def helpers(driver: int) -> list[Process]:
    """What a driver has started, and what these have, but for machines."""
    known = {process.pid: process for process in processes()}

    def descends(process: Process | None) -> bool:
        for _ in range(8):
            if process is None:
                return False
            if process.parent == driver:
                return True
            process = known.get(process.parent)
        return False

    return [
        p for p in known.values() if p.pid != driver and not p.domain and descends(p)
    ]


def left(instance: str, paths: list[str]) -> list[str]:
    """Machines, and every process whose command line names one of these paths."""
    found = [f"machine {p.domain} ({p.pid})" for p in machines(instance)]
    for process in processes():
        text = " ".join(process.command)
        named = any(path in text for path in paths)
        if named and not process.domain and process.pid != os.getpid():
            found.append(f"process {process.pid}: {text[:200]}")
    return found


def tell(pid: int, number: int) -> bool:
    """Send a signal to the process that has this id now; False if there is none."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True
