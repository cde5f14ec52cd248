"""A whole driver with everything real that it has on disk, and a fake host below it."""

from __future__ import annotations

import asyncio
import dataclasses
import grp
import os
import pwd
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import vmdriver.app
from tests.fakes.accelerator import FakeAccelerator
from tests.fakes.driver import FINAL
from tests.fakes.guest import FakeGuest
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.inside import is_at_work
from tests.fakes.memory import FakeMemory
from tests.fakes.network import FakeNetwork
from tests.fakes.network_guard import FakeNetworkGuard
from tests.fakes.wall_source import FakeWallSource
from tests.fakes.world import World
from vmdriver.config import Config, config_of
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.ports.host import WallSource, no_crash_point
from vmdriver.model.phase import Phase
from vmdriver.model.record import SandboxRecord


def config(root: Path, **more: Any) -> Config:
    """For a state directory in root/state; QEMU's user is ours."""
    return config_of(
        {
            "state_dir": root / "state",
            "bind_socket": root / "driver.sock",
            "supervisor_path": root / "supervisor",
            "qemu_user": pwd.getpwuid(os.geteuid()).pw_name,
            "qemu_group": grp.getgrgid(os.getegid()).gr_name,
            "vcpus": 1,
            "max_vcpus": 4,
            "mem_mib": 512,
            "max_mem_mib": 4096,
            "max_committed_mem_mib": 10**6,
            "dns": ["192.0.2.53"],
            **more,
        }
    )


def _tasks() -> set[asyncio.Task[Any]]:
    """But for asyncio's own that connect a program's pipes: whoever begins a program waits for that for ever."""
    every = asyncio.all_tasks()
    return {
        t
        for t in every
        if "_connect_pipes" not in getattr(t.get_coro(), "__qualname__", "")
    }


class DiskDriver(vmdriver.app.Driver):
    """One driver process. `extensions`: what is loaded."""

    def __init__(
        self, settings: Config, world: World, extensions: Sequence[Any] = ()
    ) -> None:
        self.world = world
        world.knows_users = False
        with pytest.MonkeyPatch.context() as patch:
            loaded = list(extensions)
            patch.setattr(vmdriver.app, "load_extensions", lambda *_: loaded)
            super().__init__(settings)
        self.operations = Operations(self.manager)

    def _accelerator(self) -> Any:
        return FakeAccelerator()

    def _wall_sources(self) -> tuple[WallSource, ...]:
        return (FakeWallSource(),)

    def ports(self) -> Any:
        world, instance = self.world, self.config.driver.instance
        self.guests, network = (
            FakeMemory(world, no_crash_point),
            FakeNetwork(world, instance),
        )
        return dataclasses.replace(
            super().ports(),
            hypervisor=FakeHypervisor(world, instance),
            network=network,
            network_guard=FakeNetworkGuard(world, network),
            memory=self.guests,
            guest=FakeGuest(world),
        )

    async def begin(self) -> None:
        """As `recover`, without what touches this very host."""
        self.layout.make()
        await self.images.open()
        await self.supervisors.open()
        await self.manager.recover()

    async def end(self) -> None:
        await self.manager.close()
        await self.images.close()
        self.release_threads()

    async def kill(self) -> None:
        """As SIGKILL: nothing of this process has any effect from now on. What its threads are just writing is."""
        self.world.dead = True
        # One that is cancelled may begin another, which would clean up after it.
        while others := _tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        self._files._executor.shutdown(wait=True, cancel_futures=True)
        self.world.dead = False

    # --- what a test looks at and does

    def names(self) -> set[str]:
        return set(self.core.sandboxes.workers)

    def record(self, sandbox_id: str) -> SandboxRecord:
        return self.core.sandboxes.workers[sandbox_id].sandbox.record

    def phases(self) -> dict[str, Phase]:
        return {name: self.record(name).phase for name in self.names()}

    def held(self, sandbox_id: str) -> set[str]:
        """Keys of its ledger."""
        return {
            entry.key
            for entry in self.core.sandboxes.workers[sandbox_id].sandbox.ledger.held()
        }

    async def settled(self, timeout_s: float = 30.0) -> None:
        """Every sandbox is where it stays."""
        async with asyncio.timeout(timeout_s):
            for worker in list(self.core.sandboxes.workers.values()):
                await worker.sandbox.until(
                    lambda record: (
                        record.phase in FINAL[record.intent] and not record.reverting
                    ),
                    timeout_s,
                )
            while any(
                key.startswith("capture:")
                for name in self.names()
                for key in self.held(name)
            ):
                await asyncio.sleep(0.01)
            while any(is_at_work(w) for w in self.core.sandboxes.workers.values()):
                await asyncio.sleep(0.01)

    def tick(self, sandbox_id: str) -> int:
        """Its workload runs for a moment."""
        plan = self.record(sandbox_id).plan
        assert plan is not None
        return self.guests.tick(plan.domain)

    async def suspend(self, sandbox_id: str) -> None:
        await self.operations.suspend(self.operations.find(sandbox_id))

    async def resume(self, sandbox_id: str) -> None:
        await self.operations.resume(self.operations.find(sandbox_id))

    async def restore(self, sandbox_id: str, snapshot: str) -> None:
        worker = self.operations.find(sandbox_id)
        await self.operations.restore_snapshot(worker, snapshot)
