"""New sandboxes whose machine goes on from a template's memory instead of booting."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from secrets import token_hex

from vmdriver.errors import DriverError
from vmdriver.lifecycle.hold import SandboxHold
from vmdriver.lifecycle.templates import Template, on_template
from vmdriver.model.ids import mark
from vmdriver.model.plan import LaunchPlan

_log = logging.getLogger(__name__)
Start = Callable[[], Awaitable[None]]


class ForkActions(SandboxHold):
    """What a launch does where there is a template for it."""

    async def _forked(self, plan: LaunchPlan) -> tuple[LaunchPlan, Start | None]:
        """The plan on a template that fits, and how its machine is started; else the plan
        itself. Only for a disk that nobody has written to yet.
        """
        if self.record.layers:
            return plan, None
        templates = self._shared.templates
        key = await templates.key_of(plan, self.record.spec.workspace)
        template = await templates.find(key) if key else None
        if template is None:
            return plan, None
        plan = on_template(plan, template, plan.disk("root").path)
        return plan, partial(self._fork, plan, template)

    async def _fork(self, plan: LaunchPlan, template: Template) -> None:
        """Have the machine go on from the template, as this sandbox; boot it if that is
        not to be.
        """
        shared, ports = self._shared, self._shared.ports
        owner = mark(shared.settings.instance, self.record.id)
        scratch = shared.launcher.places.paths(self.record.id).scratch
        try:
            saved = await ports.memory_store.saved(template.directory)
            await ports.memory.load(plan, owner, saved, scratch)
            await ports.memory.go_on(plan.domain)
            fields = {"clock_ns": str(time.time_ns()), "seed": token_hex(64)}
            limit_s = shared.settings.restore_timeout_s
            await ports.memory.ask(plan.domain, "adopt", fields, limit_s)
        except DriverError as error:
            text = f"the machine boots, since it could not go on from its template: {error.text()}"
            self.tell("TemplateFailed", text, warn=True)
            await ports.hypervisor.destroy(plan.domain)
            await ports.hypervisor.start(plan, owner)
