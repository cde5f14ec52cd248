"""Who answers one machine's questions for names, on sockets of this host."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket

import pytest

from vmdriver.network.names.asking import Asking
from vmdriver.network.names.desk import Desk, Load, Sockets


def listening() -> Sockets:
    made = []
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        one = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
        one.bind(("127.0.0.1", 0))
        made.append(one)
    made[1].listen()
    return Sockets(*made)


# A stream that asyncio has taken and not handed over yet is left to the collector, which tells.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("steps", range(8))
async def test_a_stream_that_comes_just_before_the_end_does_not_outlive_it(
    steps: int,
) -> None:
    desk, sockets = Desk(Asking(lambda: ()), Load()), listening()
    address = sockets.streams.getsockname()
    await desk.open(sockets)
    before = asyncio.all_tasks()
    with socket.create_connection(address) as guest:
        for _ in range(steps):
            await asyncio.sleep(0)
        await desk.close()
        for _ in range(20):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        gc.collect()
        guest.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert guest.recv(1) == b""
