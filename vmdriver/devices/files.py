"""The kernel's files about devices (sysfs, devtmpfs, procfs), below a root. Blocking; OSError.

Names are relative to the root. Nothing else in this folder opens, links or writes.
"""

from __future__ import annotations

import os
from pathlib import Path

from vmdriver.host.open_files import open_elsewhere


class Files:
    """`root`: "/", or a folder of a test that behaves like it (tests/fakes/sysfs.py)."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def there(self, name: str) -> bool:
        """Whether there is anything of that name."""
        return os.path.lexists(self.root / name)

    def read(self, name: str) -> str:
        """A file's text without its last newline; "" where it is missing, or says nothing now."""
        try:
            return (self.root / name).read_text(errors="replace").rstrip("\n")
        except OSError:
            return ""

    def names(self, folder: str) -> list[str]:
        """What is in it, sorted; nothing where it is missing."""
        try:
            return sorted(path.name for path in (self.root / folder).iterdir())
        except OSError:
            return []

    def last(self, link: str) -> str:
        """The last name of where a link leads; "" where there is none."""
        try:
            return (self.root / link).readlink().name
        except OSError:
            return ""

    def place(self, name: str) -> str:
        """Where it really is, links followed."""
        return os.path.realpath(self.root / name)

    def write(self, name: str, text: str) -> None:
        """In one write(2), as sysfs wants it. The file must be there."""
        descriptor = os.open(self.root / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def own(self, name: str, uid: int, gid: int) -> None:
        """The node is that user's and nobody else's from now on."""
        path = self.root / name
        path.chmod(0o600)
        os.chown(path, uid, gid)

    def try_open(self, name: str, *, alone: bool = False) -> None:
        """Open and close it. EBUSY: somebody else has what only one may have, or (`alone`, a block
        device; open(2)) the system uses it.
        """
        flags = os.O_RDONLY | os.O_EXCL if alone else os.O_RDWR
        flags |= os.O_CLOEXEC | os.O_NONBLOCK
        os.close(os.open(self.root / name, flags))

    def open_by_others(self, names: list[str]) -> set[str]:
        """Those of these nodes that another process has open."""
        paths = {str(self.root / name): name for name in names if self.there(name)}
        return {paths[path] for path in open_elsewhere(tuple(paths))}
