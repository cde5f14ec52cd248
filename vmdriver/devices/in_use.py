"""What the host does with a PCI function: disks that are mounted, networks that lead somewhere,
graphics that somebody looks at. Taken away, it would hurt the host, or never come back: a driver
waits for its last user.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from vmdriver.devices.files import Files

_UNREACHABLE = "00000000"
_V6_LOCAL = ("fe8", "fe9", "fea", "feb", "ff")


def used_by(files: Files, device: str) -> str:
    """The first thing of it that is in use, for people; "" where nothing is known to be. `device`:
    its folder in sysfs.
    """
    below = files.place(device) + "/"
    for found in (
        _disks(files, below),
        _networks(files, below),
        _graphics(files, device),
    ):
        text = next(found, "")
        if text:
            return text
    return ""


def _of_class(files: Files, kind: str, below: str) -> Iterator[str]:
    """Names of that class that are this function's."""
    for name in files.names(f"sys/class/{kind}"):
        if (files.place(f"sys/class/{kind}/{name}") + "/").startswith(below):
            yield name


def _disks(files: Files, below: str) -> Iterator[str]:
    names = list(_of_class(files, "block", below))
    if not names:
        return
    mounts = _mounts(files)
    swaps = [line.split()[:1] for line in files.read("proc/swaps").splitlines()[1:]]
    for name in names:
        number = files.read(f"sys/class/block/{name}/dev")
        for known in (number, f"/dev/{name}"):
            if known in mounts:
                yield f"{name} is mounted at {mounts[known]}"
        if [f"/dev/{name}"] in swaps:
            yield f"the host swaps to {name}"
        for holder in files.names(f"sys/class/block/{name}/holders"):
            yield f"{holder} stands on {name}"
        if _is_held(files, f"dev/{name}"):
            yield f"something of the host holds {name}"


def _mounts(files: Files) -> dict[str, str]:
    """Where what is mounted, by its number and by its source's name (proc(5)): file systems of
    several disks have a number of their own.
    """
    found: dict[str, str] = {}
    for line in files.read("proc/self/mountinfo").splitlines():
        words = line.split(" ")
        if len(words) > 6 and "-" in words:
            source = words[words.index("-") + 2]
            found |= {words[2]: words[4], source: words[4]}
    return found


def _is_held(files: Files, node: str) -> bool:
    """The kernel's own word: it knows file systems, device mapper, md, swap and ZFS."""
    try:
        files.try_open(node, alone=True)
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _networks(files: Files, below: str) -> Iterator[str]:
    names = list(_of_class(files, "net", below))
    if not names:
        return
    routed = _routed(files)
    for name in names:
        if name in routed:
            yield f"the host's {routed[name]} leads through {name}"
        for entry in files.names(f"sys/class/net/{name}"):
            if entry == "master" or entry.startswith("upper_"):
                above = files.last(f"sys/class/net/{name}/{entry}")
                yield f"{above or entry.removeprefix('upper_')} stands on {name}"


def _routed(files: Files) -> dict[str, str]:
    """What leads through each interface; a default route before others."""
    found: dict[str, str] = {}
    for line in files.read("proc/net/route").splitlines()[1:]:
        words = line.split()
        if len(words) < 8:
            continue
        if words[1] == words[7] == _UNREACHABLE:
            found[words[0]] = "default route"
        else:
            found.setdefault(words[0], "route to its network")
    for line in files.read("proc/net/ipv6_route").splitlines():
        words = line.split()
        if len(words) < 10 or words[0].startswith(_V6_LOCAL):
            continue
        if words[1] == "00":
            found[words[9]] = "default route"
        else:
            found.setdefault(words[9], "route to its network")
    return found


def _graphics(files: Files, device: str) -> Iterator[str]:
    if files.read(f"{device}/boot_vga") == "1":
        yield "it shows the host's console"
    nodes = [
        f"dev/dri/{name}"
        for name in files.names(f"{device}/drm")
        if name.startswith(("card", "renderD"))
    ]
    nodes += _nvidia(files, device.rpartition("/")[2])
    for node in sorted(files.open_by_others(nodes)):
        yield f"a process has /{node} open"


def _nvidia(files: Files, address: str) -> list[str]:
    """Its node, as NVIDIA's own driver numbers it."""
    text = files.read(f"proc/driver/nvidia/gpus/{address}/information")
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "Device Minor" and value.strip().isdecimal():
            return [f"dev/nvidia{value.strip()}"]
    return []
