"""Implements lifecycle.ports.folders.HostFolders with virtiofsd.

Who reads a folder is known by a variable in its environment, which its box has too: what holds a
box is a program of bubblewrap's, which nobody in there can change. So whoever ends them needs no
note of process ids, and what a killed driver has begun is found by the next one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vmdriver.errors import HostError
from vmdriver.folders.reader import VARIABLE, Program, Reader, find_program
from vmdriver.folders.resolving import open_folder
from vmdriver.host import memory, mounts, process, strays
from vmdriver.host.lanes import Lanes
from vmdriver.lifecycle.ports.host import Found
from vmdriver.model.host_mount import HostMount
from vmdriver.model.ids import is_sandbox_id, parse_mark
from vmdriver.model.ids import mark as mark_of
from vmdriver.model.plan import LaunchPlan, MachineUser

LOOK_S, _SHARE_S, _END_S = 10.0, 20.0, 10.0
_BEGIN_S = 5.0
_IN_THE_BACKGROUND = '"$@" </dev/null >/dev/null 2>&1 &'
"""For sh: what it begins is no child of ours, and is reaped like a QEMU (host/reaper.py)."""
_TRIAL, _SOCKETS = "trial", "sockets"
DIRECTORY = "folders"
"""Of a sandbox's sockets, in its own (storage/layout.py)."""
_ASK_FEATURES = struct.pack("<III", 1, 1, 0)
"""VHOST_USER_GET_FEATURES, version 1, no payload (QEMU's docs/interop/vhost-user.rst)."""


class VirtiofsFolders:
    """Of one driver instance. `sandboxes`: the directory that those of all sockets are in.
    `probe`: a user that no machine is. `find`: see `find_program`.
    """

    def __init__(
        self,
        sandboxes: Path,
        instance: str,
        probe: MachineUser,
        find: Callable[[], Program] = find_program,
    ) -> None:
        self._sandboxes, self._instance = sandboxes, instance
        self._probe, self._find = probe, find
        self._lanes = Lanes("folders")
        self._works = False

    # --- ports.HostFolders

    async def look(self, mounts: Sequence[HostMount]) -> None:
        await self.try_one()
        for mount in mounts:
            await self.look_at(mount.allowed, mount.path)

    async def look_at(self, allowed: str, path: str) -> None:
        """Whether that one can be opened, in time. Refused, HostError."""
        await self._lanes.run(
            allowed,
            f"look at {path}",
            lambda: os.close(open_folder(allowed, path)),
            deadline_s=LOOK_S,
        )

    async def share(self, plan: LaunchPlan, mark: str, directory: str) -> None:
        program = self._find()
        await self._lanes.run(
            directory,
            f"give {plan.sandbox_id} folders of the host",
            lambda: _share(program, plan, mark, Path(directory)),
            deadline_s=_SHARE_S,
        )

    async def end(self, mark: str, directory: str) -> None:
        await self._lanes.run(
            directory,
            f"end what reads folders of the host in {directory}",
            lambda: _end(mark, Path(directory)),
            deadline_s=_END_S,
        )

    async def shared(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for (tag, mark, _), _ in await self._running():
            found.setdefault(mark, set()).add(tag)
        return found

    async def marked(self) -> list[Found]:
        its = {(mark, directory) for (_, mark, directory), _ in await self._running()}
        return [
            Found("folders", directory, sandbox)
            for mark, directory in sorted(its)
            if (sandbox := parse_mark(mark, self._instance)) is not None
        ]

    async def memory(self) -> tuple[int, int]:
        """How many programs there are for that, boxes not counted, and bytes of the host's memory
        that they have; what they share with machines is divided. HostError.
        """
        running = await self._running()
        pids = [pid for _, found in running for pid in found]
        size = await self._lanes.run(
            "",
            "add up the memory of what reads folders of the host",
            lambda: sum(map(memory.share_of, pids)),
            deadline_s=LOOK_S,
        )
        return len(running), size

    async def _running(self) -> list[tuple[tuple[str, str, str], list[int]]]:
        """Tag, mark and directory of each that is this state directory's, with its processes."""
        names = await self._lanes.run(
            "",
            "look for what reads folders of the host",
            lambda: strays.bearers_of(VARIABLE),
            deadline_s=LOOK_S,
        )
        found = []
        for name, pids in names.items():
            tag, mark, directory = (*name.split(":", 2), "", "")[:3]
            if self._is_own(mark, directory):
                found.append(((tag, mark, directory), pids))
        return found

    def _is_own(self, mark: str, directory: str) -> bool:
        """Whether the sockets of the sandbox with that mark lie there. Anybody on the host may
        begin a program with such a variable, and what no sandbox claims is ended and removed.
        """
        sandbox = mark.removeprefix(mark_of(self._instance, ""))
        expected = f"{self._sandboxes}/{sandbox}/{DIRECTORY}"
        return is_sandbox_id(sandbox) and directory == expected

    # --- whether it works here

    async def try_one(self) -> str:
        """Begin one on an empty folder, and ask it something. The program's path. Refused,
        HostError; where it has worked it is not tried again.
        """
        program = self._find()
        if not self._works:
            mark = mark_of(self._instance, f"{_TRIAL}-{os.getpid()}")
            with _failing("virtiofsd cannot be tried"):
                home = Path(os.path.realpath(tempfile.mkdtemp(prefix="vmdriver-")))
            try:
                await self._in_trial(lambda: self._try(program, mark, home))
            finally:
                await self._in_trial(lambda: _forget(mark, home))
            self._works = True
        return program.path

    async def _in_trial(self, function: Callable[[], None]) -> None:
        await self._lanes.run(_TRIAL, "try virtiofsd", function, deadline_s=_SHARE_S)

    def _try(self, program: Program, mark: str, home: Path) -> None:
        """In a thread of its own, as `_share`. It does not outlive us."""
        directory, folder = home / _SOCKETS, str(home / "folder")
        with _failing("virtiofsd cannot be tried"):
            home.chmod(0o711)
            Path(folder).mkdir(mode=0o755)
            directory.mkdir(mode=0o711)
            mounts.enter_own_namespace()
            mount = HostMount(
                tag=_TRIAL,
                path=folder,
                allowed=folder,
                mount="/",
                read_only=True,
                socket=f"{directory}/{_TRIAL}.sock",
            )
            reader = _reader(mount, self._probe, 64, (10001, 10001), mark)
            passing = dataclasses.replace(reader, outlives_us=False)
            _begin(program, mount, passing, self._probe)
            ask(directory, f"{_TRIAL}.sock")


def _forget(mark: str, home: Path) -> None:
    _end(mark, home / _SOCKETS)
    shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _failing(what: str) -> Iterator[None]:
    """What the host refuses is told in our words."""
    try:
        yield
    except (OSError, LookupError, struct.error) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise HostError(
            f"{what}: {text}",
            detail=repr(error),
            reason="HostMountFailed",
            resolution="vmdriver doctor tries it; docs/host_mounts.md says what it takes",
        ) from error


def _share(program: Program, plan: LaunchPlan, mark: str, directory: Path) -> None:
    """In a thread of its own, which alone has what is mounted here."""
    assert plan.user is not None  # noqa: S101 - a machine that boots has one
    inside = plan.sandbox_uid, plan.sandbox_gid
    with _failing(f"{plan.sandbox_id} cannot be given folders of the host"):
        _end(mark, directory)
        directory.mkdir()
        directory.chmod(0o711)  # whatever the umask is
        mounts.enter_own_namespace()
        for mount in plan.host_mounts:
            reader = _reader(mount, plan.user, plan.memory_mib, inside, mark)
            _begin(program, mount, reader, plan.user)


def _reader(
    mount: HostMount,
    user: MachineUser,
    memory_mib: int,
    inside: tuple[int, int],
    mark: str,
) -> Reader:
    directory = Path(mount.socket).parent
    return Reader(
        name=f"{mount.tag}:{mark}:{directory}",
        source=directory / mount.tag,
        read_only=mount.read_only,
        uid=user.uid if mount.uid is None else mount.uid,
        gid=user.gid if mount.gid is None else mount.gid,
        inside_uid=inside[0],
        inside_gid=inside[1],
        memory_mib=memory_mib,
    )


def _begin(
    program: Program, mount: HostMount, reader: Reader, user: MachineUser
) -> None:
    """Have it wait for that user's QEMU."""
    folder = open_folder(mount.allowed, mount.path)
    try:
        reader.source.mkdir(mode=0o700)
        mounts.bind_opened(folder, reader.source)
    finally:
        os.close(folder)
    place = Path(mount.socket)
    with _listening(place.parent, place.name, user) as listener:
        number = listener.fileno()
        words = ["sh", "-c", _IN_THE_BACKGROUND, "sh", *reader.words(program, number)]
        # From the very first on each of these can be found.
        known = {VARIABLE: reader.name}
        process.begin(words, (number,), environment=known).wait(_BEGIN_S)


@contextlib.contextmanager
def _in(directory: Path) -> Iterator[tuple[int, str]]:
    """A descriptor of it, and a name by which a socket in it has a short path."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor, f"/proc/thread-self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _listening(
    directory: Path, name: str, user: MachineUser
) -> Iterator[socket.socket]:
    """A socket that this user alone may connect to."""
    with (
        _in(directory) as (at, short),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
    ):
        listener.bind(f"{short}/{name}")
        os.chmod(name, 0o600, dir_fd=at)
        os.chown(name, user.uid, user.gid, dir_fd=at, follow_symlinks=False)
        listener.listen(1)
        yield listener


def ask(directory: Path, name: str) -> None:
    """Whether what listens there answers as virtiofsd does. OSError."""
    with (
        _in(directory) as (_, short),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking,
    ):
        asking.settimeout(_BEGIN_S)
        asking.connect(f"{short}/{name}")
        asking.sendall(_ASK_FEATURES)
        if not asking.recv(12):
            raise OSError(0, "it has ended at once")


def _end(mark: str, directory: Path) -> None:
    """Those of a machine, whatever their tags are."""
    ending = f":{mark}:{directory}".encode()

    def is_one(found: strays.Process) -> bool:
        begin = f"{VARIABLE}=".encode()
        return any(
            entry.startswith(begin) and entry.endswith(ending)
            for entry in found.environment
        )

    with _failing(f"what reads folders of the host in {directory} cannot be ended"):
        strays.end(is_one)
        if strays.end_once(is_one):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        _remove(directory)


def _remove(directory: Path) -> None:
    """With the sockets and the empty folders in it; whatever else is there is not ours to remove.
    OSError.
    """
    try:
        entries = list(directory.iterdir())
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_socket() and not entry.is_symlink():
            entry.unlink()
        else:
            entry.rmdir()
    directory.rmdir()
