"""Looks at the host's network namespace that are wanted at one time are one look at all of it: each
reads lists of everything there is, whatever of it is wanted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from vmdriver.network.guard.picture import Picture, Scene, only

_FEW = 2
Seen = tuple[Picture, Mapping[int, str]]
"""The picture, and the names of interfaces in it by their index."""


@dataclass(eq=False)
class _Wanted:
    scene: Scene
    seen: asyncio.Future[Seen] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class JointLook:
    """`look` looks at one scene. NetworkError."""

    def __init__(self, look: Callable[[Scene], Awaitable[Seen]]) -> None:
        self._look = look
        self._wanted: list[_Wanted] = []
        self._task: asyncio.Task[None] | None = None

    async def look(self, scene: Scene) -> Seen:
        """As it is now, not before. NetworkError."""
        wanted = _Wanted(scene)
        self._wanted.append(wanted)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="look at the host")
        return await asyncio.shield(wanted.seen)

    async def _run(self) -> None:
        while self._wanted:
            some, self._wanted = self._wanted, []
            if len(some) <= _FEW:
                for one in some:
                    await self._answer([one], one.scene)
                continue
            settings = frozenset[str]().union(*(one.scene.sysctls for one in some))
            await self._answer(some, Scene(None, None, settings))

    async def _answer(self, some: list[_Wanted], scene: Scene) -> None:
        try:
            picture, names = await self._look(scene)
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            for one in some:
                if not one.seen.done():
                    one.seen.set_exception(error)
            return
        for one in some:
            if one.seen.done():
                continue
            if scene is one.scene:
                one.seen.set_result((picture, names))
            else:
                wanted = one.scene.interfaces or ()
                own = {i: name for i, name in names.items() if name in wanted}
                one.seen.set_result((only(one.scene, picture), own))
