"""The box around a machine's QEMU, as arguments of bwrap(1) and limits. Pure; `boxed-qemu` makes it
so, `boxes.py` writes the files that it reads.

In there are /usr, the machine's own files under the names that libvirt tells QEMU, three or four
devices, and those of the host's that are the machine's own; where it has folders of the host, the
sockets of the programs that read them. There is no /proc, no /sys (but for a link that names the
group of such a device), no other file of this host. What libvirt opens itself
(tap, monitor, console, the agent's socket, a stream of memory) comes to QEMU as a descriptor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

from vmdriver.host import out_of_memory
from vmdriver.hypervisor import passed_devices, shared_folders
from vmdriver.model.passage import Passage
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.wall import WallPart

BOX_PARTS: tuple[WallPart, ...] = ("box", "seccomp", "limits")
"""The parts of the wall that are made here."""
_NAMESPACES = (
    *("--unshare-user", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"),
    *("--cap-add", "CAP_SYS_RESOURCE"),
)
"""The capability is the holder's, to forbid further user namespaces; QEMU has none."""
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_KVM = "/dev/kvm"
_NESTED = "/proc/sys/user/max_user_namespaces"
_GIB = 2**30
_THREADS = 256
"""QEMU's own: 64 that wait for disks, and a few."""
_OPEN_FILES = 1024


@dataclass(frozen=True)
class Ground:
    """What of the host every box stands on. Found out once (boxes.py)."""

    bwrap: str
    root: tuple[str, ...] = ()
    """bwrap arguments for /bin, /lib and the like: links or folders, as the host has them."""
    no_nesting: bool = True
    """Whether user namespaces can be forbidden inside."""


@dataclass(frozen=True)
class Box:
    """What one QEMU gets. Paths as QEMU names them."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    """Files, and folders in which files come to be while it runs."""
    kvm: bool = False
    memory_mib: int = 0
    file_bytes: int = 0
    """The largest file that it has reason to write."""
    threads: int | None = None
    """None: its user is not its own, and others' threads would count."""
    parts: tuple[WallPart, ...] = BOX_PARTS
    apart: bool = False
    """In a network namespace without anything: it is not begun in its machine's."""
    nodes: tuple[str, ...] = ()
    """Of the host's devices that are its own."""
    links: tuple[tuple[str, str], ...] = ()
    """Where each leads, and where it is: what it is told of these devices."""
    mapped_mib: int = 0
    """Memory of theirs."""
    locked_mib: int | None = None
    """Most that it may lock. None: no more than anybody."""
    sockets: tuple[tuple[str, str], ...] = ()
    """Of programs that give it folders of the host: where each is, and where it is in there."""


def of_plan(
    plan: LaunchPlan, passage: Passage, disk_bytes: int, more: Iterable[str] = ()
) -> Box:
    """The box of a plan's machine. `disk_bytes`: size that its root disk has for the guest.
    `more`: files that it reads besides those of its plan.
    """
    root = plan.disk("root")
    reads = [plan.kernel, plan.initramfs, *more, *root.backing]
    writes = [str(PurePath(root.path).parent)]
    for disk in plan.disks:
        if disk.role != "root":
            (reads if disk.read_only else writes).append(disk.path)
    memory = plan.memory_mib * 2**20
    volumes = [plan.disk(volume.role).size_mib for volume in plan.volumes]
    disk_bytes = max(disk_bytes, *(size * 2**20 for size in volumes), 0)
    return Box(
        reads=tuple(map(passage.theirs, reads)),
        writes=tuple(map(passage.theirs, writes)),
        kvm=plan.accelerator == "kvm",
        nodes=passed_devices.nodes(plan),
        links=passed_devices.links(plan),
        mapped_mib=passed_devices.bar_mib(plan),
        locked_mib=passed_devices.locked_mib(plan),
        sockets=shared_folders.sockets(plan, passage),
        apart=plan.network.moved,
        memory_mib=plan.memory_mib,
        file_bytes=max(disk_bytes + disk_bytes // 4, memory) + _GIB,
        threads=None if plan.user is None else _THREADS + plan.vcpus,
        parts=tuple(part for part in BOX_PARTS if part in plan.wall),
    )


def arguments(box: Box, ground: Ground) -> tuple[str, ...]:
    """bwrap's, but for libvirt's key, whose place is known only when libvirt begins QEMU."""
    return (
        *_NAMESPACES,
        *(("--unshare-net",) if box.apart else ()),
        *("--ro-bind", "/usr", "/usr"),
        *ground.root,
        *("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"),
        *("--tmpfs", "/dev"),
        *_bound("--dev-bind", (*_DEVICES, *((_KVM,) if box.kvm else ()), *box.nodes)),
        *("--remount-ro", "/dev"),
        *_ways_to(place for _, place in box.links),
        *(word for link in box.links for word in ("--symlink", *link)),
        *(("--bind", _NESTED, "/user-namespaces") if ground.no_nesting else ()),
        *_ways_to((*box.writes, *box.reads)),
        # A folder first: what may only be read in there is laid over it.
        *_bound("--bind", box.writes),
        *_bound("--ro-bind", box.reads),
        *_ways_to(place for _, place in box.sockets),
        *(word for socket in box.sockets for word in ("--ro-bind", *socket)),
    )


def in_box(parts: Iterable[WallPart]) -> bool:
    """Whether these parts need `boxed-qemu`."""
    return not set(BOX_PARTS).isdisjoint(parts)


def _ways_to(paths: Iterable[str]) -> Iterator[str]:
    """The folders on the way, which can be passed, not listed. Outer ones first."""
    chains = [tuple(reversed(PurePath(path).parents))[1:] for path in paths]
    for folder in dict.fromkeys(folder for chain in chains for folder in chain):
        yield from ("--perms", "0111", "--dir", str(folder))


def _bound(option: str, paths: Iterable[str]) -> Iterator[str]:
    for path in dict.fromkeys(paths):
        yield from (option, path, path)


def rules(box: Box) -> str:
    """The rest, a rule a line, in the units of sh's ulimit."""
    lines = [f"die-before {out_of_memory.MACHINES}"]
    if "limits" in box.parts:
        # Address space: RAM, the object that libvirt has QEMU make beside a mapped one, what is
        # translated on TCG (1 GiB), stacks and malloc's arenas.
        lines += [
            "-c 0",
            f"-f {box.file_bytes // 512}",
            f"-n {_OPEN_FILES}",
            f"-v {(2 * box.memory_mib + box.mapped_mib + 8 * 1024) * 1024}",
        ]
        lines += [] if box.locked_mib is None else [f"-l {box.locked_mib * 1024}"]
        lines += [] if box.threads is None else [f"-p {box.threads}"]
    if "seccomp" in box.parts:
        lines.append("filtered")
    if "box" not in box.parts:
        lines.append("unboxed")
    elif box.apart:
        lines.append("apart")
    return "".join(f"{line}\n" for line in lines)
