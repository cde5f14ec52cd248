"""The real gRPC server, on a real socket, over a driver on a fake host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from tests.fakes.driver import FakeDriver
from tests.fakes.world import World
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.service import admin, volumes
from vmdriver.service.server import ADMIN, COMPUTE_DRIVER, VOLUMES, serve
from vmdriver.service.servicer import ComputeDriver, Identity, Readiness, register

IDENTITY = Identity("vmdriver", "0", "example.org/default:1", False)


@dataclass
class Served:
    """A client's view, and what is behind it. Operators are served beside it, on `admin.sock`."""

    stub: Any
    driver: FakeDriver
    socket: Path

    async def create(self, sandbox_id: str = "s1", **changes: Any) -> None:
        await self.stub.CreateSandbox(
            pb.CreateSandboxRequest(sandbox=sandbox(sandbox_id, **changes))
        )
        await self.driver.settled()


def sandbox(
    sandbox_id: str = "s1", name: str | None = None, **spec: Any
) -> pb.DriverSandbox:
    spec.setdefault("template", pb.DriverSandboxTemplate(image="example.org/image:1"))
    return pb.DriverSandbox(
        id=sandbox_id,
        name=name or f"name-{sandbox_id}",
        workspace="w",
        spec=pb.DriverSandboxSpec(**spec),
    )


@asynccontextmanager
async def served(
    directory: Path, recover: bool = True, **options: Any
) -> AsyncIterator[Served]:
    driver = FakeDriver(options.pop("world", World()), **options)
    readiness = Readiness()
    socket = directory / "run" / "d.sock"

    def for_operators(server: grpc.aio.Server) -> None:
        asked = admin.Admin(readiness, driver.broadcaster, driver.pictures.now)
        admin.register(asked, server)
        volumes.register(volumes.Volumes(readiness), server)

    server = await serve(
        socket,
        partial(register, ComputeDriver(IDENTITY, readiness, driver.broadcaster)),
        COMPUTE_DRIVER,
    )
    operators = await serve(
        socket.with_name("admin.sock"),
        for_operators,
        *(ADMIN, VOLUMES),
    )
    if recover:
        await driver.manager.recover()
        readiness.set(driver.manager)
    try:
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            yield Served(pb_grpc.ComputeDriverStub(channel), driver, socket)
    finally:
        driver.broadcaster.close()
        await asyncio.gather(server.stop(0.2), operators.stop(0.2))
        await driver.close()
