"""The files that `boxed-qemu` reads, and what of this host they depend on."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shlex
import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vmdriver.errors import StorageError
from vmdriver.host import console_file, facts, process
from vmdriver.host.plain_file import read_start
from vmdriver.hypervisor.wall import box, libraries
from vmdriver.hypervisor.wall.box import Box, Ground
from vmdriver.model.passage import DIRECT, Passage
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.wall import WallPart

_log = logging.getLogger(__name__)
_PROGRAM = "boxed-qemu"
_SOURCE = Path(__file__).with_name("boxed_qemu.c")
_SETTINGS, _SETTINGS_BYTES = b"@vmdriver-settings@", 16384
"""Where a compiled program has its settings, and how much room for them."""
_FOLDER = "boxes"
_QCOW2 = b"QFI\xfb"
_QCOW2_SIZE = struct.Struct(">4s20xQ")
"""Magic and virtual size of a qcow2 header (QEMU's docs/interop/qcow2.txt)."""


def find_ground() -> Ground:
    """What of this host every box stands on."""
    found = shutil.which("bwrap", path=process.ENVIRONMENT["PATH"])
    words: list[str] = []
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/") / name
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    return Ground(found or "/usr/bin/bwrap", tuple(words))


@dataclass(eq=False)
class Boxes:
    """Of one driver's machines. `root`: libvirt's folder in the state directory, as we name it.
    Blocking; StorageError.
    """

    root: Path
    passage: Passage = DIRECT
    ground: Ground = field(default_factory=find_ground)
    parts: tuple[WallPart, ...] = ()
    """What this host can give, once that has been tried (box_trial.py)."""
    compiled: Path | None = None
    """The program that begins QEMU, without its settings. None: the shell's is taken."""
    _program_known: object = field(default=None, init=False)
    """What it was made of, and which file it is."""

    async def compile(self) -> None:
        """Have machines be begun by a program that begins few others. CommandError, OSError: this
        host cannot make it.
        """
        place = libraries.program_place_of(_SOURCE, self.root)
        if not place.exists():
            await libraries.make_program(_SOURCE, place, 0o700)
        self.compiled = place
        with contextlib.suppress(OSError):  # the next driver tries again
            libraries.remove_others(_SOURCE, place)

    def make_for(
        self, plan: LaunchPlan, emulator: str, more: Iterable[str] = ()
    ) -> str:
        """Have a plan's machine be begun in its box. The program that libvirt is to take for the
        emulator. `more`: files that it reads besides those of its plan.
        """
        wanted = box.of_plan(plan, self.passage, disk_bytes(plan), more)
        if "limits" in wanted.parts:
            _begin_console(Path(plan.console), wanted.file_bytes)
        return self.make(plan.domain, emulator, wanted)

    def make(self, domain: str, emulator: str, wanted: Box) -> str:
        """The same for any machine. Whoever knows its name may read it: it says what QEMU's command
        line says.
        """
        words = box.arguments(wanted, self.ground)
        folder = self.root / _FOLDER
        try:
            folder.mkdir(mode=0o711, exist_ok=True)
            _write(folder / domain, _nul_ended(words), 0o644)
            text = box.rules(wanted)
            _write(folder / f"{domain}.rules", text.encode(), 0o644)
            return self._program(emulator)
        except OSError as error:
            raise StorageError(
                f"the machine's box cannot be written: {error.strerror or error}",
                detail=str(error),
                resolution="free space in the state directory",
            ) from error

    def _program(self, emulator: str) -> str:
        """As QEMU's user names it. It is written anew when the emulator has changed: libvirt asks
        a program what it can do once for each of its versions.
        """
        path = self.root / _PROGRAM
        folder = self.passage.theirs(str(self.root / _FOLDER))
        identity = facts.file_identity(emulator)
        settings = (emulator, folder, self.ground.bwrap, identity)
        known = (self.compiled, settings, _identity(path))
        if self._program_known != known:
            wanted = self._whole_program(settings)
            if _content(path) != wanted:
                _write(path, wanted, 0o755)
            self._program_known = (self.compiled, settings, _identity(path))
        return self.passage.theirs(str(path))

    def _whole_program(self, settings: tuple[str, str, str, str]) -> bytes:
        """With its settings; the shell's, where what was compiled is not there any more."""
        if self.compiled is not None:
            try:
                return _with(settings, self.compiled.read_bytes())
            except OSError as error:
                _log.warning("QEMU is begun by a program of the shell's: %s", error)
                self.compiled = None
        return _for_the_shell(*settings)

    def remove(self, domain: str) -> None:
        """No machine of that name is begun any more. OSError."""
        for name in (f"{domain}.rules", domain):
            (self.root / _FOLDER / name).unlink(missing_ok=True)

    def remove_or_tell(self, domain: str) -> None:
        """The same for one that has ended."""
        try:
            self.remove(domain)
        except OSError as error:
            raise StorageError(
                f"the box of {domain} cannot be removed: {error.strerror or error}",
                detail=str(error),
            ) from error


def _for_the_shell(emulator: str, folder: str, bwrap: str, identity: str) -> bytes:
    text = Path(__file__).with_name(_PROGRAM).read_text()
    for name, value in (
        ("emulator", shlex.quote(emulator)),
        ("boxes", shlex.quote(folder)),
        ("bwrap", shlex.quote(bwrap)),
        ("machine", shlex.quote(os.uname().machine)),
        ("identity", identity),
    ):
        text = text.replace(f"@{name}@", value)
    return text.encode()


def _with(settings: tuple[str, ...], program: bytes) -> bytes:
    """A compiled program with its settings. OSError: they do not fit, or it has none."""
    found = _nul_ended(settings)
    begin = program.find(_SETTINGS)
    if begin < 0 or len(found) >= _SETTINGS_BYTES:
        raise OSError(errno.ENAMETOOLONG, "its settings have no room", _PROGRAM)
    end = begin + _SETTINGS_BYTES
    return program[:begin] + found.ljust(_SETTINGS_BYTES, b"\0") + program[end:]


def _begin_console(path: Path, ceiling: int) -> None:
    """However much its guest prints while no driver runs, it ends at the largest file's size."""
    try:
        console_file.begin_below(path, ceiling)
    except FileNotFoundError:
        return  # somebody has removed it: libvirt makes another one
    except OSError as error:
        raise StorageError(
            f"the machine's console cannot be bounded: {error.strerror or error}",
            detail=str(error),
            resolution="free space in the state directory",
        ) from error


def disk_bytes(plan: LaunchPlan) -> int:
    """Size that the root disk has for the guest: the largest that one of its layers says, or that
    a new one would get.
    """
    root = plan.disk("root")
    sizes = [_virtual_bytes(path) for path in (root.path, *root.backing)]
    return max(root.size_mib * 2**20, *sizes)


def _virtual_bytes(path: str) -> int:
    """0 for what is not there, or no file."""
    with contextlib.suppress(OSError):
        start = read_start(path, _QCOW2_SIZE.size)
        if len(start) == _QCOW2_SIZE.size and start.startswith(_QCOW2):
            return int(_QCOW2_SIZE.unpack(start)[1])
        return Path(path).stat().st_size
    return 0


def _nul_ended(words: tuple[str, ...]) -> bytes:
    return b"".join(os.fsencode(word) + b"\0" for word in words)


def _identity(path: Path) -> tuple[int, ...]:
    """Another one, once anybody has changed the file."""
    try:
        info = path.lstat()
    except OSError:
        return ()
    return info.st_dev, info.st_ino, info.st_size, info.st_ctime_ns, info.st_mode


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all: libvirt may begin it at any moment."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
    part.replace(path)
