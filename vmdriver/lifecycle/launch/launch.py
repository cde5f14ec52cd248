"""What brings a machine up: launch, wait for its word, confirm; or adopt a running one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from vmdriver.errors import DriverError, HostError, HypervisorError
from vmdriver.host import facts
from vmdriver.lifecycle.extending.draft import PlanDraft
from vmdriver.lifecycle.extending.subject import new_run
from vmdriver.lifecycle.launch import endings
from vmdriver.lifecycle.launch.launcher import LaunchFailed
from vmdriver.lifecycle.launch.secrets import secrets_digest
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.lifecycle.templates.fork import Beginning, ForkActions
from vmdriver.model.condition import Progress
from vmdriver.model.ids import mark
from vmdriver.model.phase import SAID, Intent, MachineState, Phase
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.runs import Reason, RestoreKind

_log = logging.getLogger(__name__)
_POLL_S = 0.03


def _qemu_ended(failed: LaunchFailed) -> bool:
    """Whether libvirt had QEMU started and could not bring it up. What QEMU cannot take is told
    by the same error: then the second try costs a moment, and says the same.
    """
    started = failed.blame is Reason.LAUNCHER_SPAWN_FAILED
    return started and isinstance(failed.cause, HypervisorError)


class LaunchActions(ForkActions):
    """Actions LAUNCH, AWAIT_READY, CONFIRM_RUNNING, and adoption. Each may be cut off
    anywhere by a crash and is begun again by the next process: the ledger says how far
    it came.
    """

    async def _adopt(self) -> None:
        shared, record = self._shared, self.record
        if record.plan is not None:
            # Whoever emptied the firewall while we were away did not mean to open it. First,
            # since it may fail: then all of this is done again.
            await shared.ports.network.load_rules(
                record.plan.network, mark(shared.settings.instance, record.id)
            )
        try:
            await shared.extensions.before_restore(
                record, self.ledger, RestoreKind.ADOPTED
            )
        except DriverError as error:
            self.tell(error.reason, error.text(), warn=True)
        self.tell("Adopted", "the machine was running and goes on")
        for problem in await shared.extensions.after_restore(
            record, self.ledger, RestoreKind.ADOPTED
        ):
            self.tell("ExtensionFailed", problem, warn=True)

    async def _launch(self) -> None:
        """What fails of it is the sandbox's failure."""
        try:
            await self._launch_machine()
        except LaunchFailed as failed:
            failure = endings.provisioning_failed(failed.cause)
            if _qemu_ended(failed) and self._may_launch_again():
                await self._launch_again(failure, failed.blame)
                return
            self.tell(failure.reason, failure.message, warn=True)
            await self.update(
                phase=Phase.FAILING, failure=failure, unwind_reason=failed.blame.value
            )
        except DriverError:
            raise  # of our own files or an undo: tried again
        except Exception as error:  # noqa: BLE001 - a bug must not become an endless retry
            _log.exception("%s: the launch failed", self.record.id)
            failure = endings.provisioning_failed(
                HostError(f"internal error: {type(error).__name__}")
            )
            blame = Reason.LAUNCHER_SPAWN_FAILED.value
            await self.update(phase=Phase.FAILING, failure=failure, unwind_reason=blame)

    async def _launch_machine(self) -> None:
        shared = self._shared
        kind = RestoreKind.RELAUNCHED if self.record.launches > 0 else None
        if self.record.intent is not Intent.RUNNING:
            return
        deliberate = self.record.phase in {Phase.NEW, Phase.STOPPED}
        await self.update(
            phase=Phase.LAUNCHING,
            launch_retries=0 if deliberate else self.record.launch_retries,
        )
        await self._unwind(Reason(self.record.unwind_reason or Reason.STOPPED))
        if kind is not None:
            await self._ask_to_restore(kind)
        try:
            await self._launch_planned(kind)
        finally:
            # From here on the record says which image is needed, or nobody needs it.
            shared.ports.images.release(self.record.id)

    async def _launch_planned(self, kind: RestoreKind | None) -> None:
        shared = self._shared
        plan, draft = await shared.launcher.plan(self.record, self.ledger, self.tell)
        try:
            secrets = await shared.launcher.secrets(self.record)
        except DriverError as error:
            raise LaunchFailed(error, Reason.GUEST_PREPARE_FAILED) from error
        async with self._beginning(plan) as (plan, beginning):
            if beginning.template is not None:
                kind = RestoreKind.TEMPLATE
            await self._note_launch(plan, secrets_digest(secrets), kind)
            if kind is RestoreKind.TEMPLATE:
                await self._ask_to_restore(kind)
            await self._start_machine(plan, draft, secrets, beginning)
        self.tell(
            "Started",
            "the machine is started",
            Progress(active_step="starting_sandbox", active_detail="booting"),
        )
        if kind is not None:
            await self._tell_restored(kind)

    async def _start_machine(
        self,
        plan: LaunchPlan,
        draft: PlanDraft,
        secrets: Mapping[str, bytes],
        beginning: Beginning,
    ) -> None:
        launcher = self._shared.launcher
        environment = await launcher.prepare(self.record, self.ledger, plan, draft)
        source = self._source(plan, environment, secrets, beginning)
        await launcher.take(self.record, self.ledger, source)

    async def _note_launch(
        self, plan: LaunchPlan, digest: str, kind: RestoreKind | None
    ) -> None:
        root, record = plan.disk("root"), self.record
        inherited = len(root.backing) - 1 if plan.template else record.inherited_layers
        await self.update(
            plan=plan,
            layers=(*reversed(root.backing[:-1]), root.path),
            inherited_layers=inherited,
            base=root.backing[-1],
            image_digest=plan.image_digest,
            image_config=plan.image_config,
            secrets_digest=digest,
            lease=plan.network.lease,
            launches=record.launches + 1,
            host_boot_id=facts.boot_id(),
            unwind_reason="",
            boot_seconds={},
            mapped="",
            extensions=new_run(record, kind),
        )
        self._shared.launcher.budget.settle(record.id)

    async def _ask_to_restore(self, kind: RestoreKind) -> None:
        try:
            await self._shared.extensions.before_restore(self.record, self.ledger, kind)
        except DriverError as error:
            raise LaunchFailed(error, Reason.BEFORE_LAUNCH_HOOK_FAILED) from error

    async def _await_ready(self) -> None:
        """Poll the status disk, which is cheap, until the guest says something; look at
        the domain once a second.
        """
        plan = self.record.plan
        assert plan is not None  # noqa: S101 - a machine without a plan is absent
        path, loop = plan.disk("status").path, asyncio.get_running_loop()
        deadline = loop.time() + self._shared.settings.boot_timeout_s
        look_again = loop.time() + 1.0
        while self._shared.ports.disks.report_now(path).phase not in SAID:
            if self.woken.is_set() or loop.time() > look_again:
                look_again = loop.time() + 1.0
                self.woken.clear()
                machine, _ = await self._shared.observer.look(self)
                if (
                    machine is not MachineState.BOOTING
                    or self.record.intent is not Intent.RUNNING
                ):
                    return
            if loop.time() > deadline:
                await self._end(
                    endings.not_ready(
                        self._shared.settings.boot_timeout_s, await self._tail()
                    )
                )
                return
            await asyncio.sleep(_POLL_S)

    async def _confirm_running(self, report: GuestReport) -> None:
        self.adopted = True
        plan = self.record.plan
        if plan is not None and plan.template is None and self.record.launches == 1:
            await self._shared.templates.want(plan, self.record.spec.workspace)
        self._shared.warm_pool.refill()
        await self.update(
            phase=Phase.RUNNING,
            failure=None,
            launch_retries=0,
            boot_seconds=dict(report.stamps),
        )
        self.tell(
            "Running",
            "the supervisor has been started",
            Progress("starting_sandbox", "Sandbox ready"),
        )
