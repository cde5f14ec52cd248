"""The program that reads and writes one folder for one guest, in a box: as words. Pure, but for
finding out what there is.

It sees /usr, a /proc of itself alone and the folder; has no network; is one user of the host,
without capabilities but for two that QEMU's own virtiofsd wants to have and gives up, in a user
namespace in which that user is the sandbox's: so that is whose the guest finds files to be. The
folder is bound read-only where it is to be read, outside of that namespace: nobody in it can change
that. bwrap(1), setpriv(1), unshare(1).
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path

from vmdriver.errors import Refused
from vmdriver.folders import call_filter
from vmdriver.host import facts, out_of_memory
from vmdriver.host.process import ENVIRONMENT

VARIABLE = "VMDRIVER_FOLDER_OF"
"""In the environment of each, and of what holds its box: which one it is."""
_FOLDER = "/folder"
_LINKS = (("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"))
_LINK_64 = ("lib64", "usr/lib64")
_BECOMING = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
"""What bwrap leaves to setpriv, and that to nobody."""
_OPEN_FILES = 2**18
"""virtiofsd has one open for each file or folder that a guest knows the name of."""
_MORE_MIB = 4096
"""Of address space, above the guest's memory twice."""
_WANTS = "-all,+sys_chroot,+setpcap"
_GIVES_UP = (
    *("chown", "dac_override", "fowner", "fsetid"),
    *("setgid", "setuid", "mknod", "setfcap"),
)


@dataclass(frozen=True)
class Program:
    """A virtiofsd of this host. `of_qemu`: the one that QEMU had before 8.0, written in C."""

    path: str
    of_qemu: bool = False


PLACES = (
    Program("/usr/libexec/virtiofsd"),
    Program("/usr/lib/virtiofsd"),
    Program("/usr/lib/qemu/virtiofsd", of_qemu=True),
)
"""Debian 13's (package virtiofsd), Arch's, Debian 12's (package qemu-system-common)."""


def find_program(places: tuple[Program, ...] = PLACES) -> Program:
    """The one that is taken. Refused."""
    for program in places:
        if os.access(program.path, os.X_OK):
            return program
    raise Refused(
        "virtiofsd is missing, by which machines get folders of the host",
        reason="VirtiofsdMissing",
        resolution="apt-get install virtiofsd (Debian 13), qemu-system-common (Debian 12)",
    )


@dataclass(frozen=True)
class Reader:
    """One of them."""

    name: str
    """Its variable's value: nobody else has the same."""
    source: Path
    """Where the folder is bound already."""
    read_only: bool
    uid: int
    gid: int
    """Who it is on the host."""
    inside_uid: int
    inside_gid: int
    """Who it is as the guest sees it."""
    memory_mib: int
    """The guest's, which it maps."""
    outlives_us: bool = True
    """It bears no mark of a helper, which ends with the driver (host/guardian.py)."""

    def words(self, program: Program, socket: int) -> list[str]:
        """The command. `socket`: the descriptor that QEMU is waited for at. LookupError: see
        `call_filter`.
        """
        most = (2 * self.memory_mib + _MORE_MIB) * 2**20
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = _OPEN_FILES if files < 0 else min(files, _OPEN_FILES)
        return [
            *("env", *(("-i",) if self.outlives_us else ())),
            *(f"PATH={ENVIRONMENT['PATH']}", f"{VARIABLE}={self.name}"),
            *("choom", "-n", str(out_of_memory.MACHINES), "--"),
            *("prlimit", "--core=0", f"--as={most}", f"--nofile={files}", "--"),
            *self._box(),
            *self._user(program),
            *call_filter.installed(facts.machine_architecture()),
            *_virtiofsd(program, socket),
        ]

    def _box(self) -> list[str]:
        links = (*_LINKS, *((_LINK_64,) if Path("/usr/lib64").exists() else ()))
        return [
            *("bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-uts"),
            *("--unshare-cgroup-try", "--unshare-net", "--cap-drop", "ALL"),
            *(word for name in _BECOMING for word in ("--cap-add", name)),
            *("--ro-bind", "/usr", "/usr"),
            *(word for at, to in links for word in ("--symlink", to, f"/{at}")),
            *("--dev", "/dev", "--proc", "/proc"),
            *("--ro-bind" if self.read_only else "--bind", str(self.source), _FOLDER),
            *("--remount-ro", "/", "--chdir", "/", "--"),
        ]

    def _user(self, program: Program) -> list[str]:
        words = [
            *("setpriv", f"--reuid={self.uid}", f"--regid={self.gid}"),
            *("--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--"),
            *("unshare", "--user", f"--map-user={self.inside_uid}"),
            f"--map-group={self.inside_gid}",
        ]
        if not program.of_qemu:
            return [*words, "--"]
        return [
            *(*words, "--keep-caps", "--", "setpriv", f"--inh-caps={_WANTS}"),
            *(f"--ambient-caps={_WANTS}", f"--bounding-set={_WANTS}", "--"),
        ]


def _virtiofsd(program: Program, socket: int) -> list[str]:
    """Without extended attributes (file capabilities are some), locks of the host's, or a cache
    that outlives what somebody changes on the host.
    """
    if program.of_qemu:
        gives_up = ":".join(f"-{name}" for name in _GIVES_UP)
        return [
            *(program.path, "-f", f"--fd={socket}", "--rlimit-nofile=0"),
            *("-o", f"source={_FOLDER}", "-o", "sandbox=chroot"),
            *("-o", f"modcaps={gives_up}", "-o", "cache=auto", "-o", "no_xattr"),
        ]
    return [
        *(program.path, f"--fd={socket}", f"--shared-dir={_FOLDER}"),
        *("--sandbox=none", "--seccomp=kill", "--rlimit-nofile=0"),
        *("--cache=auto", "--inode-file-handles=never"),
    ]
