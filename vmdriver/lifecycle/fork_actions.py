"""New sandboxes whose machine goes on from a template's memory instead of booting."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from secrets import token_hex

from vmdriver.errors import DriverError
from vmdriver.lifecycle import planner
from vmdriver.lifecycle.hold import SandboxHold
from vmdriver.lifecycle.hooks import PlanDraft
from vmdriver.lifecycle.launcher import LaunchFailed
from vmdriver.lifecycle.steps import LEASE, Step, claim_steps, launch_steps
from vmdriver.lifecycle.templates import Template, on_template
from vmdriver.lifecycle.warm_pool import Waiting
from vmdriver.model.ids import mark
from vmdriver.model.plan import LaunchPlan


@dataclass(frozen=True)
class Beginning:
    """What a machine starts from: from nothing, a template, or a fork that waits."""

    template: Template | None = None
    waiting: Waiting | None = None


class ForkActions(SandboxHold):
    """What a launch does where there is a template for it."""

    async def _choose_beginning(self, plan: LaunchPlan) -> tuple[LaunchPlan, Beginning]:
        """The plan as it becomes with a template that fits; else the plan itself. Only for
        a disk that nobody has written to yet.
        """
        if self.record.layers:
            return plan, Beginning()
        templates = self._shared.templates
        key = await templates.key_of(plan, self.record.spec.workspace)
        template = await templates.find(key) if key else None
        if template is None:
            return plan, Beginning()
        waiting = self._shared.warm_pool.claim(key)
        layer = plan.disk("root").path
        if waiting is not None:
            plan = await self._take_over(plan, waiting)
            layer = waiting.plan.disk("root").path
        return on_template(plan, template, layer), Beginning(template, waiting)

    async def _take_over(self, plan: LaunchPlan, waiting: Waiting) -> LaunchPlan:
        """The sandbox's address lease is the waiting machine's from now on."""
        lease, pool = waiting.plan.network.lease, self._shared.launcher.pool
        await self.ledger.remember(LEASE, lease.model_dump())
        pool.free(waiting.owner)
        pool.adopt(self.record.id, lease)
        plan = planner.with_lease(plan, lease)
        return plan.model_copy(update={"domain": waiting.plan.domain})

    async def _start_machine(
        self,
        plan: LaunchPlan,
        draft: PlanDraft,
        secrets: Mapping[str, bytes],
        beginning: Beginning,
    ) -> None:
        """LaunchFailed; what was not taken over from a waiting machine is gone then."""
        launcher, waiting = self._shared.launcher, beginning.waiting
        try:
            environment = await launcher.prepare(self.record, self.ledger, plan, draft)
            steps = self._steps(plan, environment, secrets, beginning)
            await launcher.take(self.record, self.ledger, steps)
        except (LaunchFailed, DriverError):
            if waiting is not None:
                await self._shared.warm_pool.discard(waiting)
            raise

    def _steps(
        self,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
        beginning: Beginning,
    ) -> list[Step]:
        ports, instance = self._shared.ports, self._shared.settings.instance
        template, waiting = beginning.template, beginning.waiting
        if template is None:
            return launch_steps(ports, instance, plan, environment, secrets)
        if waiting is None:
            return launch_steps(
                ports,
                instance,
                plan,
                environment,
                secrets,
                lambda: self._fork(plan, template),
            )
        return claim_steps(
            ports,
            instance,
            plan,
            waiting.plan,
            environment,
            secrets,
            lambda: self._adopt_waiting(plan),
        )

    async def _fork(self, plan: LaunchPlan, template: Template) -> None:
        """Have the machine go on from the template, as this sandbox; boot it if that is
        not to be.
        """
        ports = self._shared.ports
        owner = mark(self._shared.settings.instance, self.record.id)
        scratch = self._shared.launcher.places.paths(self.record.id).scratch
        try:
            saved = await ports.memory_store.saved(template.directory)
            await ports.memory.load(plan, owner, saved, scratch)
            await self._adopt_guest(plan)
        except DriverError as error:
            await self._boot_instead(plan, error)

    async def _adopt_waiting(self, plan: LaunchPlan) -> None:
        owner = mark(self._shared.settings.instance, self.record.id)
        try:
            await self._shared.ports.hypervisor.remark(plan.domain, owner)
            await self._adopt_guest(plan)
        except DriverError as error:
            await self._boot_instead(plan, error)

    async def _adopt_guest(self, plan: LaunchPlan) -> None:
        memory = self._shared.ports.memory
        await memory.go_on(plan.domain)
        fields = {"clock_ns": str(time.time_ns()), "seed": token_hex(64)}
        limit_s = self._shared.settings.restore_timeout_s
        await memory.ask(plan.domain, "adopt", fields, limit_s)

    async def _boot_instead(self, plan: LaunchPlan, error: DriverError) -> None:
        text = "the machine boots, since it could not go on from its template"
        self.tell("TemplateFailed", f"{text}: {error.text()}", warn=True)
        owner = mark(self._shared.settings.instance, self.record.id)
        hypervisor = self._shared.ports.hypervisor
        await hypervisor.destroy(plan.domain)
        await hypervisor.start(plan, owner)
