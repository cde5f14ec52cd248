"""A wire between two hosts that can be slow, hold back what one of them says, and be cut."""

from __future__ import annotations

import asyncio
from typing import Self


class Link:
    """Connections to `port` of the loopback lead to `target`, with a delay each way, in seconds."""

    def __init__(self, target: int, delay_s: float = 0.0) -> None:
        self.port = 0
        self.connections = 0
        """That were begun, ever."""
        self._target, self._delay_s = target, delay_s
        self._whole, self._answers = asyncio.Event(), asyncio.Event()
        self._server: asyncio.Server | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.restore()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        if self._under_way:
            await asyncio.wait(self._under_way)

    def cut(self) -> None:
        """Now: what is on its way is lost, and nobody gets through before it is restored."""
        self._whole.clear()
        for task in self._under_way:
            task.cancel()

    def hold_answers(self) -> None:
        """What the called one says stays on its way, as long as the link is not cut."""
        self._answers.clear()

    def restore(self) -> None:
        """As at the beginning."""
        self._whole.set()
        self._answers.set()

    async def _connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        ends = [writer]
        try:
            if self._whole.is_set():
                self.connections += 1
                there = await asyncio.open_connection("127.0.0.1", self._target)
                ends.append(there[1])
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pass(reader, there[1], None))
                    both.create_task(self._pass(there[0], writer, self._answers))
        except (OSError, asyncio.CancelledError, ExceptionGroup):
            pass
        finally:
            self._under_way.discard(task)
            for end in ends:
                end.transport.abort()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        held: asyncio.Event | None,
    ) -> None:
        while data := await reader.read(65536):
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            if held is not None:
                await held.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # the other direction ends with it
