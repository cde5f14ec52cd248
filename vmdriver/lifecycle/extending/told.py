"""What extensions are told of a sandbox when something has happened to it."""

from __future__ import annotations

from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.extending.runner import ExtensionRunner
from vmdriver.model.runs import RestoreKind


class Told:
    """Their errors are shown and change nothing."""

    def __init__(self, extensions: ExtensionRunner) -> None:
        self._extensions = extensions

    async def restored(self, sandbox: Sandbox, kind: RestoreKind) -> None:
        """after_restore: it is back."""
        for problem in await self._extensions.after_restore(
            sandbox.record, sandbox.ledger, kind
        ):
            sandbox.tell("ExtensionFailed", problem, warn=True)
