"""Fake: disks with the supervisor."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.world import World


class FakeSupervisorDisks:
    """There is one, and it is never removed."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def disk(self, program: Path, root: Path = Path("/")) -> Path:
        return Path("/supervisor.img")

    async def collect(self, in_use: set[str]) -> list[str]:
        self._world.supervisors_in_use = set(in_use)
        return []
