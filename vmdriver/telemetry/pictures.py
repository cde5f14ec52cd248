"""Pictures of a driver, made once for all who watch it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from vmdriver import __version__
from vmdriver.host.threads import alone
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.model.condition import SandboxStatus
from vmdriver.model.picture import (
    Picture,
    SeenEvent,
    SeenSandbox,
    SeenTemplate,
    Totals,
)
from vmdriver.model.record import utc_now
from vmdriver.model.usage import Usage
from vmdriver.telemetry.last_seen import LastSeen
from vmdriver.telemetry.use import MachineUse
from vmdriver.wiring import Core

_FRESH_S = 0.5
_DISK_EVERY_S = 2.0
_DISK_SHARE = 0.05
Stored = tuple[Mapping[str, int], int]
"""Bytes on disk by sandbox, and those that are left."""


class Pictures:
    """`stored_of`: given paths of layers by sandbox; blocking."""

    def __init__(
        self,
        *,
        core: Core,
        use: MachineUse,
        stored_of: Callable[[Mapping[str, Sequence[str]]], Stored],
        sandbox_limit: int,
        memory_limit_mib: int,
    ) -> None:
        self._core, self._use, self._stored_of = core, use, stored_of
        self._limits = {
            "sandbox_limit": sandbox_limit,
            "memory_limit": memory_limit_mib * 2**20,
        }
        self._disk = LastSeen[Stored](
            "layers", ({}, 0), every_s=_DISK_EVERY_S, share=_DISK_SHARE
        )
        self._making = asyncio.Lock()
        self._last = Picture(utc_now(), __version__)
        self._made_at = -_FRESH_S

    async def now(self) -> Picture:
        """One that is at most half a second old. What a disk or a QEMU that hangs would say is
        what they said last.
        """
        async with self._making:
            if time.monotonic() - self._made_at >= _FRESH_S:
                self._last = await self._make()
                self._made_at = time.monotonic()
            return self._last

    async def _make(self) -> Picture:
        looked, (stored, free) = await asyncio.gather(
            self._use.look(), self._disk.look(self._look_at_disks)
        )
        used = {whose.sandbox: usage for whose, usage in looked.of.items()}
        return Picture(
            at=utc_now(),
            version=__version__,
            used_at=looked.at,
            sandboxes=self._sandboxes(used, stored),
            templates=self._templates(),
            events=tuple(
                SeenEvent(told.sandbox_id, told.event)
                for told in self._core.broadcaster.recent()
            ),
            totals=Totals(
                committed=self._core.budget.committed_mib() * 2**20,
                disk_free=free,
                addresses_left=self._core.addresses.left(),
                **self._limits,
            ),
        )

    async def _look_at_disks(self) -> Stored:
        layers = {}
        for worker in self._core.sandboxes.accepted():
            record = worker.sandbox.record
            layers[record.id] = record.layers[record.inherited_layers :]
        return await alone("layers", self._stored_of, layers)

    def _sandboxes(
        self, used: Mapping[str, Usage], stored: Mapping[str, int]
    ) -> tuple[SeenSandbox, ...]:
        known = {
            w.sandbox.record.id: w.sandbox for w in self._core.sandboxes.accepted()
        }
        return tuple(
            _seen(status, known.get(status.id), used, stored)
            for status in self._core.sandboxes.statuses()
        )

    def _templates(self) -> tuple[SeenTemplate, ...]:
        count = self._core.warm_pool.count
        return tuple(
            SeenTemplate(
                key=template.key,
                image_digest=template.manifest.plan.image_digest,
                vcpus=template.manifest.plan.vcpus,
                memory_mib=template.manifest.plan.memory_mib,
                stored=template.manifest.stored_bytes,
                waiting=count(template.key),
            )
            for template in self._core.templates.listed()
        )


def _seen(
    status: SandboxStatus,
    sandbox: Sandbox | None,
    used: Mapping[str, Usage],
    stored: Mapping[str, int],
) -> SeenSandbox:
    condition = status.conditions[0]
    record = sandbox.record if sandbox else None
    return SeenSandbox(
        id=status.id,
        name=status.name,
        workspace=status.workspace,
        phase=record.phase.value if record else "unreadable",
        intent=record.intent.value if record else "",
        reason=condition.reason,
        message=condition.message,
        since=condition.changed_at,
        created=record.created_at if record else condition.changed_at,
        usage=used.get(status.id),
        stored=stored.get(status.id, 0),
    )
