"""One sandbox's converge loop: look, decide, act, publish, until there is nothing to
do; then rest until woken.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vmdriver.errors import DriverError, NotFound, Refused, Unavailable, unexpected
from vmdriver.host.log_context import at_nothing, now_at
from vmdriver.host.retry import backoff_s
from vmdriver.lifecycle.engine import causes
from vmdriver.lifecycle.engine.causes import Cause
from vmdriver.lifecycle.engine.jobs import Job
from vmdriver.lifecycle.engine.ledger import Ledger, Scope
from vmdriver.lifecycle.engine.observer import Observer, Seen
from vmdriver.lifecycle.engine.sandbox import DOWN, Sandbox
from vmdriver.lifecycle.engine.standstill import LOOK_S, Waker
from vmdriver.model import wishes
from vmdriver.model.condition import Standstill
from vmdriver.model.phase import Action, Intent, MachineState, next_action
from vmdriver.model.record import SandboxRecord
from vmdriver.model.wishes import Wish

_log = logging.getLogger(__name__)
_LOOK_PATIENCE_S = 3.0
"""For how long a machine that is to be stopped is looked at: milliseconds are usual."""
_GOING_ON = {*(Action.REST, Action.AWAIT_READY, Action.CONFIRM_RUNNING, Action.RESUME)}
"""What is not done with a machine that is held still."""
First = Callable[[Sandbox], Awaitable[None]]
Act = Callable[[Sandbox, Seen], Awaitable[None]]
AtRest = Callable[[Sandbox, Seen], Awaitable[bool]]
"""True: something was done, and it is to be looked again before anything else."""


@dataclass(eq=False)
class Worker:
    """Owns one sandbox. Others only set its intent and wait.

    Of what is done it knows only this: `first`, in each turn, before it looks; `actions`, for what
    is decided then; `at_rest`, in order, when nothing is to be done. Each of these may be cut off
    anywhere, and is begun again. `why_held`: why a machine that is there is not let go on.
    """

    sandbox: Sandbox
    actions: Mapping[Action, Act]
    first: Sequence[First]
    at_rest: Sequence[AtRest]
    observer: Observer
    waker: Waker
    why_held: Callable[[Sandbox, MachineState], Standstill | None]
    recheck_s: float
    _task: asyncio.Task[None] | None = field(default=None, init=False)
    _led_by: Cause | None = field(default=None, init=False)
    """What led to what is being done, until nothing is."""

    # --- for whoever asks

    def start(self) -> None:
        """Run the loop if it does not run. It ends by itself when there is nothing left
        to look after.
        """
        sandbox = self.sandbox
        self._led()
        sandbox.woken.set()
        if (self._task is None or self._task.done()) and not sandbox.gone:
            name = f"worker {sandbox.record.id}"
            self._task = asyncio.create_task(
                self._run(), name=name, context=at_nothing()
            )

    def hint(self) -> None:
        """Something may have changed: look."""
        self.sandbox.woken.set()

    async def wish(self, wish: Wish, *, regardless: bool = False) -> None:
        """Store what is wanted, then wake the loop, and cut off what is less urgent. Refused,
        Unavailable. `regardless`: a delete happens also where it cannot be stored.
        """
        sandbox = self.sandbox
        before = wishes.asked_of(sandbox.record)
        await sandbox.decide(partial(self._wished, wish), regardless=regardless)
        asked = wishes.asked_of(sandbox.record)
        if asked != before:  # what is only said again cuts off nothing
            sandbox.underway.make_way(asked)
        if sandbox.record.intent is Intent.DELETED:
            sandbox.jobs.dismiss(self._deleting())
        self.start()

    async def perform(self, job: Job) -> None:
        """Have the loop do it when it rests; returns when it is done, raises what it
        raises. NotFound, Refused when the sandbox is gone or going.
        """
        sandbox = self.sandbox
        if sandbox.gone:
            raise self._deleted()
        if sandbox.record.intent is Intent.DELETED:
            raise self._deleting()
        answer = sandbox.jobs.put(_led_by_caller(job))
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
        self.sandbox.jobs.dismiss(Unavailable("the driver ends"))

    def _wished(self, wish: Wish, record: SandboxRecord) -> Mapping[str, Any]:
        changes = wishes.changes(wish, record)  # of one that is refused nothing comes
        self._led()
        return changes

    def _led(self) -> None:
        """What is done from now on is done for whoever calls, if that is known."""
        self._led_by = causes.current() or self._led_by

    def _deleting(self) -> Refused:
        text = f"sandbox {self.sandbox.record.id} is being deleted"
        return Refused(text, reason="Deleting")

    def _deleted(self) -> NotFound:
        return NotFound(f"sandbox {self.sandbox.record.id} was deleted")

    # --- the loop

    async def _run(self) -> None:
        sandbox, failures = self.sandbox, 0
        now_at(sandbox=sandbox.record.id)
        while not sandbox.gone:
            sandbox.woken.clear()
            try:
                rested = await sandbox.underway.run(self._turn())
                failures, sandbox.trouble = 0, ""
                sandbox.untidy |= sandbox.underway.cut
            except DriverError as error:
                failures, sandbox.untidy = failures + 1, True
                self._note_trouble(error)
                await self._sleep(backoff_s(failures - 1))
                continue
            except Exception as error:  # noqa: BLE001 - the loop outlives its bugs
                failures, sandbox.untidy = failures + 1, True
                _log.exception("%s: the worker failed", sandbox.record.id)
                self._note_trouble(unexpected(error))
                await self._sleep(backoff_s(failures))
                continue
            if rested and not sandbox.woken.is_set():
                self._led_by = None
                if self._nothing_to_watch():
                    return
            if rested:
                await self._sleep(self.recheck_s)
        sandbox.jobs.dismiss(self._deleted())

    def _nothing_to_watch(self) -> bool:
        sandbox = self.sandbox
        down = sandbox.record.phase in DOWN
        return down and not sandbox.untidy and not sandbox.ledger.held(Scope.RUNTIME)

    def _note_trouble(self, error: DriverError) -> None:
        sandbox = self.sandbox
        if error.text() != sandbox.trouble:
            sandbox.tell(error.reason, error.text(), warn=True)
        sandbox.trouble = error.text()
        # Whoever asked for a job would wait as long as the trouble lasts.
        sandbox.jobs.dismiss(error)

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.sandbox.woken.wait()

    async def _turn(self) -> bool:
        """One look and one action. True: there was nothing to do."""
        sandbox = self.sandbox
        if self._led_by is not None:
            self._led_by.enter()
        for step in self.first:
            await step(sandbox)
        sandbox.underway.doing = Action.LOOK
        seen = await self._look()
        held = self.why_held(sandbox, seen.machine)
        action = await self._next(seen.machine, held)
        sandbox.underway.doing = action
        if action is Action.REST:
            return await self._rest(seen)
        now_at(step=action.value)
        if self._led_by is None:
            self._led_by = causes.seen(action.value, sandbox.record.id)
            self._led_by.enter()
        if action is Action.STAND_STILL:
            await self._stand_still(held)
        else:
            await self.actions[action](sandbox, seen)
        return False

    async def _next(self, machine: MachineState, held: Standstill | None) -> Action:
        """What is done now. `held`: why its machine, which is there, is not let go on."""
        sandbox = self.sandbox
        stands_still = held is not None or machine is MachineState.STALLED
        if sandbox.still is not None and not stands_still:
            await sandbox.show_still(None)
        action = next_action(sandbox.record.intent, sandbox.record.phase, machine)
        stands_still = held is not None and action in _GOING_ON
        return Action.STAND_STILL if stands_still else action

    async def _look(self) -> Seen:
        """What is to be ended is ended also where nobody can say how it is."""
        sandbox = self.sandbox
        if sandbox.record.intent is Intent.DELETED:
            return Seen(MachineState.BOOTING)
        if sandbox.record.intent is not Intent.STOPPED:
            return await self.observer.look(sandbox)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(_LOOK_PATIENCE_S, sandbox.give_up)
        try:
            return await self.observer.look(sandbox)
        except (DriverError, OSError):
            return Seen(MachineState.BOOTING)
        finally:
            timer.cancel()

    async def _stand_still(self, held: Standstill | None) -> None:
        """Until the machine goes on, jobs are answered, not kept waiting."""
        sandbox, plan = self.sandbox, self.sandbox.record.plan
        if plan is None:
            return
        await sandbox.show_still(held or await self.waker.wake(plan))
        stalled = MachineState.STALLED
        if sandbox.still is not None and not await sandbox.jobs.do_next(stalled):
            await self._sleep(LOOK_S)

    async def _rest(self, seen: Seen) -> bool:
        """True: there was nothing to do at all."""
        for step in self.at_rest:
            if await step(self.sandbox, seen):
                return False
        self.sandbox.underway.doing = Action.JOB
        now_at(step=Action.JOB.value)
        return not await self.sandbox.jobs.do_next(seen.machine)


def _led_by_caller(job: Job) -> Job:
    cause = causes.current()

    async def led(machine: MachineState) -> None:
        if cause is not None:
            cause.enter()
        await job(machine)

    return led


Hire = Callable[[SandboxRecord, Ledger], Worker]
"""Makes the worker of a sandbox, which does not run yet."""
