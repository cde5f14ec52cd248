"""Gets out of the way what should not be where it lies: removes it, or moves it aside and says so.

Nothing that somebody or a crash has left in the state directory may keep a driver from starting:
a dangling link, a file where a directory belongs, a tree that cannot be removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import stat
import struct
from dataclasses import asdict, dataclass
from pathlib import Path

_log = logging.getLogger(__name__)
_NOTES = "notes.jsonl"
_MOST_NAMES = 10_000


_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
"""ioctl_iflags(2), on 64-bit machines."""
_IMMOVABLE = 0x10 | 0x20
"""FS_IMMUTABLE_FL, FS_APPEND_FL: not even root can rename what has one of them."""


@dataclass(frozen=True)
class Note:
    """One thing that was in the way."""

    path: str
    """Where it was."""
    place: str
    """Where it is now: `path` where it could not even be moved."""
    why: str


@dataclass(frozen=True)
class Clearing:
    """Below one state directory. `aside`: where things are put; made when it is needed. Blocking.
    Nothing here raises.
    """

    aside: Path

    def remove(self, path: Path) -> bool:
        """Remove a file or a tree, no link followed; move it aside if that cannot be. Whether
        its place is free now.
        """
        try:
            kind = path.lstat().st_mode
        except FileNotFoundError:
            return True
        except OSError as error:
            return self.displace(path, f"it cannot be looked at ({error.strerror})")
        try:
            if stat.S_ISDIR(kind):
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            return self.displace(path, f"it cannot be removed ({error.strerror})")
        return True

    def displace(self, path: Path, why: str) -> bool:
        """Move something aside, whatever it is. Whether its place is free now."""
        try:
            self._make_aside()
            place = self._free_place(path.name)
            _let_move(path)
            path.rename(place)
        except OSError as error:
            text = f"{why}, nor moved aside ({error.strerror})"
            _log.warning("%s is in the way: %s; it is left alone", path, text)
            self._note(Note(str(path), str(path), text))
            return False
        _log.warning("%s was in the way: %s; it is %s now", path, why, place)
        self._note(Note(str(path), str(place), why))
        return True

    def make_directory(self, path: Path, mode: int = 0o711) -> None:
        """Have a directory there, or a link to one, with that mode. What else is there is moved
        aside. OSError only where there can be none.
        """
        if not path.is_dir():
            if os.path.lexists(path):  # a link that leads nowhere is there, too
                self.displace(path, "a directory belongs there")
            path.mkdir(mode=mode, parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            path.chmod(mode)

    def make_way_for_file(self, path: Path) -> None:
        """Where a file is to be written: what is there and is none is moved aside."""
        if os.path.lexists(path) and not path.is_file():
            self.displace(path, "a file belongs there")

    def notes(self) -> list[Note]:
        """Of what is still in the way, or aside, oldest first."""
        found: dict[str, Note] = {}
        file, lines = self.aside / _NOTES, list[str]()
        with contextlib.suppress(OSError):
            if file.is_file():  # a pipe would be waited for
                lines = file.read_text(errors="replace").splitlines()
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):
                note = Note(**json.loads(line))
                found[note.place] = note
        return [note for note in found.values() if os.path.lexists(note.place)]

    def holds(self, name: str) -> bool:
        """Whether something of that name was moved aside and is still there."""
        if not self.aside.is_dir():
            return False
        return any(n.name.rpartition(".")[0] == name for n in self.aside.iterdir())

    def _make_aside(self) -> None:
        if not self.aside.is_dir() and os.path.lexists(self.aside):
            self.aside.rename(
                self.aside.with_name(f"{self.aside.name}.not-a-directory")
            )
        self.aside.mkdir(mode=0o700, exist_ok=True)

    def _free_place(self, name: str) -> Path:
        places = (self.aside / f"{name}.{number}" for number in range(_MOST_NAMES))
        return next(place for place in places if not os.path.lexists(place))

    def _note(self, note: Note) -> None:
        with contextlib.suppress(OSError):
            if note in self.notes():
                return
            self._make_aside()
            notes = self.aside / _NOTES
            if os.path.lexists(notes) and not notes.is_file():
                notes.rename(self._free_place(_NOTES))
            with notes.open("a") as file:
                file.write(json.dumps(asdict(note)) + "\n")


def _let_move(path: Path) -> None:
    """Take the attributes away that keep a file or a directory where it is (chattr +i, +a). What
    is moved is kept; only for moving are they taken.
    """
    kind = path.lstat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        return
    with contextlib.suppress(OSError):  # a file system without attributes
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            (flags,) = struct.unpack("l", fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8)))
            if flags & _IMMOVABLE:
                wanted = struct.pack("l", flags & ~_IMMOVABLE)
                fcntl.ioctl(descriptor, _SET_FLAGS, wanted)
        finally:
            os.close(descriptor)
