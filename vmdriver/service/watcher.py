"""The command line's side of the socket, for who does not wait in a call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.service.client import refusal, row_of


@asynccontextmanager
async def channel_to(path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """To the driver on that socket; a failed call is a DriverError with its words, Unavailable
    where nobody answers.
    """
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        try:
            yield channel
        except grpc.aio.AioRpcError as error:
            raise refusal(path, error) from error


Row = dict[str, Any]


async def watch_sandboxes(gateway: Path) -> AsyncIterator[list[Row] | Row | str]:
    """First every sandbox of the driver on that socket; then each that has changed, and the id of
    each that is gone. Ends when the driver ends. DriverError.
    """
    async with channel_to(gateway) as channel:
        stub = pb_grpc.ComputeDriverStub(channel)
        answer = await stub.ListSandboxes(pb.ListSandboxesRequest())
        yield [row_of(sandbox) for sandbox in answer.sandboxes]
        async for event in stub.WatchSandboxes(pb.WatchSandboxesRequest()):
            if event.HasField("sandbox"):
                yield row_of(event.sandbox.sandbox)
            elif event.HasField("deleted"):
                yield str(event.deleted.sandbox_id)
