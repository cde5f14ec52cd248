"""What brings a machine up: launch, wait for its word, confirm; or adopt a running one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from vmdriver.errors import DriverError, HypervisorError, unexpected
from vmdriver.host import facts
from vmdriver.lifecycle.engine import measures
from vmdriver.lifecycle.engine.giving_back import GivingBack
from vmdriver.lifecycle.engine.ledger import MACHINE
from vmdriver.lifecycle.engine.observer import Observer, Seen
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.extending.runner import ExtensionRunner
from vmdriver.lifecycle.extending.subject import new_run
from vmdriver.lifecycle.extending.told import Told
from vmdriver.lifecycle.launch import endings
from vmdriver.lifecycle.launch.ended import Ended
from vmdriver.lifecycle.launch.launcher import Launcher, LaunchFailed
from vmdriver.lifecycle.launch.memory_budget import MemoryBudget
from vmdriver.lifecycle.launch.network_hold import NetworkHold
from vmdriver.lifecycle.launch.resources import MachineSource
from vmdriver.lifecycle.launch.secrets import secrets_digest
from vmdriver.lifecycle.ports.host import Disks
from vmdriver.lifecycle.ports.images import Images
from vmdriver.model.condition import Progress
from vmdriver.model.phase import SAID, Intent, MachineState, Phase
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import utc_now
from vmdriver.model.runs import Reason, RestoreKind
from vmdriver.model.timing import StartTiming, with_guest

_log = logging.getLogger(__name__)
_SOON_S, _POLL_S, _LATE_POLL_S = 1.0, 0.01, 0.03
"""A fork says something within the first of these, mostly."""
_GUEST_STARTS = "guest starts"


def _qemu_ended(failed: LaunchFailed) -> bool:
    """Whether libvirt had QEMU started and could not bring it up. What QEMU cannot take is told
    by the same error: then the second try costs a moment, and says the same.
    """
    started = failed.blame is Reason.LAUNCHER_SPAWN_FAILED
    return started and isinstance(failed.cause, HypervisorError)


def _tell_mounts(sandbox: Sandbox, plan: LaunchPlan) -> None:
    if plan.volumes:
        shown = ", ".join(
            f"{volume.name} at {volume.mount}"
            f"{' (read only)' if plan.disk(volume.role).read_only else ''}"
            for volume in plan.volumes
        )
        sandbox.tell("VolumesAttached", f"the machine has {shown}")
    if plan.host_mounts:
        folders = ", ".join(folder.shown for folder in plan.host_mounts)
        sandbox.tell("HostMountsAttached", f"the machine has {folders}")


@dataclass(frozen=True)
class Beginning:
    """What a machine starts from."""

    plan: LaunchPlan
    source: Callable[[Mapping[str, str], Mapping[str, bytes]], MachineSource]
    """Given its environment and its secrets."""
    kind: RestoreKind | None = None
    """Unless it boots."""


class Beginnings(Protocol):
    """Chooses what a launch starts from."""

    def begin(
        self, sandbox: Sandbox, plan: LaunchPlan
    ) -> AbstractAsyncContextManager[Beginning]:
        """For the launch inside. What it does not come to take over is gone afterwards."""

    async def started(self, sandbox: Sandbox) -> None:
        """Its guest has said that it started: others may begin from one like it."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Actions LAUNCH, AWAIT_READY, CONFIRM_RUNNING, and adoption. Each may be cut off
    anywhere by a crash and is begun again by the next process: the ledger says how far
    it came.
    """

    launcher: Launcher
    beginnings: Beginnings
    ended: Ended
    observer: Observer
    giving_back: GivingBack
    extensions: ExtensionRunner
    told: Told
    budget: MemoryBudget
    images: Images
    hold: NetworkHold
    disks: Disks
    boot_timeout_s: float

    async def adopt(self, sandbox: Sandbox, seen: Seen) -> bool:
        """At rest, once in a process: take up a machine that was running before it."""
        if sandbox.adopted or seen.machine is not MachineState.READY:
            return False
        record, kind = sandbox.record, RestoreKind.ADOPTED
        try:
            await self.extensions.before_restore(record, sandbox.ledger, kind)
        except DriverError as error:
            sandbox.tell(error.reason, error.text(), warn=True)
        sandbox.tell("Adopted", "the machine was running and goes on")
        await self.told.restored(sandbox, kind)
        sandbox.adopted = True
        return False

    async def launch(self, sandbox: Sandbox, _seen: Seen) -> None:
        """What fails of it is the sandbox's failure."""
        try:
            await self._launch(sandbox)
        except LaunchFailed as failed:
            failure, blame = endings.provisioning_failed(failed.cause), failed.blame
            again = _qemu_ended(failed) and await self.ended.launched_again(
                sandbox, failure, blame
            )
            measures.launch_failed(failed.cause.reason, again=again)
            if again:
                return
            sandbox.tell(failure.reason, failure.message, warn=True)
        except DriverError:
            raise  # of our own files or an undo: tried again
        except Exception as error:  # noqa: BLE001 - a bug must not become an endless retry
            _log.exception("%s: the launch failed", sandbox.record.id)
            cause = unexpected(error)
            measures.launch_failed(cause.reason, again=False)
            failure = endings.provisioning_failed(cause)
            blame = Reason.LAUNCHER_SPAWN_FAILED
        else:
            return
        await sandbox.update(
            phase=Phase.FAILING, failure=failure, unwind_reason=blame.value
        )

    async def _launch(self, sandbox: Sandbox) -> None:
        record = sandbox.record
        kind = RestoreKind.RELAUNCHED if record.launches > 0 else None
        if record.intent is not Intent.RUNNING:
            return
        deliberate = record.phase in {Phase.NEW, Phase.STOPPED}
        watch = sandbox.begin_start()
        await sandbox.update(
            phase=Phase.LAUNCHING,
            launch_retries=0 if deliberate else record.launch_retries,
        )
        reason = Reason(sandbox.record.unwind_reason or Reason.STOPPED)
        with watch.step("clean up"):
            await self.giving_back.run(sandbox, reason)
        if kind is not None:
            await self._ask_to_restore(sandbox, kind)
        devices = self.launcher.devices
        try:
            with devices.while_launching(record.id, sandbox.ledger):
                await self._launch_planned(sandbox, kind)
        finally:
            # From here on the record says which image is needed, or nobody needs it.
            self.images.release(record.id)

    async def _launch_planned(self, sandbox: Sandbox, kind: RestoreKind | None) -> None:
        launcher, timed = self.launcher, sandbox.stopwatch.step
        plan = await launcher.plan(sandbox.record, sandbox.ledger, sandbox.tell, timed)
        try:
            secrets = await launcher.secrets(sandbox.record)
        except DriverError as error:
            raise LaunchFailed(error, Reason.GUEST_PREPARE_FAILED) from error
        async with self.beginnings.begin(sandbox, plan) as beginning:
            kind = beginning.kind or kind
            with timed("plan stored"):
                await self._note(sandbox, beginning.plan, secrets_digest(secrets), kind)
            if beginning.kind is not None:
                await self._ask_to_restore(sandbox, beginning.kind)
            with timed("extensions prepare"):
                environment = await launcher.prepare(
                    sandbox.record, sandbox.ledger, beginning.plan
                )
            source = beginning.source(environment, secrets)
            await launcher.take(sandbox.record, sandbox.ledger, source, timed)
        _tell_mounts(sandbox, beginning.plan)
        sandbox.tell(
            "Started",
            "the machine is started",
            Progress(active_step="starting_sandbox", active_detail="booting"),
        )
        if plan.devices:
            sandbox.tell("DevicesPassed", f"the machine has {', '.join(plan.devices)}")
        if kind is not None:
            await self.told.restored(sandbox, kind)

    async def _note(
        self, sandbox: Sandbox, plan: LaunchPlan, digest: str, kind: RestoreKind | None
    ) -> None:
        root, record = plan.disk("root"), sandbox.record
        inherited = len(root.backing) - 1 if plan.template else record.inherited_layers
        await sandbox.update(
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
        self.budget.settle(record.id)

    async def _ask_to_restore(self, sandbox: Sandbox, kind: RestoreKind) -> None:
        try:
            await self.extensions.before_restore(sandbox.record, sandbox.ledger, kind)
        except DriverError as error:
            raise LaunchFailed(error, Reason.BEFORE_LAUNCH_HOOK_FAILED) from error

    async def await_ready(self, sandbox: Sandbox, _seen: Seen) -> None:
        """Poll the status disk, which is cheap, until the guest says something; look at
        the domain once a second.
        """
        plan = sandbox.record.plan
        assert plan is not None  # noqa: S101 - a machine without a plan is absent
        path, loop = plan.disk("status").path, asyncio.get_running_loop()
        begun = loop.time()
        deadline = begun + self.boot_timeout_s
        look_again = begun + 1.0
        while self.disks.report_now(path).phase not in SAID:
            if sandbox.woken.is_set() or loop.time() > look_again:
                look_again = loop.time() + 1.0
                sandbox.woken.clear()
                seen = await self.observer.look(sandbox)
                runs = sandbox.record.intent is Intent.RUNNING
                held = self.hold.is_due(plan)
                if seen.machine is not MachineState.BOOTING or not runs or held:
                    return
            if loop.time() > deadline:
                await self.ended.not_ready(sandbox, self.boot_timeout_s)
                return
            soon = loop.time() - begun < _SOON_S
            await asyncio.sleep(_POLL_S if soon else _LATE_POLL_S)

    async def confirm_running(self, sandbox: Sandbox, seen: Seen) -> None:
        """The guest has said that its supervisor is started."""
        sandbox.adopted = True
        await self.beginnings.started(sandbox)
        stamps = dict(seen.report.stamps)
        await sandbox.update(
            phase=Phase.RUNNING,
            failure=None,
            launch_retries=0,
            boot_seconds=stamps,
            last_start=self._timing(sandbox, stamps),
        )
        sandbox.tell(
            "Running",
            "the supervisor has been started",
            Progress("starting_sandbox", "Sandbox ready"),
        )

    @staticmethod
    def _timing(sandbox: Sandbox, stamps: Mapping[str, float]) -> StartTiming | None:
        """None: it was begun by a process before this one."""
        watch = sandbox.stopwatch
        watch.since(MACHINE, _GUEST_STARTS)
        steps, returned = watch.timed(), sandbox.record.extensions.returned
        if not any(step.name == _GUEST_STARTS for step in steps):
            return None
        kind = returned or "booted"
        if kind != RestoreKind.TEMPLATE:
            steps = with_guest(steps, stamps, _GUEST_STARTS)
        return StartTiming(kind=kind, at=utc_now(), steps=steps)
