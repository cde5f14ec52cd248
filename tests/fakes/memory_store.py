"""Kept memories in memory: directories with a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable

from pydantic import ValidationError

from tests.fakes.world import World
from vmdriver.errors import Exhausted, NotFound, Refused
from vmdriver.lifecycle.ports.host import no_crash_point
from vmdriver.lifecycle.ports.memory import Captured, SavedMachine, damaged
from vmdriver.model.checkpoint import FileIdentity, MemoryManifest, Part
from vmdriver.model.plan import MachineUser


class FakeMemoryStore:
    def __init__(
        self,
        world: World,
        crash_point: Callable[[str], Awaitable[None]] = no_crash_point,
    ) -> None:
        self._world, self._crash_point = world, crash_point
        self.reserved: dict[str, int] = {}
        """Of this process, as the real one's: a reservation holds also where begin failed half-way."""

    async def begin(self, directory: str, needed_bytes: int) -> str:
        free = self._world.free_bytes - sum(self.reserved.values())
        if needed_bytes > free:
            raise Exhausted("there is no room for it", reason="DiskFull")
        self.reserved[directory] = needed_bytes
        self._world.act(f"begin checkpoint {directory}")
        self._world.checkpoints[directory] = ""
        return f"{directory}/memory"

    async def end(self, directory: str) -> None:
        self.reserved.pop(directory, None)

    async def write_parts(self, directory: str, captured: Captured) -> tuple[Part, ...]:
        self._world.act(f"write checkpoint {directory}")
        return (Part(name="memory", size=8192, stored=4096, digests=("d",)),)

    async def publish(
        self, directory: str, target: str, manifest: MemoryManifest
    ) -> str:
        world = self._world
        world.act(f"publish {target}")
        world.checkpoints.pop(directory)
        world.checkpoints[target] = manifest.model_dump_json()
        world.memories[target] = world.memories.pop(directory)
        await self._crash_point("publish:renamed")
        world.act(f"sync name of {target}")
        return _digest(world.checkpoints[target])

    async def read(self, directory: str) -> tuple[MemoryManifest, str]:
        text = self._world.checkpoints.get(directory)
        if not text:
            raise NotFound(f"no checkpoint {directory}")
        try:
            return MemoryManifest.model_validate_json(text), _digest(text)
        except ValidationError as error:
            raise Refused(
                "its manifest cannot be read", reason="ManifestDamaged"
            ) from error

    async def needs(self, directory: str) -> set[str]:
        try:
            found = json.loads(self._world.checkpoints.get(directory, ""))
        except ValueError:
            return set()
        return {identity["path"] for identity in found["files"]}

    async def damage(self, directory: str, parts: tuple[Part, ...]) -> list[str]:
        await self._crash_point("checkpoint:digest")
        return ["memory has changed"] if directory in self._world.damaged else []

    async def saved(self, directory: str, parts: tuple[Part, ...] = ()) -> SavedMachine:
        await self._crash_point("checkpoint:read")
        if parts and f"{directory}/state" in self._world.damaged:
            raise damaged("state has changed")
        assert directory in self._world.checkpoints, (
            "loaded from a checkpoint that is gone"
        )
        return SavedMachine(b"state", "<domain/>", f"{directory}/memory")

    async def lend(self, directory: str, user: MachineUser | None) -> None:
        return

    async def take_back(self, directory: str) -> None:
        return

    async def share(self, directory: str, user: MachineUser | None) -> None:
        return

    async def identify(self, paths: tuple[str, ...]) -> tuple[FileIdentity, ...]:
        """A file's content is what was written to it last."""
        await self._crash_point("checkpoint:identify")
        written = self._world.written
        return tuple(
            FileIdentity(
                path=p, size=1, inode=1, modified_ns=written.get(p, 0), changed_ns=0
            )
            for p in paths
        )

    async def retire(self, directory: str, target: str) -> None:
        self._world.act(f"retire {directory}")
        if directory in self._world.checkpoints:
            del self._world.checkpoints[directory]
            self._world.checkpoints[target] = ""

    async def unpublish(self, directory: str) -> None:
        self._world.act(f"unpublish {directory}")
        if directory in self._world.checkpoints:
            self._world.checkpoints[directory] = ""

    async def read_ahead(self, directory: str) -> None:
        return

    async def move(self, directory: str, target: str) -> None:
        self._world.act(f"move {directory}")
        if directory in self._world.checkpoints:
            self._world.checkpoints[target] = self._world.checkpoints.pop(directory)

    async def remove(self, directory: str) -> None:
        self.reserved.pop(directory, None)
        self._world.act(f"remove checkpoint {directory}")
        self._world.checkpoints.pop(directory, None)

    async def listed(self, parent: str) -> list[str]:
        found = [
            d.removeprefix(parent + "/")
            for d in self._world.checkpoints
            if d.startswith(parent + "/")
        ]
        return sorted(found)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
