"""Boxes for programs of ours that read what a guest, a QEMU, an image or a registry wrote.

A box is a value; `process.run(…, box=…)` puts a program into it. In it there are: `/usr`,
read-only; the files and folders that it names, under their own paths; a `/dev` with null, zero and
random; a `/proc` of itself alone. It has namespaces of its own for mounts, processes, IPC, host
name and, unless it says otherwise, the network. It ends with the driver, by SIGKILL of the driver
too. Nothing in it can get more rights than it began with.

bubblewrap makes it, as root: what a box names is found whether or not its user could reach it from
outside. Only then the program becomes that user. bwrap(1); its `--cap-drop ALL` is needed for root.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_LINKS = [(f"/{name}", f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64")]
_BECOMING = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
"""What bwrap leaves to setpriv, and setpriv to nobody."""
_UNPACKING = "-all,+chown,+dac_override,+fowner,+fsetid,+setfcap"
"""What the root of a namespace of image users keeps: files of any owner, and their capabilities. It
counts for files of that namespace's users alone.
"""


@dataclass(frozen=True)
class Limits:
    """Of every process in a box; rlimits, see setrlimit(2). No core is ever dumped."""

    cpu_s: int = 1800
    address_space: int = 4 * 2**30
    """Bytes."""
    file_size: int = 2**40
    """Bytes that any one file may grow to."""
    processes: int = 512
    """Processes and threads of that user on the whole host, outside of boxes too."""
    open_files: int = 1024

    def words(self) -> list[str]:
        """As prlimit(1) takes them."""
        return [
            # The soft limit comes first: its signal says what it was, a kill does not.
            *("prlimit", "--core=0", f"--cpu={self.cpu_s}:{self.cpu_s + 5}"),
            *(f"--as={self.address_space}", f"--fsize={self.file_size}"),
            *(f"--nproc={self.processes}", f"--nofile={self.open_files}", "--"),
        ]


@dataclass(frozen=True)
class User:
    """A user of the host, as which the program runs, without any capability but those named: a
    machine's, or root where what is to be read is root's alone.
    """

    uid: int
    gid: int
    capabilities: tuple[str, ...] = ()
    """As setpriv(1) calls them. For root."""

    def words(self) -> list[str]:
        """What becomes that user and runs the words behind it."""
        return [
            *("setpriv", f"--reuid={self.uid}", f"--regid={self.gid}"),
            *("--clear-groups", "--inh-caps=-all"),
            ",".join(("--bounding-set=-all", *(f"+{c}" for c in self.capabilities))),
            "--",
        ]

    def beginning(self) -> tuple[str, ...]:
        """Capabilities that bwrap leaves to `words`, in its words."""
        return (*_BECOMING, *(f"CAP_{name.upper()}" for name in self.capabilities))

    def descriptors(self) -> tuple[int, ...]:
        """Open files that this needs."""
        return ()


@dataclass(frozen=True)
class ImageRoot:
    """Root of a user namespace, whose users 0, 1, … are numbers that nobody on the host has: see
    `user_namespace`. Files that it makes keep the owners that an image says, shifted by that much.
    """

    namespace: int
    """A descriptor of the namespace."""

    def words(self) -> list[str]:
        """What becomes that user and runs the words behind it."""
        return [
            *("nsenter", f"--user=/proc/self/fd/{self.namespace}"),
            *("--setuid", "0", "--setgid", "0", "--"),
            *("setpriv", f"--bounding-set={_UNPACKING}", "--inh-caps=-all", "--"),
        ]

    def beginning(self) -> tuple[str, ...]:
        """Capabilities that bwrap leaves to `words`, in its words."""
        return _BECOMING

    def descriptors(self) -> tuple[int, ...]:
        """Open files that this needs."""
        return (self.namespace,)


@dataclass(frozen=True)
class Box:
    """What a program sees, may, and is. Pure."""

    user: User | ImageRoot
    read: tuple[Path, ...] = ()
    """Files and folders, absolute: there under the same path, and only to be read."""
    write: tuple[Path, ...] = ()
    """The same, to be written. The user's rights on them are asked as everywhere."""
    read_if_there: tuple[Path, ...] = ()
    """Like `read`; absent is fine."""
    given: tuple[tuple[Path, bytes], ...] = ()
    """Files that are there with that content, whatever the host has under that path: what root
    alone may read, such as credentials, is copied into the box's memory.
    """
    network: bool = False
    """Whether it has the host's network."""
    limits: Limits = field(default_factory=Limits)

    def around(self, arguments: Sequence[str], given: Sequence[int] = ()) -> list[str]:
        """The command that runs these arguments in the box. `/` is where it begins. `given`: open
        files with the content of this box's `given`, in that order.
        """
        return [
            *self.limits.words(),
            *("bwrap", "--die-with-parent", "--unshare-ipc", "--unshare-pid"),
            *("--unshare-uts", "--unshare-cgroup-try"),
            *([] if self.network else ["--unshare-net"]),
            *("--cap-drop", "ALL", *_words("--cap-add", self.user.beginning())),
            *("--ro-bind", "/usr", "/usr"),
            *(word for at, to in _LINKS for word in ("--symlink", to, at)),
            *("--dev", "/dev", "--proc", "/proc"),
            *self._places(given),
            *("--remount-ro", "/", "--chdir", "/", "--"),
            *self.user.words(),
            *arguments,
        ]

    def descriptors(self) -> tuple[int, ...]:
        """Open files that the command needs."""
        return self.user.descriptors()

    def _places(self, given: Sequence[int]) -> Iterable[str]:
        """Folders around others come first, whichever way they are bound: what is inside of them
        is bound over them. Where one place is named twice, writing counts.
        """
        ways: dict[Path, tuple[str, ...]]
        ways = {path: ("--ro-bind-try", str(path)) for path in self.read_if_there}
        ways |= {path: ("--ro-bind", str(path)) for path in self.read}
        ways |= {path: ("--bind", str(path)) for path in self.write}
        for (path, _), number in zip(self.given, given, strict=True):
            ways[path] = ("--perms", "0444", "--ro-bind-data", str(number))
        made = {Path("/")}
        for path in sorted(ways, key=lambda path: path.parts):
            # bwrap 0.8 makes what is missing on the way with 0700: for root alone.
            for folder in reversed(path.parents):
                if folder not in made and Path("/usr") not in (folder, *folder.parents):
                    yield from ("--perms", "0755", "--dir", str(folder))
                made.add(folder)
            made.add(path)
            yield from (*ways[path], str(path))


def _words(option: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def interpreter(script: Path) -> tuple[list[str], tuple[Path, ...]]:
    """The command that runs a script with this interpreter and its standard library, nothing
    installed, no variable heeded; and what it has to see for that.
    """
    program = Path(os.path.realpath(sys.executable))
    homes = {Path(sys.base_prefix), Path(sys.base_exec_prefix)}
    away = sorted(home for home in homes if not home.is_relative_to("/usr"))
    return [str(program), "-I", "-S", "-B", str(script)], (script, *away)
