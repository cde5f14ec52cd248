"""The memory of a machine that goes on, for a snapshot: written while it stands still, or, where
that is wished for and QEMU can, while it goes on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakKeyDictionary

from vmdriver.lifecycle.engine.resource import FROZEN, PAUSED
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.engine.stopwatch import Stopwatch
from vmdriver.lifecycle.memory.capture import Capture
from vmdriver.lifecycle.ports.memory import Captured, MachineMemory, Streamed
from vmdriver.model.plan import LaunchPlan


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """`live`: machines are to go on meanwhile."""

    memory: MachineMemory
    capture: Capture
    live: bool
    _told_why: WeakKeyDictionary[Sandbox, str] = field(
        default_factory=WeakKeyDictionary, init=False
    )

    async def stream(
        self,
        sandbox: Sandbox,
        plan: LaunchPlan,
        watch: Stopwatch,
        path: str,
        switch: Callable[[], Awaitable[None]],
    ) -> tuple[Streamed, str]:
        """The memory of the moment in which the disk was switched to its new layer, and the guest's
        boot id: of a machine that stands still, or is going on while it is written.
        """
        memory, write = self.memory, self.capture.write_to_go_on
        if not await self._may_go_on(sandbox, plan):
            stream = partial(memory.stream, plan.domain, path)
            found = await write(sandbox, plan, watch, stream)
            await switch()
            return found

        async def begin() -> Streamed:
            await switch()
            with watch.step("memory"):
                return await memory.begin_stream(plan.domain, path)

        return await write(sandbox, plan, watch, begin, meanwhile=True)

    async def _may_go_on(self, sandbox: Sandbox, plan: LaunchPlan) -> bool:
        """Whether its memory is to be written while it goes on. Why not is said once, and again
        when it is another reason.
        """
        if not self.live:
            return False
        why = await self.memory.why_still(plan.domain)
        if why and self._told_why.get(sandbox) != why:
            self._told_why[sandbox] = why
            sandbox.tell(
                "MemoryWrittenStill", f"the machine stands still for snapshots: {why}"
            )
        return not why

    async def cut(
        self,
        sandbox: Sandbox,
        plan: LaunchPlan,
        watch: Stopwatch,
        streamed: Streamed,
        memory_path: str,
    ) -> Captured:
        """The memory, when it is written."""
        memory = self.memory
        if streamed.meanwhile:
            # Whoever pauses it from now on has it paused, and commands begin in it.
            await sandbox.ledger.hand_over(PAUSED, FROZEN)
            with watch.step("write"):
                await memory.end_stream(plan.domain, streamed)
        with watch.step("cut"):
            return await memory.split(streamed, memory_path, plan.memory_mib)
