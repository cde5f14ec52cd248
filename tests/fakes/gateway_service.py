"""A gateway that says its version, or is away."""

from __future__ import annotations

from tests.fakes.world import World
from vmdriver.errors import Unavailable


class FakeGatewayService:
    def __init__(self, world: World) -> None:
        self._world = world

    async def version(self) -> str:
        self._world.act("ask the gateway's version")
        if not self._world.gateway_version:
            raise Unavailable("the gateway does not say its version")
        return self._world.gateway_version
