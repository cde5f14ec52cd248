"""Machines that stand still although nobody of us has paused them.

QEMU stops a machine whose disk image cannot grow (its default for a write that meets ENOSPC): the
write is kept and made again when the machine goes on, so that the guest never learns of it. Nothing
of this is stored: a disk that is full takes no notes, and libvirt knows it after a restart too.
"""

from __future__ import annotations

import asyncio

from vmdriver.lifecycle.ports.host import Disks, Hypervisor
from vmdriver.lifecycle.ports.memory import MachineMemory
from vmdriver.model.condition import Standstill
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import utc_now

LOOK_S = 2.0
"""How often it is looked whether the machine can go on."""
_ENOUGH_BYTES = 16 * 2**20
"""Free space worth trying for often: what a guest flushes at once is often some MiB."""
_LEAST_BYTES = 2**20
"""Less is not worth a try. In between it is tried rarely: the write may be a small one, and space
that was made once may be all that there will be.
"""
_SETTLE_S = 0.3
"""After which a machine that met the full disk again has stopped again."""
_LONGEST_PAUSE_S = 30.0
_WELL_S = 60.0


class Waker:
    """Of one sandbox's machine: why it stands still, and that it goes on."""

    def __init__(
        self, *, hypervisor: Hypervisor, memory: MachineMemory, disks: Disks
    ) -> None:
        self._hypervisor, self._memory, self._disks = hypervisor, memory, disks
        self._tries = 0
        self._tried_at = -_WELL_S

    async def wake(self, plan: LaunchPlan) -> Standstill | None:
        """Let the machine go on if there is space for it. Why it stands still after that; None:
        it does not. DriverError.
        """
        hypervisor = self._hypervisor
        state = await hypervisor.observe(plan.domain)
        if state is DomainState.STALLED and await self._is_worth_a_try(plan):
            await self._memory.go_on(plan.domain)
            await asyncio.sleep(_SETTLE_S)
            state = await hypervisor.observe(plan.domain)
        if state is DomainState.STALLED:
            return Standstill(
                "DiskFull",
                "there is no space for what it writes to its disk; it goes on by itself "
                "when there is space in the driver's state directory",
                utc_now(),
            )
        if state is DomainState.PAUSED:
            return Standstill(
                "Paused",
                "somebody else than the driver has paused it, such as virsh suspend; "
                "virsh resume (with a libvirt daemon), or a stop and a start, let it go on",
                utc_now(),
            )
        return None

    async def _is_worth_a_try(self, plan: LaunchPlan) -> bool:
        now = asyncio.get_running_loop().time()
        since = now - self._tried_at
        if since > _WELL_S:
            self._tries = 0
        free = await self._disks.free_bytes(plan.disk("root").path)
        often = min(LOOK_S * 2.0 ** (self._tries - 1), _LONGEST_PAUSE_S)
        pause_s = often if free >= _ENOUGH_BYTES else _LONGEST_PAUSE_S
        if free < _LEAST_BYTES or (self._tries and since < pause_s):
            return False
        self._tries, self._tried_at = self._tries + 1, now
        return True
