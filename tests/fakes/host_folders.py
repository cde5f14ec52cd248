"""What reads folders of the host for machines, in memory, begun one after the other as the real ones are."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fakes.world import World
from vmdriver.errors import Refused
from vmdriver.lifecycle.ports.host import Found, Guard, no_crash_point
from vmdriver.model.host_mount import HostMount
from vmdriver.model.ids import parse_mark
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import LaunchPlan


class FakeHostFolders:
    def __init__(
        self, world: World, instance: str, crash_point: Guard = no_crash_point
    ) -> None:
        self._world, self._instance, self._crash_point = world, instance, crash_point

    async def look(self, mounts: Sequence[HostMount]) -> None:
        self._world.act("look at host folders")
        if not self._world.has_virtiofsd:
            raise Refused("virtiofsd is missing", reason="VirtiofsdMissing")
        for mount in mounts:
            self._check(mount)

    def _check(self, mount: HostMount) -> None:
        if mount.path not in self._world.host_paths:
            raise Refused(f"{mount.path} is not there", reason="HostMountMissing")

    async def share(self, plan: LaunchPlan, mark: str, directory: str) -> None:
        world = self._world
        world.act(f"share folders {plan.sandbox_id}")
        assert not world.folders.get(directory), "somebody reads for it already"
        world.folders[directory], world.folder_marks[directory] = {}, mark
        await self._crash_point("folders:directory")
        for mount in plan.host_mounts:
            world.act(f"read folder {mount.path}")
            self._check(mount)
            world.folders[directory][mount.tag] = ""
            await self._crash_point(f"folders:{mount.tag}")

    async def end(self, mark: str, directory: str) -> None:
        world = self._world
        world.act(f"end folders {directory}")
        for domain in world.folders.get(directory, {}).values():
            state = world.domains.get(domain, DomainState.OFF)
            ended = state is DomainState.OFF or domain in world.ended
            assert ended, f"{domain} would lose a folder"
        if directory in world.folders:
            world.folders[directory] = {}
            await self._crash_point("folders:ended")
        world.folders.pop(directory, None)
        world.folder_marks.pop(directory, None)

    async def shared(self) -> dict[str, set[str]]:
        self._world.act("look who reads host folders")
        marks = self._world.folder_marks
        return {marks[d]: set(tags) for d, tags in self._world.folders.items()}

    async def marked(self) -> list[Found]:
        marks = self._world.folder_marks
        found = [
            Found(
                "folders", directory, parse_mark(marks[directory], self._instance) or ""
            )
            for directory, readers in self._world.folders.items()
            if readers
        ]
        return [one for one in found if one.sandbox_id]
