"""A machine whose QEMU was taken over acts on its own files at the very moments at which root works on them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vmdriver.errors import DriverError, StorageError
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import GuestReport, Ownership
from vmdriver.model.plan import MachineUser
from vmdriver.storage.layers.disks import DiskStore
from vmdriver.storage.layout import Layout

USER = MachineUser(uid=250002, gid=250000)
OWNER = """
import fcntl, os, signal, struct, sys
path, uid, gid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.setgroups([]), os.setresgid(gid, gid, gid), os.setresuid(uid, uid, uid)
signal.signal(signal.SIGIO, signal.SIG_IGN)
NONE = 0xFFFFFFFF
LIST = ((1, 6, NONE), (2, 6, uid), (4, 6, NONE), (16, 6, NONE), (32, 6, NONE))
LIST = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in LIST)
kept, writers = os.open(path, os.O_RDONLY), []
def mode(): os.fchmod(kept, 0o666)
def group(): os.fchown(kept, -1, gid)
def rights(): os.setxattr(kept, "system.posix_acl_access", LIST)
def write(): writers.append(os.open(path, os.O_WRONLY))
def lease(): fcntl.fcntl(kept, fcntl.F_SETLEASE, fcntl.F_WRLCK)
for line in sys.stdin:
    done = []
    for word in line.split():
        try:
            globals()[word]()
            done.append(word)
        except OSError:
            pass
    print(*done, flush=True)
"""
"""Does what it is told on its standard input, and says what of it was possible. It has the file open for reading alone."""


class Owner:
    """A process of the machine's user."""

    def __init__(self, path: Path) -> None:
        words = [str(path), str(USER.uid), str(USER.gid)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", OWNER, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def does(self, *words: str) -> list[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().split()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads("storage", 2)
    yield threads
    threads.close()


@pytest.fixture
def layer() -> Iterator[Path]:
    """A machine's, where that gets to."""
    root = Path(tempfile.mkdtemp(prefix="vmdriver-grasping-"))
    root.chmod(0o711)
    path = root / "layer.qcow2"
    path.write_bytes(b"what others come to stand on")
    os.chown(path, USER.uid, os.getegid())
    path.chmod(0o600)
    yield path
    path.unlink()
    root.rmdir()


@pytest.fixture
def owner(layer: Path) -> Iterator[Owner]:
    owner = Owner(layer)
    yield owner
    owner.end()


@pytest.fixture
def disks(layer: Path, threads: Threads) -> DiskStore:
    return DiskStore(Layout(layer.parent), threads, Ownership(0, 0))


@contextmanager
def acting_between(act: Callable[[], object]) -> Iterator[None]:
    """`act` before and after each of root's changes of a file: whoever has a processor of his own finds each of these moments."""
    names = ("fchmod", "fchown", "setxattr", "removexattr")
    with pytest.MonkeyPatch.context() as patch:

        def around(real: Callable[..., Any]) -> Callable[..., Any]:
            def change(*arguments: Any, **named: Any) -> Any:
                act()
                try:
                    return real(*arguments, **named)
                finally:
                    act()

            return change

        for name in names:
            patch.setattr(os, name, around(getattr(os, name)))
        yield


@pytest.mark.parametrize("trick", [["mode"], ["rights"], ["group", "mode", "rights"]])
@pytest.mark.parametrize("how", ["freeze", "share"])
async def test_nobody_keeps_a_right_to_a_file_that_is_taken_from_him(
    how: str, trick: list[str], layer: Path, owner: Owner, disks: DiskStore
) -> None:
    """It was its owner's until it was root's, and between the two he could have the mode be what he liked."""
    tried = []
    with acting_between(lambda: tried.extend(owner.does(*trick))):
        if how == "freeze":
            await disks.freeze_layer(str(layer), USER)
        else:
            await disks.share_layer(str(layer), USER)
    assert set(tried) == set(trick), "it could do so while the file was its own"
    assert owner.does("write", *trick) == []
    assert layer.stat().st_uid == 0
    assert layer.stat().st_mode & 0o222 == 0


async def test_whoever_opens_a_layer_while_it_is_frozen_is_found(
    layer: Path, owner: Owner, disks: DiskStore
) -> None:
    with (
        acting_between(lambda: owner.does("mode", "rights", "write")),
        pytest.raises(StorageError) as raised,
    ):
        await disks.freeze_layer(str(layer), USER)
    assert raised.value.reason == "LayerHeld"


@pytest.mark.parametrize(
    "use", ["report_now", "report", "console_tail", "bound_console", "freeze_layer"]
)
async def test_nobody_waits_for_the_owner_of_a_lease(
    use: str, layer: Path, owner: Owner, disks: DiskStore
) -> None:
    """The kernel has whoever opens such a file wait, 45 s by default, for its owner to give way (fcntl(2), F_SETLEASE)."""
    assert owner.does("lease") == ["lease"]
    more = [USER] if use == "freeze_layer" else []
    begun = time.monotonic()
    try:
        found = getattr(disks, use)(str(layer), *more)
        found = await found if asyncio.iscoroutine(found) else found
    except DriverError as error:
        assert str(error)
    else:
        assert found in [None, "", GuestReport()]
    assert time.monotonic() - begun < 5
