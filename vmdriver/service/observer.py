"""A screen's side of both sockets: pictures of a driver, and what is done with its sandboxes,
without holding up the screen's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmdriver._proto import admin_pb2 as pb
from vmdriver._proto import admin_pb2_grpc as pb_grpc
from vmdriver._proto import compute_driver_pb2 as driver_pb
from vmdriver._proto import compute_driver_pb2_grpc as driver_pb_grpc
from vmdriver.errors import Unavailable
from vmdriver.model.picture import Picture
from vmdriver.service.pictures import decode_picture
from vmdriver.service.watcher import channel_to

_PATIENCE_S = 15.0
"""For a picture that is due."""


@dataclass(frozen=True)
class Observer:
    """Of the driver that serves operators on `operators`, and a gateway on `gateway`. What a call
    has begun goes on in the driver when the call is cancelled.
    """

    operators: Path
    gateway: Path

    async def pictures(self, interval_s: float) -> AsyncIterator[Picture]:
        """One now, and one after each interval; ends when the driver ends. Unavailable, also for
        one that does not answer.
        """
        request = pb.ObserveRequest(interval_ms=round(interval_s * 1000))
        async with channel_to(self.operators) as channel:
            stream = aiter(pb_grpc.AdminStub(channel).Observe(request))
            while True:
                try:
                    async with asyncio.timeout(interval_s + _PATIENCE_S):
                        sent = await anext(stream)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    text = "the driver is there, and does not answer"
                    raise Unavailable(text) from error
                yield decode_picture(sent)

    async def suspend(self, sandbox: str) -> None:
        """Returns when it is suspended. DriverError with the driver's words."""
        request = pb.SuspendRequest(sandbox=sandbox)
        await self._done(lambda stub: stub.Suspend(request))

    async def resume(self, sandbox: str) -> None:
        """Returns when it runs."""
        request = pb.ResumeRequest(sandbox=sandbox)
        await self._done(lambda stub: stub.Resume(request))

    async def snapshot(self, sandbox: str, name: str) -> None:
        """Returns when it is durable."""
        request = pb.CreateSnapshotRequest(sandbox=sandbox, name=name)
        await self._done(lambda stub: stub.CreateSnapshot(request))

    async def _done(self, call: Callable[[Any], AsyncIterator[pb.Progress]]) -> None:
        async with channel_to(self.operators) as channel:
            async for _ in call(pb_grpc.AdminStub(channel)):
                pass  # its steps are among the events of the pictures

    async def delete(self, sandbox: str) -> None:
        """Returns when that is durably accepted. A gateway that watches learns of it."""
        async with channel_to(self.gateway) as channel:
            stub = driver_pb_grpc.ComputeDriverStub(channel)
            await stub.DeleteSandbox(driver_pb.DeleteSandboxRequest(sandbox_id=sandbox))
