"""A composed driver of the tests: in this process, or as one of its own that can be killed.

As a program: python -m tests.fakes.composed BASE SOCKET STATE KILL_AT [ADDRESS_SERVICE]. Its extension writes what it does to STATE/world, one
line each, and ends the process with SIGKILL at the KILL_AT-th line (0: never).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from tests.fakes.eager import EAGER
from tests.fakes.process_driver import ProcessDriver
from tests.fakes.service import sandbox
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.compose.app import Composition
from vmdriver.compose.config import ComposeConfig
from vmdriver.extension import Context, Draft, Everywhere, Extension, Hold, Until
from vmdriver.extensions.external_address import ExternalAddress


def config(base: Path, socket: Path, state: Path, **more: Any) -> ComposeConfig:
    more.setdefault("base_wait_s", 0.5)
    more.setdefault("create_grace_s", 0.5)
    return ComposeConfig(
        base=f"unix:{base}", bind_socket=socket, state_dir=state, **more
    )


def settings_for(base: ProcessDriver, tmp_path: Path, **more: Any) -> ComposeConfig:
    """In front of that one, with its own files below `tmp_path`."""
    return config(base.socket, tmp_path / "c" / "c.sock", tmp_path / "s", **more)


@asynccontextmanager
async def composed(
    settings: ComposeConfig, extensions: Sequence[Extension] = ()
) -> AsyncIterator[tuple[Any, Composition]]:
    """A stub of it, and itself."""
    composition, stop = Composition(settings, extensions), asyncio.Event()
    task = asyncio.create_task(composition.run(stop))
    channel = grpc.aio.insecure_channel(f"unix:{settings.bind_socket}", options=EAGER)
    try:
        while not (settings.bind_socket.exists() or task.done()):
            await asyncio.sleep(0.002)
        ready = asyncio.create_task(channel.channel_ready())
        await asyncio.wait({ready, task}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            ready.cancel()
            task.result()
        yield pb_grpc.ComputeDriverStub(channel), composition
    finally:
        await channel.close()
        stop.set()
        await task


async def until(check: Callable[[], object], timeout_s: float = 10) -> None:
    """Wait for it."""
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def holding(world: Path) -> set[str]:
    """What the `World` whose lines these are has allocated and not given back."""
    held: set[str] = set()
    for line in world.read_text().splitlines():
        if line[0] == "+":
            held.add(line[1:])
        elif line[0] == "-":
            held.discard(line[1:])
    return held


class World(Extension):
    """Allocates two things for the sandbox's life and one for each run; every step is a line in a file."""

    name = "world"

    def __init__(self, path: Path, kill_at: int) -> None:
        self._path, self._kill_at = path, kill_at

    def step(self, text: str) -> None:
        with self._path.open("a") as file:
            file.write(text + "\n")
        if self._kill_at and len(self._path.read_text().splitlines()) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    async def _allocate(self, context: Context, name: str, until: Until) -> None:
        self.step(f"before hold {name}")
        await context.hold("thing", name, {"for": context.sandbox.id}, until)
        self.step(f"+{name}")

    async def before_create(self, context: Context, draft: Draft) -> None:
        await self._allocate(context, "first", Until.DELETE)
        await self._allocate(context, "second", Until.DELETE)

    async def before_start(self, context: Context) -> None:
        await self._allocate(context, "run", Until.STOP)

    async def after_create(self, context: Context) -> None:
        self.step("created")

    async def undo(self, context: Context, hold: Hold) -> None:
        assert hold.data == {"for": context.sandbox.id}
        self.step(f"-{hold.name}")


class Watching(World):
    """Counts what it is told, too."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, 0)
        self.told: list[str] = []

    async def after_ready(self, context: Context) -> None:
        self.told.append("ready")

    async def after_stop(self, context: Context) -> None:
        self.told.append("stop")

    async def after_delete(self, context: Context) -> None:
        self.told.append("delete")


class Runs(Watching):
    """Counts the runs that are about to begin, too."""

    async def before_start(self, context: Context) -> None:
        self.told.append("begins")
        await super().before_start(context)


async def run_once(stub: Any, spy: Runs) -> None:
    """Make the sandbox "s1", and stop it; `spy` forgets what it was told by then."""
    await stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=sandbox()))
    await until(lambda: spy.told == ["begins", "ready"])
    await stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="s1"))
    await until(lambda: spy.told[-1] == "stop")
    spy.told.clear()


async def failed(call: Awaitable[Any]) -> grpc.StatusCode:
    """What it failed with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        code = error.code()
        assert isinstance(code, grpc.StatusCode)
        return code
    raise AssertionError("it did not fail")


class KilledAddress(ExternalAddress):
    """The shipped extension, whose process ends just before or just after a question to the service."""

    activation = Everywhere()  # type: ignore[assignment]

    def __init__(self, kill_at: int) -> None:
        self._left = kill_at

    def _step(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    async def _ask(self, config: Any, verb: str, path: str) -> Any:  # type: ignore[override]
        self._step()
        answer = await ExternalAddress._ask(config, verb, path)
        self._step()
        return answer


async def main() -> None:
    base, socket, state = (Path(text) for text in sys.argv[1:4])
    kill_at, address_service = int(sys.argv[4]), sys.argv[5:]
    state.mkdir(parents=True, exist_ok=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    if address_service:
        name = KilledAddress.name
        table = {name: {"url": address_service[0]}}
        settings = config(base, socket, state, extensions=[name], extension=table)
        await Composition(settings, [KilledAddress(kill_at)]).run(stop)
    else:
        world = World(state / "world", kill_at)
        await Composition(config(base, socket, state), [world]).run(stop)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
