"""One sandbox's converge loop: look, decide, act, publish, until there is nothing to
do; then rest until woken.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from vmdriver.errors import DriverError, HostError, NotFound, Refused, Unavailable
from vmdriver.host.retry import backoff_s
from vmdriver.lifecycle.engine.hold import Shared
from vmdriver.lifecycle.engine.jobs import Job
from vmdriver.lifecycle.engine.ledger import Ledger, Scope
from vmdriver.lifecycle.engine.observer import Seen
from vmdriver.lifecycle.engine.sandbox import DOWN
from vmdriver.lifecycle.engine.standstill import LOOK_S
from vmdriver.lifecycle.extending.phase_actions import PhaseActions
from vmdriver.lifecycle.launch.launch import LaunchActions
from vmdriver.lifecycle.launch.stop import EndActions
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model import wishes
from vmdriver.model.condition import Standstill
from vmdriver.model.phase import Action, Intent, MachineState, next_action
from vmdriver.model.record import SandboxRecord
from vmdriver.model.wishes import Wish

_log = logging.getLogger(__name__)
_LOOK_PATIENCE_S = 3.0
"""For how long a machine that is to be stopped is looked at: milliseconds are usual."""


class SandboxWorker(LaunchActions, EndActions, PhaseActions):
    """Owns one sandbox. Others only set its intent and wait."""

    def __init__(self, record: SandboxRecord, ledger: Ledger, shared: Shared) -> None:
        super().__init__(record, ledger, shared)
        self._task: asyncio.Task[None] | None = None

    # --- for the manager

    def start(self) -> None:
        """Run the loop if it does not run. It ends by itself when there is nothing left
        to look after.
        """
        self.woken.set()
        if (self._task is None or self._task.done()) and not self.gone:
            self._task = asyncio.create_task(
                self._run(), name=f"worker {self.record.id}"
            )

    def hint(self) -> None:
        """Something may have changed: look."""
        self.woken.set()

    async def wish(self, wish: Wish, *, regardless: bool = False) -> None:
        """Store what is wanted, then wake the loop, and cut off what is less urgent. Refused,
        Unavailable. `regardless`: a delete happens also where it cannot be stored.
        """
        before = wishes.asked_of(self.record)
        await self.decide(partial(wishes.changes, wish), regardless=regardless)
        asked = wishes.asked_of(self.record)
        if asked != before:  # what is only said again cuts off nothing
            self.underway.make_way(asked)
        if self.record.intent is Intent.DELETED:
            text = f"sandbox {self.record.id} is being deleted"
            self.jobs.dismiss(Refused(text, reason="Deleting"))
        self.start()

    async def perform(self, job: Job) -> None:
        """Have the loop do it when it rests; returns when it is done, raises what it
        raises. NotFound, Refused when the sandbox is gone or going.
        """
        if self.gone:
            raise NotFound(f"sandbox {self.record.id} was deleted")
        if self.record.intent is Intent.DELETED:
            raise Refused(
                f"sandbox {self.record.id} is being deleted", reason="Deleting"
            )
        answer = self.jobs.put(job)
        self.start()
        await answer

    async def close(self) -> None:
        """End the loop; the machine stays as it is. A launch under way is finished or
        undone by the next driver.
        """
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.jobs.dismiss(Unavailable("the driver ends"))

    # --- the loop

    async def _run(self) -> None:
        failures = 0
        while not self.gone:
            self.woken.clear()
            try:
                rested = await self.underway.run(self._turn())
                failures, self.trouble = 0, ""
                self.untidy |= self.underway.cut
            except DriverError as error:
                failures, self.untidy = failures + 1, True
                self._note_trouble(error)
                await self._sleep(backoff_s(failures - 1))
                continue
            except Exception as error:  # noqa: BLE001 - the loop outlives its bugs
                failures, self.untidy = failures + 1, True
                _log.exception("%s: the worker failed", self.record.id)
                self._note_trouble(HostError(f"internal error: {type(error).__name__}"))
                await self._sleep(backoff_s(failures))
                continue
            if rested and self._nothing_to_watch() and not self.woken.is_set():
                return
            if rested:
                await self._sleep(self._shared.settings.recheck_s)
        self.jobs.dismiss(NotFound(f"sandbox {self.record.id} was deleted"))

    def _nothing_to_watch(self) -> bool:
        return (
            self.record.phase in DOWN
            and not self.untidy
            and not self.ledger.held(Scope.RUNTIME)
        )

    def _note_trouble(self, error: DriverError) -> None:
        if error.text() != self.trouble:
            self.tell(error.reason, error.text(), warn=True)
        self.trouble = error.text()
        # Whoever asked for a job would wait as long as the trouble lasts.
        self.jobs.dismiss(error)

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.woken.wait()

    async def _turn(self) -> bool:
        """One look and one action. True: there was nothing to do."""
        await self._shared.capture.go_on_if_stale(self)
        await self._shared.suspend.drop_memory_if_cold(self)
        await self._shared.snapshots.revert_if_due(self)
        self.underway.doing = Action.LOOK
        machine, report = await self._look()
        ready = machine is MachineState.READY
        held = self._shared.capture.why_held(self) if ready else None
        action = await self._next(machine, held)
        self.underway.doing = action
        match action:
            case Action.REST:
                return await self._rest(machine)
            case Action.CONFIRM_RUNNING:
                await self._confirm_running(report)
            case Action.RECORD_END:
                await self._record_end(machine, report)
            case Action.STOP:
                await self._stop(machine)
            case Action.SUSPEND:
                await self._shared.suspend.suspend(self, Seen(machine, report))
            case Action.RESUME:
                await self._shared.resume.resume(self, Seen(machine, report))
            case Action.STAND_STILL:
                await self._stand_still(held)
            case _:
                await self._plain_actions[action]()
        return False

    async def _next(self, machine: MachineState, held: Standstill | None) -> Action:
        """What is done now. `held`: why its machine, which is there, is not let go on."""
        stands_still = held is not None or machine is MachineState.STALLED
        if self.still is not None and not stands_still:
            await self.show_still(None)
        action = next_action(self.record.intent, self.record.phase, machine)
        rests = action is Action.REST
        return Action.STAND_STILL if rests and held is not None else action

    @property
    def _plain_actions(self) -> Mapping[Action, Callable[[], Awaitable[None]]]:
        """Those that look at nothing but the record."""
        return {
            Action.LAUNCH: self._launch,
            Action.AWAIT_READY: self._await_ready,
            Action.RECOVER_LOST: self._recover_lost,
            Action.CLEAN_UP: self._clean_up,
            Action.DELETE: self._delete,
        }

    async def _look(self) -> tuple[MachineState, GuestReport]:
        """What is to be ended is ended also where nobody can say how it is."""
        if self.record.intent is Intent.DELETED:
            return MachineState.BOOTING, GuestReport()
        if self.record.intent is not Intent.STOPPED:
            return await self._shared.observer.look(self)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(_LOOK_PATIENCE_S, self.give_up)
        try:
            return await self._shared.observer.look(self)
        except (DriverError, OSError):
            return MachineState.BOOTING, GuestReport()
        finally:
            timer.cancel()

    async def _stand_still(self, held: Standstill | None) -> None:
        """Until the machine goes on, jobs are answered, not kept waiting."""
        plan = self.record.plan
        if plan is None:
            return
        await self.show_still(held or await self._waker.wake(plan))
        if self.still is not None and not await self.jobs.do_next(MachineState.STALLED):
            await self._sleep(LOOK_S)

    async def _rest(self, machine: MachineState) -> bool:
        """True: there was nothing to do at all."""
        if not self.adopted and machine is MachineState.READY:
            await self._adopt()
            self.adopted = True
        if await self._tell_phases(machine):
            return False
        await self._shared.giving_back.again(self)
        seen = Seen(machine)
        await self._shared.upkeep.tidy(self, seen)
        if await self._shared.upkeep.merge_if_due(self, seen):
            return False
        self.underway.doing = Action.JOB
        return not await self.jobs.do_next(machine)


Hire = Callable[[SandboxRecord, Ledger], SandboxWorker]
"""Makes the worker of a sandbox, which does not run yet."""
