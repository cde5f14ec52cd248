"""Volumes in memory, with the half steps of the real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from tests.fakes.world import Crash, World
from vmdriver.errors import AlreadyExists, StorageError
from vmdriver.lifecycle.ports.host import Guard, no_crash_point
from vmdriver.lifecycle.ports.volumes import Piece
from vmdriver.model.plan import MachineUser
from vmdriver.model.volume import Volume


class FakeVolumes:
    def __init__(self, world: World, crash_point: Guard = no_crash_point) -> None:
        self._world, self._there = world, world.volumes
        self._crash_point = crash_point

    async def load_all(self) -> tuple[list[Volume], Mapping[str, str]]:
        found, problems = list[Volume](), dict[str, str]()
        for name, text in self._there.notes.items():
            try:
                found.append(Volume.model_validate_json(text))
            except ValueError:
                problems[name] = "volume.json makes no sense"
        return found, problems

    async def tidy(self) -> None:
        self._there.beside.clear()

    async def make(self, volume: Volume) -> None:
        self._world.act(f"make volume {volume.shown}")
        assert volume.id not in self._there.beside, "made twice at a time"
        self._there.beside[volume.id] = {}

    async def receive(self, volume: Volume, pieces: AsyncIterator[Piece]) -> None:
        await self.make(volume)
        async for piece in pieces:
            self._world.act(f"write volume {volume.shown}")
            self._there.beside[volume.id][piece.offset] = piece.data

    async def publish(self, volume: Volume) -> None:
        self._world.act(f"publish volume {volume.shown}")
        if volume.id in self._there.notes:
            raise AlreadyExists(volume.shown)
        self._there.content[volume.id] = self._there.beside.pop(volume.id)
        self._there.sizes_mib[volume.id] = volume.size_mib
        self._there.notes[volume.id] = volume.model_dump_json()

    async def discard(self, volume: Volume) -> None:
        if self._world.dead:
            raise Crash("discard a volume")
        self._there.beside.pop(volume.id, None)

    async def note(self, volume: Volume) -> None:
        await self._crash_point("volume:note")
        self._world.act(f"note volume {volume.shown}")
        assert volume.id in self._there.notes, "a note of what is gone"
        self._there.notes[volume.id] = volume.model_dump_json()

    async def let_in(
        self, volume: Volume, user: MachineUser | None, *, read_only: bool
    ) -> None:
        self._world.act(f"let into volume {volume.shown}")
        assert user is not None
        if self._is_open_to_write(volume.id):
            raise StorageError("a machine can still write to it", reason="VolumeHeld")
        self._there.sizes_mib[volume.id] = volume.size_mib
        self._there.writers[volume.id] = set() if read_only else {user.uid}
        readers = self._there.readers.get(volume.id, set())
        self._there.readers[volume.id] = {*readers, user.uid} if read_only else set()

    def _is_open_to_write(self, volume_id: str) -> bool:
        return self._there.is_written(volume_id, self._world.running())

    async def take_back(self, volume_id: str, user_id: int | None) -> None:
        self._world.act(f"take back volume {volume_id}")
        for rights in (self._there.writers, self._there.readers):
            rights.get(volume_id, set()).discard(user_id or -1)

    async def grow(self, volume: Volume) -> None:
        self._world.act(f"grow volume {volume.shown}")
        self._there.sizes_mib[volume.id] = volume.size_mib

    async def remove(self, volume_id: str) -> None:
        self._world.act(f"remove volume {volume_id}")
        del self._there.notes[volume_id]
        self._world.act(f"remove volume {volume_id}'s disk")
        del self._there.content[volume_id]

    async def content(self, volume: Volume) -> AsyncIterator[Piece]:
        for offset, data in sorted(self._there.content[volume.id].items()):
            yield Piece(offset, data)
        yield Piece(self._there.sizes_mib[volume.id] * 2**20, b"")

    async def stored_bytes(self, volume_id: str) -> int:
        return sum(map(len, self._there.content.get(volume_id, {}).values()))
