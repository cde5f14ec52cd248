"""Host users of machines in memory: whose files and processes there are, by number."""

from __future__ import annotations

from tests.fakes.world import World
from vmdriver.errors import Unavailable


class FakeMachineUsers:
    def __init__(self, world: World) -> None:
        self._world = world

    async def claim(self, number: int) -> bool:
        world = self._world
        world.act(f"claim user {number}")
        if number in {*world.running_users(), *world.file_users.values()}:
            return False
        world.claimed_users.add(number)
        return True

    async def is_idle(self, number: int) -> bool:
        return number not in self._world.running_users()

    async def clear(self, number: int, owner: str) -> None:
        world = self._world
        if number in world.running_users():
            raise Unavailable(f"a process runs as user {number}")
        world.act(f"give back user {number}")
        # A layer that is left stays in the folder of its number.
        for path, uid in list(world.file_users.items()):
            if uid == number and not (
                path in world.files and path.startswith("layers/")
            ):
                del world.file_users[path]
        world.claimed_users.discard(number)

    async def collect(self, held: set[int], *, all_known: bool) -> set[int]:
        world = self._world
        if all_known:
            world.claimed_users &= held
        return (world.claimed_users | set(world.file_users.values())) - held
