"""Whose a machine's files are.

What a machine writes belongs to its own user, 0600. What it only reads is root's: its own frozen
layers, and those of others that it stands on, with an entry for it in their access list; what every
machine may read belongs to the group that all of them run with. Folders are root's, and only
passed through: no machine makes, renames or removes a file.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from vmdriver.host.users import access_list, ownership
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.plan import LaunchPlan, MachineUser
from vmdriver.storage import files
from vmdriver.storage.layout import Layout

_TEMPLATES = "template-"
"""What the names of templates' layers begin with."""


class Possession:
    """Below one state directory. `earlier`: whose the files of machines are that have no user of
    their own, as earlier drivers started them. Blocking. OSError.
    """

    def __init__(self, layout: Layout, earlier: Ownership) -> None:
        self._layout, self._earlier = layout, earlier

    def give(self, path: Path, user: MachineUser | None, mode: int = 0o600) -> None:
        """Have a file be that machine's."""
        if user is None:
            files.give(path, self._earlier, mode)
        else:
            ownership.own(path, user.uid, mode)

    def freeze(self, path: Path, user: MachineUser | None) -> None:
        """Nobody writes to a layer from now on, and that machine goes on reading it."""
        if user is None:
            ownership.freeze(path)
        else:
            ownership.take(path, {user.uid})

    def share(self, path: Path, user: MachineUser | None) -> None:
        """Nobody writes to a layer from now on, and every machine may read it."""
        if user is None:
            ownership.freeze(path)
        else:
            ownership.share(path, user.gid, self._earlier.uid)

    def open_folder(self, folder: Path, user: MachineUser | None) -> None:
        """Have a folder be there, for that machine to pass. The one in which all layers of earlier
        drivers lie is passed by everybody, who finds nothing there that is his to open.
        """
        if user is None or folder == self._layout.layers:
            return
        folder.mkdir(mode=0o700, exist_ok=True)
        ownership.pass_through(folder, user.uid)

    def leave_folder(self, folder: Path) -> None:
        """A layer was removed there: the last one of a machine whose user was given back before, as
        others stood on it, leaves no folder.
        """
        if folder.parent == self._layout.layers and folder.is_dir():
            with suppress(OSError):
                if not access_list.is_there(
                    folder
                ):  # else a machine may pass, and has it
                    folder.rmdir()

    def share_disks(self, gid: int) -> None:
        """Have base disks and supervisors be machines' to read, and nobody else's: earlier drivers
        let everybody on the host do that. What is none is left alone.
        """
        bases = (self._layout.images / "disks").glob("*.ext4")
        for path in (*bases, *self._layout.supervisors.glob("*.img")):
            with suppress(OSError):
                ownership.share(path, gid, self._earlier.uid)

    def let_in(self, plan: LaunchPlan) -> None:
        """Have every file of a machine be there for it, and for nobody else: before each start,
        since files may be of an earlier driver, or on layers of another sandbox.
        """
        user, root = plan.user, plan.disk("root")
        if user is None:
            return
        small = [plan.disk("seed").path, plan.disk("status").path, plan.console]
        for folder in {Path(path).parent for path in (*small, root.path)}:
            self.open_folder(folder, user)
        with suppress(FileNotFoundError):  # it is made at this moment, or in one
            ownership.own(Path(root.path), user.uid)
        for path in map(Path, root.backing[:-1]):
            self._let_read(path, user)
        for shared in (root.backing[-1], plan.disk("supervisor").path):
            ownership.share(Path(shared), user.gid, self._earlier.uid)

    def _let_read(self, layer: Path, user: MachineUser) -> None:
        flat = layer.parent == self._layout.layers
        if flat and layer.name.startswith(_TEMPLATES):
            ownership.share(layer, user.gid, self._earlier.uid)
            return
        # A machine that an earlier driver started may stand on it, and run still.
        owner = layer.stat().st_uid
        former = {owner} & {self._earlier.uid}
        ownership.take(layer, {user.uid, *former})
        if not flat:
            ownership.pass_through(layer.parent, user.uid)
