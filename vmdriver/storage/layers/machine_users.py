"""Which numbers are machines' users: implements lifecycle.ports.host.MachineUsers.

A folder below `layers`, named by the number, is the claim. All layers that a machine of that
user writes are made in there, and what others need of them stays in there: the number is not
anybody's again before the folder is empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vmdriver.errors import Unavailable
from vmdriver.host.threads import Threads
from vmdriver.host.users import access_list, ownership
from vmdriver.host.users import ids as users
from vmdriver.storage import files
from vmdriver.storage.layout import Layout

_LOOKS, _LOOK_S = 20, 0.05


def has_claims(state_dir: str, first: int, last: int) -> bool:
    """Whether numbers from the one to the other are had by sandboxes of that state directory. Of
    one that is gone: no.
    """
    folders = Layout(Path(state_dir)).layers.glob("[0-9]*")
    return any(
        first <= int(folder.name) <= last
        for folder in folders
        if folder.name.isdecimal()
    )


class MachineUsers:
    """Of one driver, which alone hands out numbers of its range on this host."""

    def __init__(self, layout: Layout, threads: Threads) -> None:
        self._layout, self._threads = layout, threads

    async def claim(self, number: int) -> bool:
        return await self._threads.run(self._claim, number)

    def _claim(self, number: int) -> bool:
        folder = self._layout.layers / str(number)
        with files.or_error(f"user {number} cannot be claimed"):
            if users.processes_of(number) or not _remove_empty(folder):
                return False
            folder.mkdir(mode=0o700)
            try:
                ownership.pass_through(folder, number)
            except FileNotFoundError:
                return False  # a former owner's last layer has just taken it along
            files.sync_directory(folder.parent)
        return True

    async def is_idle(self, number: int) -> bool:
        """What was killed may take a moment to end."""
        for _ in range(_LOOKS):
            if not await self._threads.run(_processes_of, number):
                return True
            await asyncio.sleep(_LOOK_S)
        return False

    async def clear(self, number: int, owner: str) -> None:
        await self.is_idle(number)
        await self._threads.run(self._clear, number, owner)

    def _clear(self, number: int, owner: str) -> None:
        if running := _processes_of(number):
            raise Unavailable(
                f"process {running[0]} runs as user {number}",
                reason="MachineUserBusy",
            )
        layout = self._layout
        homes = (layout.sandboxes / owner, layout.warm / owner)
        with files.or_error(f"user {number} cannot be given back"):
            passed = [f for f in _folders(layout) if _passes(number, f)]
            for top in (layout.layers, layout.templates, layout.volumes, *homes):
                for path in _below(top):
                    ownership.disown(path, number)
            for folder in passed:
                # Of others it stood on layers: where it was the last to, their folders go too.
                if folder.is_dir() and not access_list.is_there(folder):
                    _remove_empty(folder)
            _remove_empty(layout.layers / str(number))

    async def collect(self, held: set[int], *, all_known: bool) -> set[int]:
        return await self._threads.run(self._collect, held, all_known)

    def _collect(self, held: set[int], all_known: bool) -> set[int]:
        """What is found in passing, and cannot be looked at, is no reason not to start."""
        layout, found = self._layout, set[int]()
        for folder in _folders(layout):
            number = int(folder.name)
            with contextlib.suppress(OSError):
                if all_known and number not in held and _remove_empty(folder):
                    continue
            found.add(number)
        kept = (
            *(layout.layers, layout.templates, layout.volumes),
            *(layout.sandboxes, layout.warm),
        )
        for top in (*kept, layout.clearing.aside):
            for path in _below(top):
                with contextlib.suppress(OSError):
                    found |= {path.lstat().st_uid, *access_list.users(path)}
        return found - held


def _folders(layout: Layout) -> list[Path]:
    """Those that claim a number."""
    return [f for f in layout.layers.glob("[0-9]*") if f.name.isdecimal()]


def _passes(number: int, folder: Path) -> bool:
    with contextlib.suppress(
        FileNotFoundError
    ):  # its last layer has just taken it along
        return number in access_list.users(folder)
    return False


def _processes_of(number: int) -> list[int]:
    with files.or_error(f"processes of user {number} cannot be looked for"):
        return users.processes_of(number)


def _remove_empty(folder: Path) -> bool:
    """Whether it is not there now. A folder with something in it stays. OSError."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        if not folder.is_dir() or any(folder.iterdir()):
            return False
        raise
    return True


def _below(top: Path) -> Iterator[Path]:
    """A folder and everything in it, no link followed. What vanishes meanwhile is nobody's."""
    if top.is_symlink() or not top.is_dir():
        return
    yield top
    for folder, folders, names in os.walk(top):
        yield from (Path(folder) / name for name in (*folders, *names))
