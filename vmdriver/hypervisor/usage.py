"""What a QEMU has used of this host, as the kernel says: libvirt would ask the QEMU itself, and
wait for one that hangs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vmdriver.hypervisor import qemu_process
from vmdriver.model.usage import Usage

_TICKS = os.sysconf("SC_CLK_TCK")


class Memory(NamedTuple):
    """As in Usage."""

    memory: int
    own: int
    shared: int


class HostUsage:
    """Reads /proc. `directory`: where libvirt keeps process ids. `memory_s`: how long one look may
    add up memory, which is done page by page and takes milliseconds for each machine; all else
    takes a tenth of one.
    """

    def __init__(self, directory: Path, memory_s: float = 0.2) -> None:
        self._directory, self._memory_s = directory, memory_s
        self._memory: dict[str, Memory] = {}
        """By run; whose was added up longest ago first."""

    def of(self, taps: Mapping[str, str]) -> dict[str, Usage]:
        """By domain, given the name of each one's tap; those that have no QEMU are left out.
        Memory is as at an earlier look where there are too many to add up in one. Blocking.
        """
        found = {}
        for domain, tap in taps.items():
            pid = qemu_process.pid_of(self._directory, domain)
            use = None if pid is None else _of(pid, tap)
            if pid is not None and use is not None:
                found[domain] = pid, use
        self._add_up({use.run: pid for pid, use in found.values()})
        return {
            domain: replace(use, **self._memory[use.run]._asdict())
            for domain, (_, use) in found.items()
            if use.run in self._memory
        }

    def _add_up(self, pids: Mapping[str, int]) -> None:
        """First whose never was, however long that takes; the others in turn."""
        known = [run for run in self._memory if run in pids]
        self._memory = {run: self._memory[run] for run in known}
        until = time.monotonic() + self._memory_s
        for run in [*(run for run in pids if run not in self._memory), *known]:
            if run in self._memory and time.monotonic() > until:
                return
            before = self._memory.pop(run, None)
            now = memory_of(pids[run]) or before
            if now is not None:
                self._memory[run] = now


def _of(pid: int, tap: str) -> Usage | None:
    """All but its memory. None: it has ended meanwhile."""
    process = Path(f"/proc/{pid}")
    try:
        # proc(5): after the name in brackets the fields are the third and those that follow.
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        return Usage(
            run=f"{pid}@{fields[19]}",
            begun_s=int(fields[19]) / _TICKS,
            cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS,
            **_block(process),
            **_network(process, tap),
        )
    except (OSError, ValueError, LookupError):
        return None


def memory_of(pid: int) -> Memory | None:
    """proc(5): lines such as `Private_Dirty:   4 kB`, below one that says which addresses. None: it
    has ended meanwhile.
    """
    size = {}
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        for line in text.splitlines()[1:]:
            name, _, value = line.partition(":")
            size[name] = int(value.split()[0]) * 1024
        own = size["Private_Clean"] + size["Private_Dirty"]
        return Memory(size["Pss"], own, size["Rss"] - own)
    except (OSError, ValueError, LookupError):
        return None


def _block(process: Path) -> dict[str, int]:
    lines = (process / "io").read_text().splitlines()
    values = dict(line.split(": ") for line in lines)
    return {"read": int(values["read_bytes"]), "written": int(values["write_bytes"])}


def _network(process: Path, tap: str) -> dict[str, int]:
    """Of the link of that name in the network namespace that it is in: its tap, or where libvirt
    runs outside, the host's end of the pair, which has the same name and the same directions.
    """
    for line in (process / "net" / "dev").read_text().splitlines()[2:]:
        name, _, rest = line.partition(":")
        if name.strip() == tap:
            numbers = rest.split()
            return {"received": int(numbers[8]), "sent": int(numbers[0])}
    return {}
