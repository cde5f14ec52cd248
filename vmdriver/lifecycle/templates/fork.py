"""New sandboxes whose machine goes on from a template's memory instead of booting."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from vmdriver.errors import DriverError
from vmdriver.host.threads import finished
from vmdriver.lifecycle.engine.hold import SandboxHold
from vmdriver.lifecycle.engine.ledger import MACHINE
from vmdriver.lifecycle.engine.resource import FILES, LEASE, OVERLAY, TAP
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.launch.resources import Effects, MachineSource, is_there
from vmdriver.lifecycle.templates.pool import Waiting
from vmdriver.lifecycle.templates.template import Template, on_template
from vmdriver.model.ids import mark
from vmdriver.model.plan import LaunchPlan


@dataclass(frozen=True)
class Beginning:
    """What a machine starts from: from nothing, a template, or a fork that waits."""

    template: Template | None = None
    waiting: Waiting | None = None


class ForkActions(SandboxHold):
    """What a launch does where there is a template for it."""

    @property
    def _owner(self) -> str:
        return mark(self._shared.settings.instance, self.record.id)

    async def _template_key(self, plan: LaunchPlan) -> str:
        """Of the template that would fit; "" where none may be used. Only for a disk that
        nobody has written to yet.
        """
        if self.record.layers:
            return ""
        workspace = self.record.spec.workspace
        return await self._shared.templates.key_of(plan, workspace)

    async def _take_over(self, plan: LaunchPlan, waiting: Waiting) -> LaunchPlan:
        """The sandbox's address lease is the waiting machine's from now on."""
        lease, pool = waiting.plan.network.lease, self._shared.launcher.pool

        async def exchange() -> None:
            await self.ledger.remember(LEASE, lease.model_dump())
            pool.free(waiting.owner)
            pool.adopt(self.record.id, lease)

        await finished(exchange())
        plan = planner.with_lease(plan, lease)
        return plan.model_copy(update={"domain": waiting.plan.domain})

    @asynccontextmanager
    async def _beginning(
        self, plan: LaunchPlan
    ) -> AsyncIterator[tuple[LaunchPlan, Beginning]]:
        """What the launch inside starts from. If that does not come to its end, what was not
        taken over from a waiting machine is gone afterwards. The template is held until the
        record names its layer and the machine has its memory open.
        """
        pool = self._shared.warm_pool
        async with self._shared.templates.use(await self._template_key(plan)) as found:
            waiting = pool.claim(found) if found is not None else None
            try:
                if found is not None:
                    if waiting is not None:
                        plan = await self._take_over(plan, waiting)
                    root = (waiting.plan if waiting else plan).disk("root")
                    plan = on_template(plan, found, root.path)
                yield plan, Beginning(found, waiting)
            except BaseException:
                if waiting is not None:
                    taken = self.ledger.get(OVERLAY) is not None
                    await finished(pool.discard(waiting, keep_layer=taken))
                raise
            if waiting is not None:
                pool.settle(waiting)

    def _source(
        self,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
        beginning: Beginning,
    ) -> MachineSource:
        template, waiting = beginning.template, beginning.waiting
        source = MachineSource(plan, self._owner, environment, secrets)
        if template is None:
            return source
        if waiting is None:
            return replace(
                source, instead={MACHINE: partial(self._fork, plan, template)}
            )
        # Everything is there already, and gets another owner.
        ports, tap = self._shared.ports, plan.network.lease.tap
        take_over = partial(ports.launch_files.take_over, waiting.plan, plan)
        instead: Effects = {
            OVERLAY: is_there,
            FILES: partial(take_over, environment, secrets),
            TAP: partial(ports.network.remark_tap, tap, self._owner),
            MACHINE: partial(self._adopt_waiting, plan),
        }
        return replace(source, instead=instead)

    async def _fork(self, plan: LaunchPlan, template: Template) -> None:
        """Have the machine go on from the template, as this sandbox; boot it if that is
        not to be.
        """
        ports = self._shared.ports
        scratch = self._shared.launcher.places.paths(self.record.id).scratch
        try:
            saved = await ports.memory_store.saved(template.directory)
            await ports.memory.load(plan, self._owner, saved, scratch)
            await self._adopt_guest(plan)
        except DriverError as error:
            await self._boot_instead(plan, error)

    async def _adopt_waiting(self, plan: LaunchPlan) -> None:
        try:
            await self._shared.ports.hypervisor.remark(plan.domain, self._owner)
            await self._adopt_guest(plan)
        except DriverError as error:
            await self._boot_instead(plan, error)

    async def _adopt_guest(self, plan: LaunchPlan) -> None:
        ports = self._shared.ports
        await ports.memory.go_on(plan.domain)
        limit_s = self._shared.settings.restore_timeout_s
        await ports.guest.adopt(plan.domain, limit_s)

    async def _boot_instead(self, plan: LaunchPlan, error: DriverError) -> None:
        text = "the machine boots, since it could not go on from its template"
        self.tell("TemplateFailed", f"{text}: {error.text()}", warn=True)
        hypervisor = self._shared.ports.hypervisor
        await hypervisor.destroy(plan.domain)
        await hypervisor.start(plan, self._owner)
