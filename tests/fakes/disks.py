"""Layers and status disks in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from tests.fakes.world import World
from vmdriver.errors import StorageError
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model.plan import Disk, MachineUser


class FakeDisks:
    def __init__(self, world: World) -> None:
        self._world = world

    async def create_overlay(self, disk: Disk, user: MachineUser | None) -> None:
        self._world.act(f"create overlay {disk.path}")
        below = {path for path in disk.backing if path.startswith("layers/")}
        assert below <= self._world.files, "a layer on one that is gone"
        if self._world.written.get(disk.path):
            assert disk.path in self._world.files
            return  # as the real one: it is kept
        self._world.files.add(disk.path)
        if user is not None:
            self._world.file_users[disk.path] = user.uid
        self._world.backing[disk.path] = ()
        # What a layer stands on is written last.
        self._world.act(f"complete overlay {disk.path}")
        self._world.backing[disk.path] = tuple(
            path for path in disk.backing if path.startswith("layers/")
        )

    async def is_whole(self, layer: str, below: str) -> bool:
        return layer in self._world.files and below in self._world.backing[layer][:1]

    async def own_layers(self, sandbox_id: str) -> Mapping[str, tuple[str, ...]]:
        own = [f for f in self._world.files if f.startswith(f"layers/{sandbox_id}.")]
        chains = {path: self._world.backing.get(path, ()) for path in own}
        return dict(sorted(chains.items(), key=lambda item: len(item[1])))

    async def sync_layer(self, path: str) -> None:
        self._world.act(f"sync {path}")
        assert path in self._world.files

    async def layers(self, sandbox_id: str = "") -> list[str]:
        for _ in range(50):
            await asyncio.sleep(0)
        prefix = f"layers/{sandbox_id}." if sandbox_id else "layers/"
        return [f for f in self._world.files if f.startswith(prefix)]

    async def check_layers(self, disk: Disk) -> None:
        own = tuple(path for path in disk.backing if path.startswith("layers/"))
        if self._world.backing.get(disk.path) != own:
            raise StorageError("the layer stands on something else")

    async def merge_layer(self, disk: Disk, user: MachineUser | None) -> None:
        world, layer, below = self._world, disk.path, disk.backing[0]
        world.act(f"merge {layer}")
        world.frozen_layers.discard(below)
        assert layer not in world.root_layers.values(), "merged under a running machine"
        standing = {f for f in world.files if below in world.backing.get(f, ())}
        # What is below another layer shows through it.
        world.damaged |= standing - {layer}
        world.written[below] = max(
            world.written.get(layer, 0), world.written.get(below, 0)
        )

    async def free_bytes(self, path: str) -> int:
        return self._world.free_bytes

    async def freeze_layer(self, path: str, user: MachineUser | None) -> int:
        self._world.act(f"freeze layer {path}")
        assert path not in self._world.root_layers.values()
        self._world.frozen_layers.add(path)
        return 4096

    async def share_layer(self, path: str, user: MachineUser | None) -> None:
        self._world.act(f"share layer {path}")
        assert path not in self._world.root_layers.values()
        self._world.file_users.pop(path, None)

    async def flush_status(self, path: str) -> None:
        return

    async def remove(self, path: str) -> None:
        self._world.act(f"remove {path}")
        self._world.files.discard(path)
        self._world.file_users.pop(path, None)

    async def report(self, path: str) -> GuestReport:
        return self.report_now(path)

    def report_now(self, path: str) -> GuestReport:
        return self._world.reports.get(path, GuestReport())

    async def console_tail(self, path: str, size: int = 2000) -> str:
        return "last words"

    async def bound_console(self, path: str) -> None:
        self._world.act(f"bound console {path}")

    async def extension_directory(self, sandbox_id: str, name: str) -> Path:
        return Path("/nowhere") / sandbox_id / name
