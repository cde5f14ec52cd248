"""Opens QEMU's way to our files.

Our own folder is opened: 0711, so that its files can be reached but not listed. Folders above it
are somebody else's and stay as they are. Where one of them is closed to QEMU's user, the
driver shows its folders at a second place, in a mount namespace of its own: nothing of it is seen
elsewhere on the host, and nothing is left when the last machine has ended. Only the names of
network namespaces stay everybody's.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vmdriver.errors import ConfigError, DriverError
from vmdriver.host import mounts
from vmdriver.host.confined import netns
from vmdriver.host.users import access
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.passage import PLACE, Passage
from vmdriver.storage import files
from vmdriver.storage.layout import Layout

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Folder:
    """A folder of ours, and where QEMU finds it if it cannot walk there. `names`: every way in
    which our own paths begin.
    """

    setting: str
    names: tuple[Path, ...]
    mount: Path


def _folders(layout: Layout) -> list[_Folder]:
    root = layout.root.resolve()
    names = (layout.root,) if layout.root == root else (layout.root, root)
    found = [_Folder("state_dir", names, PLACE / "state")]
    boot = layout.boot.resolve()
    if boot.is_dir() and not boot.is_relative_to(root):  # a link to somewhere else
        found.append(_Folder("state_dir/boot", (boot,), PLACE / "boot"))
    return found


async def open_way_in(layout: Layout, owner: Ownership, *, embedded: bool) -> Passage:
    """What QEMU, run as `owner` or whoever else may pass where that one may, is to call our files.
    With the lock held, in the main thread, before libvirt is used. `embedded`: QEMU will be our
    child; a daemon's QEMU sees no mounts of ours.

    ConfigError, with the folder that is in the way, where there is no way in.
    """
    folders = _folders(layout)
    state = folders[0]
    closed = {f: await _in_the_way(f.names, owner) for f in folders}
    needed = [f for f in folders if closed[f]]
    # A machine that came in through the mount is found by libvirt under that name only.
    if state not in needed and came_in(layout, state.mount):
        needed.insert(0, state)
    if needed and not embedded:
        raise _no_way(needed[0], closed[needed[0]], owner)
    if needed:
        try:
            _mount(needed)
        except OSError as error:
            raise _no_way(needed[0], closed[needed[0]], owner, str(error)) from error
    for folder in needed:
        if await _in_the_way((folder.mount,), owner):  # it is the folder itself
            raise _no_way(folder, str(folder.names[-1]), owner)
    return Passage(_pairs(needed), _pairs(folders))


def _mount(folders: list[_Folder]) -> None:
    # Names of network namespaces are mounts: `vmdriver net`, doctor and `ip netns` are to see them.
    netns.have_place()
    mounts.enter_own_namespace(common=[netns.PLACE])
    for folder in folders:
        for path in (PLACE, folder.mount):
            _have(path)
        mounts.bind(folder.names[-1], folder.mount)


def _have(path: Path) -> None:
    """A directory of ours there, that QEMU's user may pass. What somebody else has put there is
    neither used nor changed.
    """
    if not os.path.lexists(path):
        path.mkdir(mode=0o711, parents=True)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} is in the way: QEMU comes to our files through a directory of ours there",
            resolution="remove it",
        )
    path.chmod(0o711)


def _pairs(folders: list[_Folder]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (str(name), str(folder.mount)) for folder in folders for name in folder.names
    )


async def closed_folder(layout: Layout, owner: Ownership) -> str:
    """The first folder that QEMU's user may not pass on its way to our files; "": none."""
    for folder in _folders(layout):
        if found := await _in_the_way(folder.names, owner):
            return found
    return ""


async def _in_the_way(names: tuple[Path, ...], owner: Ownership) -> str:
    """The first folder on the way to one that goes by these names."""
    chain = [str(p) for name in names for p in (*reversed(name.parents), name)]
    denied = await access.denied(chain, "pass", owner.uid, owner.gid)
    return denied[0] if denied else ""


def came_in(layout: Layout, mount: Path) -> bool:
    """Whether a machine may run that libvirt knows by that name: it keeps a file for each one,
    which says where its sockets are.
    """
    name = f"{mount}/".encode()
    for status in (layout.libvirt / "run" / "qemu").glob("*.xml"):
        try:
            if name in files.read(status):
                return True
        except OSError as error:  # no machine's: dealt with before libvirt is opened
            _log.warning("%s cannot be read: %s", status, error)
    return False


def _no_way(
    folder: _Folder, closed: str, owner: Ownership, detail: str = ""
) -> DriverError:
    return ConfigError(
        f"{folder.setting}: QEMU's user ({owner.uid}:{owner.gid}) cannot reach "
        f"{folder.names[-1]}, because {closed or folder.names[-1]} is closed to it",
        detail=detail,
        resolution=f"chmod o+x {closed or folder.names[-1]}, or choose a folder below /var/lib",
    )
