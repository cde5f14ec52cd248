"""What a machine's process has of the host's memory, by what it is, and which of its guest's pages are its own."""

from __future__ import annotations

import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PAGE = 4096
GUEST, CODE = "guest's memory", "translated code"
HEAP, PROGRAMS = "QEMU's heap", "programs and libraries"
PARTS = (GUEST, HEAP, PROGRAMS, CODE)
_HEAD = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")
CAUSES = (  # the first that fits
    ("free again", 1 << 10),
    ("processes", 1 << 12),
    ("page tables", 1 << 26),
    ("kernel's objects", 1 << 7),
    ("files", (1 << 5) | (1 << 11)),
)
"""Flags of a page in the words of a guest's kernel (its Documentation/admin-guide/mm/pagemap.rst)."""
FLAGS = """
import struct, sys
flags = open("/proc/kpageflags", "rb").read(8 * int(sys.argv[1]))
print(b"".join(b"%x\\n" % flag for flag, in struct.iter_unpack("<Q", flags)).decode())
"""
"""A program that prints them in a guest, given how many pages."""

KERNEL = ("SUnreclaim", "PageTables", "KernelStack", "Percpu")
"""What the host's kernel has for them, in /proc/meminfo."""


@dataclass
class Area:
    """One of a process's address space. KiB of it that are its share (PSS), and that are its alone."""

    begin: int
    end: int
    rights: str
    name: str
    pss_kib: int = 0
    own_kib: int = 0

    @property
    def mib(self) -> int:
        return (self.end - self.begin) >> 20


def _areas(pid: int) -> list[Area]:
    found: list[Area] = []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if _HEAD.match(line):
            where, rights, _, _, _, *name = line.split(None, 5)
            begin, end = (int(text, 16) for text in where.split("-"))
            found.append(Area(begin, end, rights, name[0] if name else ""))
        elif line.startswith("Pss:"):
            found[-1].pss_kib = int(line.split()[1])
        elif line.startswith(("Private_Clean:", "Private_Dirty:")):
            found[-1].own_kib += int(line.split()[1])
    return found


def _part(area: Area, memory_mib: int) -> str:
    if area.mib >= memory_mib and "x" not in area.rights:
        return GUEST
    if not area.name and "x" in area.rights:
        return CODE
    return PROGRAMS if area.name.startswith("/") else HEAP


@dataclass(frozen=True)
class Resident:
    """MiB of a machine's process by part."""

    pss: Mapping[str, float]
    """Its share: what several have in common once in all."""
    own: Mapping[str, float]
    """What goes when it goes."""

    def without_code(self) -> float:
        """Its share, but for what TCG has translated."""
        return sum(mib for part, mib in self.pss.items() if part != CODE)


def resident(pid: int, memory_mib: int) -> Resident:
    """Of the QEMU of that guest size."""
    pss, own = (dict.fromkeys(PARTS, 0.0) for _ in range(2))
    for area in _areas(pid):
        part = _part(area, memory_mib)
        pss[part] += area.pss_kib / 1024
        own[part] += area.own_kib / 1024
    return Resident(pss, own)


def written_to(pid: int, memory_mib: int) -> set[int]:
    """Numbers of the guest's pages that are the machine's own, and no more its template's."""
    large = [area for area in _areas(pid) if _part(area, memory_mib) == GUEST]
    # libvirt has QEMU map memory of its own beside it, which nobody uses.
    ram = max(large, key=lambda area: area.pss_kib)
    with Path(f"/proc/{pid}/pagemap").open("rb") as file:
        file.seek(ram.begin // PAGE * 8)
        entries = struct.iter_unpack("<Q", file.read((ram.end - ram.begin) // PAGE * 8))
        return {n for n, (e,) in enumerate(entries) if e >> 63 & 1 and not e >> 61 & 1}


def causes(pages: set[int], flags: list[int]) -> dict[str, float]:
    """MiB of those pages by what the guest's kernel has in them by now."""
    found: Counter[str] = Counter()
    for page in pages:
        flag = flags[page] if page < len(flags) else 0
        name = next((name for name, bits in CAUSES if flag & bits), "kernel, the rest")
        found[name] += 1
    return {name: count * PAGE / 2**20 for name, count in found.most_common()}


def kernel_mib() -> float:
    """Of the whole host; what others do meanwhile is in it."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    values = dict(line.split(":") for line in lines)
    return sum(int(values[name].split()[0]) for name in KERNEL) / 1024


def pss_mib(pid: int) -> float:
    """A process's share."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"Pss:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


def descendants(pid: int) -> Iterator[int]:
    """All that a process has begun and that is its child still, and theirs."""
    children: dict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, tail = stat.read_text().rsplit(")", 1)
        except OSError:
            continue  # it has ended
        children[int(tail.split()[1])].append(int(head.split(" ", 1)[0]))
    left = children[pid]
    while left:
        found = left.pop()
        yield found
        left += children[found]
