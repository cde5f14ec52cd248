"""Where machines' cgroups may be: a folder of cgroup v2 that is ours to change, or why there is
none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmdriver.hypervisor.wall.cgroup_limits import NEEDED

_PROC = Path("/proc/self")
_SYSTEMD = Path("/run/systemd/system")
_DELEGATED = ("trusted.delegate", "user.delegate")
"""What systemd marks a cgroup with that it leaves to a service (its docs/CGROUP_DELEGATION.md)."""


@dataclass(frozen=True)
class Place:
    """`folder`: None if there is none, and `why` says so."""

    folder: Path | None
    why: str = ""
    is_root: bool = False
    """The host's first: the only one in which processes may be beside cgroups with limits."""


def mounted_at(mounts: str) -> Path | None:
    """Where cgroup v2 is, by the text of /proc/self/mounts."""
    lines = (line.split() for line in mounts.splitlines())
    found = [words[1] for words in lines if len(words) > 2 and words[2] == "cgroup2"]
    return Path(found[0]) if found else None


def own_path(cgroups: str) -> str:
    """This process's cgroup below the mount, by the text of /proc/self/cgroup."""
    lines = (line.split(":", 2) for line in cgroups.splitlines())
    return next((w[2] for w in lines if len(w) == 3 and w[0] == "0"), "")


def find_place(wanted: str) -> Place:
    """`wanted`: the operator's word, "auto", "off" or a folder. Reads files of the kernel's."""
    try:
        mounts, cgroups = (_PROC / name for name in ("mounts", "cgroup"))
        leaves = _is_delegated if _SYSTEMD.is_dir() else None
        return find(wanted, mounts.read_text(), cgroups.read_text(), leaves)
    except OSError as error:
        return Place(None, f"{error.filename} cannot be read: {error.strerror}")


def find(
    wanted: str, mounts: str, cgroups: str, leaves: Callable[[Path], bool] | None
) -> Place:
    """The same from the text of these files of /proc/self. `leaves`: whether systemd leaves a
    folder to others; None: there is no systemd.
    """
    if wanted == "off":
        return Place(None, "machine_cgroup is off")
    mount = mounted_at(mounts)
    if mount is None:
        return Place(None, "cgroup v2 is not mounted")
    if wanted != "auto":
        return _usable(Path(wanted))
    own = own_path(cgroups)
    if not own.startswith("/") or "/.." in own:
        return Place(None, "the driver's own cgroup cannot be made out")
    folder = mount / own.strip("/")
    if leaves is None:
        return _usable(folder)
    left = [place for place in (folder.parent, folder) if leaves(place)]
    if not left:
        text = "systemd does not leave the driver's cgroup to it"
        return Place(None, f"{text} (Delegate=yes, DelegateSubgroup=driver)")
    return _usable(left[0])


def _is_delegated(folder: Path) -> bool:
    for name in _DELEGATED:
        try:
            if os.getxattr(folder, name) == b"1":
                return True
        except OSError:
            continue
    return False


def _usable(folder: Path) -> Place:
    try:
        there = frozenset((folder / "cgroup.controllers").read_text().split())
    except OSError as error:
        return Place(None, f"{folder} is no folder of cgroup v2: {error.strerror}")
    missing = sorted(NEEDED - there)
    if missing:
        return Place(None, f"{folder} has no controller {', '.join(missing)}")
    if not os.access(folder, os.W_OK):
        return Place(None, f"{folder} cannot be written to")
    # Only the host's first has no type, also where a container sees another as "/".
    return Place(folder, is_root=not (folder / "cgroup.type").exists())
