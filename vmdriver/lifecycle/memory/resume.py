"""Coming back from kept memory: exactly once, or not at all and the reason is shown."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from vmdriver.errors import (
    DriverError,
    HypervisorError,
    NotRestorable,
    Refused,
)
from vmdriver.host import facts
from vmdriver.host.side_by_side import beside, together
from vmdriver.host.threads import finished
from vmdriver.lifecycle.engine.giving_back import GivingBack
from vmdriver.lifecycle.engine.ledger import MACHINE
from vmdriver.lifecycle.engine.observer import Seen
from vmdriver.lifecycle.engine.resource import FILES, OVERLAY
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.engine.stopwatch import Stopwatch
from vmdriver.lifecycle.extending.runner import ExtensionRunner
from vmdriver.lifecycle.extending.subject import new_run
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.launch.launcher import Launcher, LaunchFailed
from vmdriver.lifecycle.launch.resources import Effects, MachineSource, is_there
from vmdriver.lifecycle.launch.secrets import secrets_digest
from vmdriver.lifecycle.memory.loadable import Loadable, Loading
from vmdriver.lifecycle.memory.memory_check import MemoryCheck
from vmdriver.lifecycle.memory.resources import MappedMemory
from vmdriver.lifecycle.memory.restore_tries import RestoreTries, Verdict, final
from vmdriver.lifecycle.ports.memory import SavedMachine
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.checkpoint import MemoryRef
from vmdriver.model.condition import Progress
from vmdriver.model.ids import mark
from vmdriver.model.phase import DomainState, Intent, Phase
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import RESTORE_FAILED, Failure, SandboxRecord, utc_now
from vmdriver.model.runs import Reason, RestoreKind
from vmdriver.model.timing import StartTiming

_log = logging.getLogger(__name__)
_THERE = {DomainState.RUNNING, DomainState.PAUSED, DomainState.STALLED}
_NO_REFUSAL = {"ExtensionTimedOut", "ExtensionFailed"}
"""What is said of an extension that has not said no."""
_KINDS = {
    "suspended": RestoreKind.RESUMED,
    "snapshot": RestoreKind.SNAPSHOT,
    "template": RestoreKind.TEMPLATE,
}


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Action RESUME. It is begun again after a crash; whether the checkpoint may be loaded again
    is in the record before the machine's first instruction. `make_room` has machines that wait give
    way to it, `restored` tells extensions that the sandbox is back.
    """

    ports: Ports
    paths: Paths
    settings: Settings
    launcher: Launcher
    loading: Loading
    extensions: ExtensionRunner
    giving_back: GivingBack
    make_room: Callable[[], Awaitable[None]]
    restored: Callable[[Sandbox, RestoreKind], Awaitable[None]]
    _all_tries: WeakKeyDictionary[Sandbox, RestoreTries] = field(
        default_factory=WeakKeyDictionary, init=False
    )

    def _tries(self, sandbox: Sandbox) -> RestoreTries:
        if sandbox not in self._all_tries:
            limit_s = self.settings.restore_retry_s
            self._all_tries[sandbox] = RestoreTries(limit_s)
        return self._all_tries[sandbox]

    async def resume(self, sandbox: Sandbox, _: Seen) -> None:
        """Have it go on from its memory, or whatever the policy says where it cannot."""
        if _is_kept_anyway(sandbox.record):
            await self._stay(sandbox)
            return
        if sandbox.record.phase is not Phase.RESUMING:
            self._tries(sandbox).begin()
        ref, watch = sandbox.record.memory, sandbox.begin_start()
        try:
            if ref is None:
                await self._note_begin(sandbox)
                raise NotRestorable("there is no checkpoint", reason="MemoryMissing")
            if not ref.consumed:
                await self._load(sandbox, ref, watch)
            else:
                await self._note_begin(sandbox)
                await self._check_loaded(sandbox)
            await self._let_go(sandbox, watch)
        except LaunchFailed as failed:
            await self._after_try(sandbox, failed.cause)
            return
        except DriverError as error:
            await self._after_try(sandbox, error)
            return
        await self._resumed(sandbox, ref, watch)

    async def _stay(self, sandbox: Sandbox) -> None:
        """It is to be suspended again: as long as its memory is not used, there is nothing to be
        written, and nothing to be waited for.
        """
        await self.giving_back.run(sandbox, Reason.STOPPED)
        sandbox.merge_due = True
        await sandbox.update(phase=Phase.SUSPENDED, failure=None)
        sandbox.tell("Stopped", "it was not resumed; its memory is kept")

    async def _after_try(self, sandbox: Sandbox, error: DriverError) -> None:
        """Again after a while (raised, for the loop), or what the policy says."""
        ref = sandbox.record.memory
        used = ref is not None and ref.consumed
        match self._tries(sandbox).verdict(error, used=used, now_s=time.monotonic()):
            case Verdict.AGAIN:
                raise error
            case Verdict.KEEP:
                text = f"its memory could not be restored yet: {error.text()}"
                more = "the memory is kept, the next start tries again"
                await self._fail(sandbox, f"{text}; {more}")
            case Verdict.GIVE_UP:
                await self._not_restored(sandbox, error)

    async def _fail(self, sandbox: Sandbox, why: str) -> None:
        await self.giving_back.run(sandbox, Reason.STOPPED)
        sandbox.tell(RESTORE_FAILED, why, warn=True)
        failure = Failure(reason=RESTORE_FAILED, message=why)
        await sandbox.update(phase=Phase.FAILED, failure=failure)

    async def _load(self, sandbox: Sandbox, ref: MemoryRef, watch: Stopwatch) -> None:
        """Have the machine paused, of a checkpoint that is whole, and mark that as used."""
        store, kind = self.ports.memory_store, _KINDS[ref.kind]
        await self.giving_back.run(sandbox, Reason.STOPPED)  # of a try that was cut off
        note = self._note_begin(sandbox, extensions=new_run(sandbox.record, kind))
        with watch.step("check"):
            # Nothing of it waits for the note, which is there before anybody is asked.
            found = await beside(self.loading.look(sandbox.record, ref), note)
        # An earlier driver that was killed may have left it to its machine's user.
        await store.take_back(ref.directory)
        await self.make_room()
        check = MemoryCheck(store, ref.directory, found.manifest.parts)
        async with check.under_way(watch.step):
            with watch.step("hooks"):
                await self._ask_extensions(sandbox, kind)
            await self._made(sandbox, ref, found, check)
        with watch.step("mark as used"):
            used = ref.model_copy(update={"consumed": True})
            digest = found.manifest.secrets_digest
            await sandbox.update(memory=used, secrets_digest=digest)

    async def _note_begin(self, sandbox: Sandbox, **more: Any) -> None:
        if sandbox.record.phase is not Phase.RESUMING:
            more |= {"phase": Phase.RESUMING, "failure": None}
        await sandbox.update(**more)

    async def _made(
        self, sandbox: Sandbox, ref: MemoryRef, found: Loadable, check: MemoryCheck
    ) -> None:
        """Everything that the machine holds is there, and itself, paused."""
        record, store = sandbox.record, self.ports.memory_store
        with sandbox.stopwatch.step("user"):
            user = await self.launcher.user.acquire(record.id, sandbox.ledger)
        plan = planner.with_user(found.plan, user)
        changes = {"plan": plan, "launches": record.launches + 1}

        async def note() -> None:
            # What it consists of is made when it begins: it may be cancelled before.
            await together(
                sandbox.update(**changes, host_boot_id=facts.boot_id()),
                store.lend(ref.directory, user),
            )

        # What is had beside it is in the ledger, which says all that its undo needs; the machine
        # is not begun before it is there.
        noted = asyncio.ensure_future(note())
        noted.add_done_callback(_heard)
        load = partial(self._loaded, sandbox, plan, found.saved, check, noted)
        source = self._from_memory(sandbox, plan, found.secrets, load)
        timed = sandbox.stopwatch.step
        try:
            await check.beside(
                self.launcher.take(record, sandbox.ledger, source, timed)
            )
        finally:
            try:
                await finished(asyncio.wait({noted}))
            finally:
                await store.take_back(ref.directory)

    async def _ask_extensions(self, sandbox: Sandbox, kind: RestoreKind) -> None:
        try:
            await self.extensions.before_restore(sandbox.record, sandbox.ledger, kind)
        except Refused as error:
            if error.reason in _NO_REFUSAL:
                raise
            raise final(error) from error

    def _from_memory(
        self,
        sandbox: Sandbox,
        plan: LaunchPlan,
        secrets: Mapping[str, bytes],
        load: Callable[[], Awaitable[None]],
    ) -> MachineSource:
        """From kept memory to a machine that is loaded and paused, on the disk that is there.
        What its guest said last stays on the status disk.
        """
        ports, environment = self.ports, plan.environment
        owner = mark(self.settings.instance, sandbox.record.id)
        write = partial(ports.launch_files.write_for_resume, plan, environment, secrets)
        instead: Effects = {OVERLAY: is_there, FILES: write, MACHINE: load}
        return MachineSource(plan, owner, instead=instead, paused=True)

    async def _loaded(
        self,
        sandbox: Sandbox,
        plan: LaunchPlan,
        saved: SavedMachine,
        check: MemoryCheck,
        noted: asyncio.Future[None],
    ) -> None:
        """The machine is there, paused, and what it is made of is whole: one of damaged memory is
        never held as done, and ended as all that is not. `noted`: its plan is in the record.
        """
        await asyncio.wait({noted})
        noted.result()
        owner = mark(self.settings.instance, sandbox.record.id)
        scratch = self.paths.of(sandbox.record.id).scratch
        try:
            with sandbox.stopwatch.step("load"):
                await self.ports.memory.load(plan, owner, saved, scratch)
        except DriverError as error:
            await check.explain(error)
            raise self._tries(sandbox).not_loaded(error) from error
        await check.passed()
        # Its memory is not used for a machine that has ended while that was compared.
        if await self.ports.hypervisor.observe(plan.domain) not in _THERE:
            raise HypervisorError("the machine ended before it went on")

    async def _check_loaded(self, sandbox: Sandbox) -> None:
        """A process before this one got past the point of no return."""
        plan = sandbox.record.plan
        domain = DomainState.ABSENT
        if plan is not None and sandbox.ledger.get(MACHINE) is not None:
            domain = await self.ports.hypervisor.observe(plan.domain)
        if domain not in _THERE:
            raise NotRestorable(
                "the machine had gone on from it and has ended since",
                reason="ImageUsed",
            )

    async def _let_go(self, sandbox: Sandbox, watch: Stopwatch) -> None:
        """The machine runs, its workload frozen; what must be new is made so; thaw."""
        ports, plan = self.ports, sandbox.record.plan
        assert plan is not None  # noqa: S101 - it was loaded from one
        fresh = secrets_digest(await self.launcher.secrets(sandbox.record))

        async def go_on() -> None:
            with watch.step("go on"):
                await ports.memory.go_on(plan.domain)

        files = fresh != sandbox.record.secrets_digest
        limit_s = self.settings.restore_timeout_s
        await ports.guest.renew(plan.domain, limit_s, files=files, begin=go_on)
        watch.since("go on", "hygiene")
        await sandbox.update(secrets_digest=fresh)

    async def _resumed(
        self, sandbox: Sandbox, ref: MemoryRef, watch: Stopwatch
    ) -> None:
        sandbox.adopted = True
        directory = ref.directory
        if ref.kind == "suspended":
            # The machine maps its file as long as it runs; without a manifest it is no checkpoint.
            used = directory = self.paths.of(sandbox.record.id).mapped
            await MappedMemory(self.ports.memory_store).acquire(
                sandbox.ledger, ref.directory, used
            )
        kind = _KINDS[ref.kind]
        sandbox.tell(
            "Restored",
            f"{kind.value} in {watch.text()}",
            Progress("starting_sandbox", "Sandbox ready"),
        )
        await sandbox.update(
            phase=Phase.RUNNING,
            memory=None,
            mapped=directory,
            failure=None,
            last_restore=watch.steps,
            last_start=StartTiming(kind=kind, at=utc_now(), steps=watch.timed()),
        )
        await self.restored(sandbox, kind)

    async def _not_restored(self, sandbox: Sandbox, error: DriverError) -> None:
        """The checkpoint is kept aside; then a cold boot or a failure, as the operator wants."""
        ref = sandbox.record.memory
        paths = self.paths.of(sandbox.record.id)
        why = f"its memory could not be restored: {error.text()}"
        if self.settings.on_restore_failure == "fail" and not (
            ref is not None and ref.consumed
        ):
            await self._fail(sandbox, why)
            return
        await self.giving_back.run(sandbox, Reason.STOPPED)
        lost = (
            "processes and unsaved work of that moment are lost; the disk is as it was"
        )
        if ref is not None and ref.kind == "suspended":
            await self.ports.memory_store.move(ref.directory, paths.kept)
            lost += f"; the checkpoint is kept in {paths.kept.rpartition('/')[2]}"
        text = f"it was booted from its disk, since {why}; {lost}"
        sandbox.tell(RESTORE_FAILED, text, warn=True)
        await sandbox.update(phase=Phase.LAUNCHING, memory=None, note=text)


def _is_kept_anyway(record: SandboxRecord) -> bool:
    unused = record.memory is not None and not record.memory.consumed
    return unused and record.intent is Intent.SUSPENDED


def _heard(work: asyncio.Future[None]) -> None:
    """Whoever waits for it is told, if there is anybody."""
    if not work.cancelled():
        work.exception()
