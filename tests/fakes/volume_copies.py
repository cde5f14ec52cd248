"""Copies of volumes in memory, with the half steps of the real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tests.fakes.world import World
from vmdriver.lifecycle.ports.volumes import Piece
from vmdriver.model.plan import MachineUser


class FakeVolumeCopies:
    def __init__(self, world: World) -> None:
        self._world, self._there = world, world.volumes

    async def begin(
        self, path: str, size_mib: int, user: MachineUser | None, *, writes: bool
    ) -> None:
        self._world.act(f"begin copy {path}")
        assert path not in self._world.files, "one path for two"
        self._world.files.add(path)
        self._there.copies[path] = {}
        if user is not None and writes:
            self._world.file_users[path] = user.uid

    async def copy(self, volume_id: str, path: str) -> None:
        for offset, data in dict(self._there.content[volume_id]).items():
            self._world.act(f"copy volume {volume_id} to {path}")
            assert not self._there.is_written(volume_id, self._world.running())
            self._there.copies[path][offset] = data
        self._world.act(f"complete copy {path}")

    async def seal(self, path: str, size_mib: int) -> int:
        self._world.act(f"seal copy {path}")
        mirrors = self._there.mirrors.values()
        assert path not in {p for targets in mirrors for p in targets.values()}
        self._world.file_users.pop(path, None)
        self._there.sealed.add(path)
        return sum(map(len, self._there.copies[path].values()))

    async def prepare(self, volume_id: str, path: str, size_mib: int) -> None:
        assert path in self._there.sealed
        for part in ("begin", "complete"):
            self._world.act(f"{part} what volume {volume_id} is to be")
        self._there.backs[volume_id] = dict(self._there.copies[path])

    async def put_back(self, volume_id: str) -> None:
        self._world.act(f"put back volume {volume_id}")
        if volume_id in self._there.backs:
            opened = (self._there.opened.get(d, {}) for d in self._world.running())
            assert all(volume_id not in each for each in opened), "a machine has it"
            self._there.content[volume_id] = self._there.backs.pop(volume_id)

    async def drop_back(self, volume_id: str) -> None:
        self._world.act(f"drop what volume {volume_id} was to be")
        self._there.backs.pop(volume_id, None)

    async def content(self, path: str) -> AsyncIterator[Piece]:
        assert path in self._world.files
        assert path in self._there.sealed
        for offset, data in sorted(self._there.copies[path].items()):
            yield Piece(offset, data)
        yield Piece(2**26, b"")
