"""Seeds and status disks in memory."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fakes.world import World
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model.plan import LaunchPlan


class FakeLaunchFiles:
    def __init__(self, world: World) -> None:
        self._world = world

    async def write_for_resume(
        self,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> None:
        self._world.act("write resume files")
        self._world.let_in(plan)
        self._world.files.add(plan.disk("seed").path)
        self._world.reports[plan.disk("status").path] = GuestReport("started")

    async def write_for_template(self, plan: LaunchPlan) -> None:
        self._world.act("write barrier files")
        self._world.let_in(plan)
        self._world.reports[plan.disk("status").path] = GuestReport("waiting")

    async def remove_abandoned(self, parent: str, keep: set[str]) -> None:
        users = self._world.file_users
        for path in [path for path in users if path.startswith(f"{parent}/")]:
            if path.removeprefix(f"{parent}/").partition("/")[0] not in keep:
                del users[path]

    async def take_over(
        self,
        waiting: LaunchPlan,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> None:
        self._world.act("take over files")
        self._world.let_in(plan)
        self._world.files.add(plan.disk("seed").path)
        self._world.reports.pop(waiting.disk("status").path, None)
        self._world.reports[plan.disk("status").path] = GuestReport()

    async def write(
        self,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> None:
        self._world.act("write launch files")
        self._world.let_in(plan)
        self._world.files.add(plan.disk("seed").path)
        self._world.seeds[plan.sandbox_id] = (environment, secrets)
        self._world.reports[plan.disk("status").path] = GuestReport()
