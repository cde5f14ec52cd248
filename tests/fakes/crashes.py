"""Kills the process of a fake driver at a chosen crash point."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.fakes.driver import FakeDriver
from tests.fakes.world import Crash, World


class Bomb:
    """Counts crash points; at the chosen one the process is killed."""

    def __init__(self, world: World, at: int | None = None) -> None:
        self.world, self.at, self.passed = world, at, 0
        self.exploded = asyncio.Event()
        self.names: list[str] = []
        self.defused = False

    async def __call__(self, crash_point: str) -> None:
        if self.world.dead:
            raise Crash(crash_point)
        if self.defused:
            return
        self.names.append(crash_point)
        if self.passed == self.at:
            self.world.dead = True
            self.exploded.set()
            raise Crash(crash_point)
        self.passed += 1

    def defuse(self) -> None:
        """What comes from now on does not count: the process ends by itself."""
        self.defused, self.world.fail = True, lambda _call: False


class BombAtCalls(Bomb):
    """The same before each effect on the host, whoever wants it: also where nothing is in a journal."""

    def __init__(self, world: World, at: int | None = None) -> None:
        super().__init__(world, at)
        world.fail = self._passes

    async def __call__(self, crash_point: str) -> None:
        if self.world.dead:
            raise Crash(crash_point)

    def _passes(self, call: str) -> bool:
        if self.passed == self.at:
            self.world.dead = True
            self.exploded.set()
            self.defuse()  # for the next process
            raise Crash(call)
        self.passed += 1
        return False


class Killer:
    """Counts crash points; at the chosen one QEMU is killed, and libvirt does not know yet."""

    def __init__(self, world: World, at: int | None = None) -> None:
        self.world, self.at, self.passed = world, at, 0
        self.killed = ""
        """Where; "" while there was no machine to kill."""

    async def __call__(self, crash_point: str) -> None:
        if self.world.dead:
            raise Crash(crash_point)
        if self.passed == self.at:
            for domain in set(self.world.domains):
                self.world.qemu_ends(domain)
            self.killed = crash_point if self.world.ended else ""
        self.passed += 1


async def played_until_crash(
    driver: FakeDriver, bomb: Bomb, play: Callable[[], Awaitable[None]]
) -> bool:
    """One process from its start; True if it was killed on the way."""

    async def whole() -> None:
        await driver.manager.recover()
        await play()

    playing = asyncio.create_task(whole())
    exploded = asyncio.create_task(bomb.exploded.wait())
    await asyncio.wait({playing, exploded}, return_when=asyncio.FIRST_COMPLETED)
    if not bomb.exploded.is_set():
        exploded.cancel()
        await playing
        await driver.close()
        return False
    playing.cancel()
    await asyncio.gather(playing, return_exceptions=True)
    await driver.kill()
    return True
