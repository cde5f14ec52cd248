"""What a QEMU has used of this host, as the kernel says: libvirt would ask the QEMU itself, and
wait for one that hangs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from vmdriver.hypervisor import qemu_process
from vmdriver.model.usage import Usage

_TICKS = os.sysconf("SC_CLK_TCK")


class HostUsage:
    """Reads /proc. `directory`: where libvirt keeps process ids."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def of(self, taps: Mapping[str, str]) -> dict[str, Usage]:
        """By domain, given the name of each one's tap; those that have no QEMU are left out.
        Blocking: some milliseconds for each machine, for its memory is added up page by page.
        """
        found = {}
        for domain, tap in taps.items():
            pid = qemu_process.pid_of(self._directory, domain)
            usage = None if pid is None else _of(pid, tap)
            if usage is not None:
                found[domain] = usage
        return found


def _of(pid: int, tap: str) -> Usage | None:
    """None: it has ended meanwhile."""
    process = Path(f"/proc/{pid}")
    try:
        # proc(5): after the name in brackets the fields are the third and those that follow.
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        return Usage(
            run=f"{pid}@{fields[19]}",
            cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS,
            **_memory(process),
            **_block(process),
            **_network(process, tap),
        )
    except (OSError, ValueError, LookupError):
        return None


def _memory(process: Path) -> dict[str, int]:
    """proc(5): lines such as `Private_Dirty:   4 kB`, below one that says which addresses."""
    size = {}
    for line in (process / "smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        size[name] = int(value.split()[0]) * 1024
    own = size["Private_Clean"] + size["Private_Dirty"]
    return {"memory": size["Pss"], "own": own, "shared": size["Rss"] - own}


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
