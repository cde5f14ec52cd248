"""Coming back from kept memory: exactly once, or not at all and the reason is shown."""

from __future__ import annotations

import logging
import secrets as randomness
import time

from vmdriver.errors import DriverError, Refused
from vmdriver.host import facts
from vmdriver.lifecycle import planner, restore_check
from vmdriver.lifecycle.capture_actions import CaptureActions, Stopwatch
from vmdriver.lifecycle.hooks import Reason, RestoreKind
from vmdriver.lifecycle.launcher import LaunchFailed
from vmdriver.lifecycle.ledger import Scope
from vmdriver.lifecycle.phases.vm import new_run
from vmdriver.lifecycle.steps import MACHINE, MAPPED, resume_steps
from vmdriver.model.condition import Progress
from vmdriver.model.ids import mark
from vmdriver.model.memory_image import MemoryManifest, MemoryRef
from vmdriver.model.phase import DomainState, Phase
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import RESTORE_FAILED, Failure

_log = logging.getLogger(__name__)
_THERE = {DomainState.RUNNING, DomainState.PAUSED, DomainState.STALLED}
_KINDS = {
    "suspended": RestoreKind.RESUMED,
    "snapshot": RestoreKind.SNAPSHOT,
    "template": RestoreKind.TEMPLATE,
}


class ResumeActions(CaptureActions):
    """Action RESUME. It is begun again after a crash; whether the image may be loaded again
    is in the record before the machine's first instruction.
    """

    async def _resume(self) -> None:
        if self.record.phase is not Phase.RESUMING:
            await self.update(phase=Phase.RESUMING, failure=None)
        ref, watch = self.record.memory, Stopwatch()
        try:
            if ref is None:
                raise Refused("there is no memory image", reason="MemoryMissing")
            if not ref.consumed:
                await self._load(ref, watch)
            else:
                await self._check_loaded()
            await self._let_go(watch)
        except LaunchFailed as failed:
            await self._not_restored(failed.cause)
            return
        except DriverError as error:
            await self._not_restored(error)
            return
        await self._resumed(ref, watch)

    async def _load(self, ref: MemoryRef, watch: Stopwatch) -> None:
        """Check, then have the machine paused, and mark the image as used."""
        shared, record = self._shared, self.record
        await self._unwind(Scope.RUNTIME, Reason.STOPPED)  # of a try that was cut off
        with watch.step("check"):
            manifest, plan = await self._checked(ref)
            secrets = await shared.launcher.secrets(record)
            problems = await shared.ports.memory_store.damage(
                ref.directory, manifest.parts
            )
        if problems:
            raise Refused(
                f"the memory image is damaged: {'; '.join(problems)}",
                reason="ImageDamaged",
            )
        kind = _KINDS[ref.kind]
        await self.update(extensions=new_run(record, kind))
        with watch.step("hooks"):
            await shared.extensions.before_restore(self.record, self.ledger, kind)
        saved = await shared.ports.memory_store.saved(ref.directory)
        owner = mark(shared.settings.instance, record.id)
        scratch = shared.launcher.places.paths(record.id).scratch
        steps = resume_steps(
            shared.ports,
            shared.settings.instance,
            plan,
            secrets,
            lambda: shared.ports.memory.load(plan, owner, saved, scratch),
        )
        await self.update(
            plan=plan, launches=record.launches + 1, host_boot_id=facts.boot_id()
        )
        store = shared.ports.memory_store
        await store.lend(ref.directory, lent=True)
        try:
            for step in steps:
                with watch.step("load" if step.key == MACHINE else "network and files"):
                    await shared.launcher.take(self.record, self.ledger, [step])
        finally:
            await store.lend(ref.directory, lent=False)
        with watch.step("mark as used"):
            used = ref.model_copy(update={"consumed": True})
            await self.update(memory=used, secrets_digest=manifest.secrets_digest)

    async def _checked(self, ref: MemoryRef) -> tuple[MemoryManifest, LaunchPlan]:
        ports, old = self._shared.ports, self.record.plan
        if old is None:
            raise Refused("the sandbox has no plan", reason="ImageMismatch")
        manifest, digest = await ports.memory_store.read(ref.directory)
        plan = planner.on_layers(manifest.plan, self.record.layers, self.record.base)
        now = restore_check.HostNow(
            versions=await ports.hypervisor.build(plan.accelerator),
            files=await ports.memory_store.identify(
                tuple(identity.path for identity in manifest.files)
            ),
            time_s=time.time(),
            available_memory_bytes=facts.available_memory_bytes(),
        )
        found = restore_check.differences(manifest, digest, ref, old, now)
        if found:
            raise Refused("; ".join(found), reason="ImageMismatch")
        return manifest, plan

    async def _check_loaded(self) -> None:
        """A process before this one got past the point of no return."""
        plan = self.record.plan
        domain = DomainState.ABSENT
        if plan is not None and self.ledger.get(MACHINE) is not None:
            domain = await self._shared.ports.hypervisor.observe(plan.domain)
        if domain not in _THERE:
            raise Refused(
                "the machine had gone on from it and has ended since",
                reason="ImageUsed",
            )

    async def _let_go(self, watch: Stopwatch) -> None:
        """The machine runs, its workload frozen; what must be new is made so; thaw."""
        ports, plan = self._shared.ports, self.record.plan
        assert plan is not None  # noqa: S101 - it was loaded from one
        fresh = restore_check.secrets_digest(
            await self._shared.launcher.secrets(self.record)
        )
        with watch.step("go on"):
            await ports.memory.go_on(plan.domain)
        fields = {"seed": randomness.token_hex(64)}
        if fresh != self.record.secrets_digest:
            fields["files"] = "1"
        with watch.step("hygiene"):
            fields["clock_ns"] = str(time.time_ns())
            timeout_s = self._shared.settings.restore_timeout_s
            answer = await ports.memory.ask(plan.domain, "renew", fields, timeout_s)
        _log.info("%s: hygiene in the guest: %s", self.record.id, answer)
        await self.update(secrets_digest=fresh)

    async def _resumed(self, ref: MemoryRef, watch: Stopwatch) -> None:
        self._adopted = True
        directory, store = ref.directory, self._shared.ports.memory_store
        if ref.kind == "suspended":
            # The machine maps its file as long as it runs; without a manifest it is no image.
            used = directory = self._shared.launcher.places.paths(self.record.id).mapped
            await self.ledger.acquire(
                MAPPED,
                Scope.RUNTIME,
                {"directory": used},
                lambda: store.retire(ref.directory, used),
            )
        kind = _KINDS[ref.kind]
        self.tell(
            "Restored",
            f"{kind.value} in {watch.text()}",
            Progress("starting_sandbox", "Sandbox ready"),
        )
        await self.update(
            phase=Phase.RUNNING,
            memory=None,
            mapped=directory,
            failure=None,
            last_restore=dict(watch.steps),
        )
        await self._tell_restored(kind)

    async def _not_restored(self, error: DriverError) -> None:
        """The image is kept aside; then a cold boot or a failure, as the operator wants."""
        ports, ref = self._shared.ports, self.record.memory
        paths = self._shared.launcher.places.paths(self.record.id)
        await self._unwind(Scope.RUNTIME, Reason.STOPPED)
        why = f"its memory could not be restored: {error.text()}"
        if self._shared.settings.on_restore_failure == "fail" and not (
            ref is not None and ref.consumed
        ):
            self.tell(RESTORE_FAILED, why, warn=True)
            failure = Failure(reason=RESTORE_FAILED, message=why)
            await self.update(phase=Phase.FAILED, failure=failure)
            return
        lost = (
            "processes and unsaved work of that moment are lost; the disk is as it was"
        )
        if ref is not None and ref.kind == "suspended":
            await ports.memory_store.move(ref.directory, paths.kept)
            lost += f"; the memory image is kept in {paths.kept.rpartition('/')[2]}"
        text = f"it was booted from its disk, since {why}; {lost}"
        self.tell(RESTORE_FAILED, text, warn=True)
        await self.update(phase=Phase.LAUNCHING, memory=None, note=text)
