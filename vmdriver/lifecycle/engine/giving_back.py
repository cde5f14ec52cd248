"""Gives back what is held for a sandbox, whoever acquired it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from vmdriver.errors import (
    CleanupError,
    DriverError,
    StorageError,
    Unavailable,
    unexpected,
)
from vmdriver.host.retry import backoff_s
from vmdriver.lifecycle.engine.ledger import MACHINE, Held, Scope
from vmdriver.lifecycle.engine.observer import Seen
from vmdriver.lifecycle.engine.resource import Given, Resources
from vmdriver.lifecycle.engine.sandbox import DOWN, Sandbox
from vmdriver.model.phase import Intent
from vmdriver.model.runs import Reason


class GivingBack:
    """`resources`: all that a ledger may hold. `is_owed` says of an entry's key that it may be
    given back later, without a machine or an address being kept for it: an extension's. `freed` is
    called when others may have the memory of a sandbox that is not meant to run any more.
    """

    def __init__(
        self,
        *,
        resources: Resources,
        is_owed: Callable[[str], bool],
        freed: Callable[[], None],
    ) -> None:
        self._resources, self._is_owed, self._freed = resources, is_owed, freed

    async def run(self, sandbox: Sandbox, reason: Reason) -> None:
        """What belongs to the run, and its volumes where no memory is kept that knows them. What
        only extensions owe then is tried again later, see `again`. CleanupError for what stays
        held, StorageError when it cannot be noted.
        """
        undo = self._of(sandbox, reason)
        errors = await sandbox.ledger.release(Scope.RUNTIME, undo)
        self._tell_freed(sandbox)
        scopes = [Scope.RUNTIME]
        if reason is not Reason.SUSPENDED and _lets_volumes_go(sandbox):
            scopes.append(Scope.ATTACHED)
            errors += await sandbox.ledger.release(Scope.ATTACHED, undo)
        self._check(sandbox, scopes, errors)

    def _tell_freed(self, sandbox: Sandbox) -> None:
        ended = sandbox.ledger.get(MACHINE) is None
        if ended and sandbox.record.intent is not Intent.RUNNING:
            self._freed()

    async def everything(self, sandbox: Sandbox, reason: Reason) -> None:
        """All of it, what belongs to the run first. CleanupError for what stays held; that it
        cannot be noted does not matter where all is given back: the notes are to go too.
        """
        undo = self._of(sandbox, reason)
        failed = False

        async def undo_one(held: Held) -> None:
            nonlocal failed
            try:
                await undo(held)
            except Exception:
                failed = True
                raise

        with suppress(StorageError):  # the next one says that it cannot be noted
            await sandbox.ledger.release(Scope.RUNTIME, undo)
        self._tell_freed(sandbox)
        try:
            errors = await sandbox.ledger.release(None, undo_one)
        except StorageError:
            if failed:
                raise
            return
        self._check(sandbox, list(Scope), errors)

    async def again(self, sandbox: Sandbox, _: Seen) -> bool:
        """At rest: try once more what an extension could not give back after the run, if it is
        time; and give back volumes whose memory is gone.
        """
        record, held = sandbox.record, sandbox.ledger.held
        owed = held(Scope.RUNTIME) and time.monotonic() >= sandbox.clean_again_at
        left = held(Scope.ATTACHED) and _lets_volumes_go(sandbox)
        if record.phase in DOWN and (owed or left):
            await self.run(sandbox, Reason(record.unwind_reason or Reason.STOPPED))
        return False

    async def one(self, sandbox: Sandbox, held: Held, reason: Reason) -> None:
        """Undo one entry, which stays in the ledger. What its undo raises."""
        record, ledger = sandbox.record, sandbox.ledger
        await self._resources.release(Given(held, record.id, ledger, record, reason))

    def _of(
        self, sandbox: Sandbox, reason: Reason
    ) -> Callable[[Held], Awaitable[None]]:
        """A machine that cannot be ended keeps what is around it: it must not run on without."""

        runs_on = False

        async def undo(held: Held) -> None:
            nonlocal runs_on
            if runs_on and held.key != MACHINE and not self._is_owed(held.key):
                raise Unavailable("its machine could not be ended, and holds it")
            if held.key == MACHINE:
                runs_on = True
            await self.one(sandbox, held, reason)
            if held.key == MACHINE:
                runs_on = False

        return undo

    def _check(
        self, sandbox: Sandbox, scopes: list[Scope], errors: list[Exception]
    ) -> None:
        if not errors:
            sandbox.owed, sandbox.clean_ups = "", 0
            return
        texts = "; ".join(
            (e if isinstance(e, DriverError) else unexpected(e)).text() for e in errors
        )
        left = [held for scope in scopes for held in sandbox.ledger.held(scope)]
        if all(self._is_owed(held.key) for held in left):
            sandbox.clean_ups += 1
            sandbox.clean_again_at = time.monotonic() + backoff_s(sandbox.clean_ups)
            told, sandbox.owed = sandbox.owed, texts
            if Scope.PERSISTENT not in scopes:
                # The machine is down: only an extension's own clean-up is left, which is
                # tried again.
                if told != texts:
                    sandbox.tell("ExtensionCleanupFailed", texts, warn=True)
                return
        raise CleanupError(
            f"{len(errors)} of the sandbox's resources could not be released: {texts}"
        )


def _lets_volumes_go(sandbox: Sandbox) -> bool:
    """Kept memory has pages of a volume that are not on it yet: it stays attached until that is
    used or dropped.
    """
    return sandbox.ledger.get(MACHINE) is None and sandbox.record.memory is None
