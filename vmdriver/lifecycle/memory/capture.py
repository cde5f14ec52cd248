"""Holding a machine still while its memory is kept: for a suspension or a snapshot.

Every step is in the ledger with the scope CAPTURE before it is taken. Giving that scope
back, in whatever process, means: what was half written is removed, the machine goes on, the
workload is thawed. So a capture that fails or is cut off leaves the sandbox running as
before; one that has published its manifest leaves the same, or is a suspension and ends the
machine first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vmdriver.errors import DriverError, Refused
from vmdriver.host.retry import tried
from vmdriver.lifecycle.engine.hold import SandboxHold
from vmdriver.lifecycle.engine.ledger import MACHINE, Held, Scope
from vmdriver.lifecycle.engine.resource import FROZEN, LAYER, PAUSED
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.memory import restore_check
from vmdriver.lifecycle.memory.manifest import describe
from vmdriver.lifecycle.memory.resources import (
    FrozenWorkload,
    ImagePart,
    PausedMachine,
    image_bytes,
)
from vmdriver.lifecycle.ports.memory import Captured
from vmdriver.model.memory_image import ImageKind, MemoryRef
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.runs import Reason

_log = logging.getLogger(__name__)


class Stopwatch:
    """Seconds of named steps, in order."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count what happens inside as that step."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.steps[name] = self.steps.get(name, 0.0) + time.monotonic() - begun

    def text(self) -> str:
        """Total and steps, on one line."""
        parts = ", ".join(f"{n} {s * 1e3:.0f} ms" for n, s in self.steps.items())
        return f"{sum(self.steps.values()):.2f} s ({parts})"


class CaptureActions(SandboxHold):
    """What suspensions and snapshots have in common."""

    async def _abandon_capture(self) -> None:
        """Let the machine go on after a capture that was cut off or has failed. One that is to
        be ended is ended first: to let it go on may hang, and is in vain.
        """
        if self.going_down():
            return
        try:
            await self._settle_layer()
            if self.unsaved:
                # The record on disk may stand on less than the machine wrote to: until it can
                # be stored, the ledger alone claims that layer.
                await self.update()
        except DriverError:
            # What it stands on cannot be noted (on a full disk, for one), so that the layer has
            # to stay held. Nothing stands still for that reason.
            await self._let_go_on()
            raise
        errors = await self.ledger.release(Scope.CAPTURE, self._give_back)
        if errors:
            raise errors[0]

    async def _let_go_on(self) -> None:
        for key in (PAUSED, FROZEN):
            held = self.ledger.get(key)
            if held is not None:
                await tried(_log, self._give_back(held), f"{self.record.id}: {key}")

    async def _give_back(self, held: Held) -> None:
        """Undo one step of a capture. What holds the machine still is tried rarely."""
        still = self._held_still
        there = self.ledger.get(MACHINE) is not None
        if there and (error := still.not_now(held.key)) is not None:
            raise error
        try:
            await self._shared.undoer.undo(
                self.record, self.ledger, held, Reason.STOPPED
            )
        except DriverError as error:
            if held.key in {PAUSED, FROZEN}:
                still.failed(held, error)
            raise
        still.ended(held.key)

    async def _settle_layer(self, *, regardless: bool = False) -> None:
        """Stand on the new layer if the machine may write to it already, or may have done so
        before it ended. Nothing is lost when it did not: an empty layer shows what is below it,
        whoever writes there.
        """
        held, layers = self.ledger.get(LAYER), self.record.layers
        if held is None or held.data["path"] in layers:
            return
        path, plan = held.data["path"], self.record.plan
        # Earlier drivers did not note it; theirs for a return stands on the snapshot's layers.
        running = held.data.get("running", not self.record.reverting)
        if plan is None or not running:
            return  # of a stopped sandbox, or for a return: no machine has it
        ports = self._shared.ports
        # The note that it was made may be what a full disk has lost.
        made = held.done or await ports.disks.is_whole(path, layers[-1])
        if made and await ports.memory.holds(path, layers[-1]):
            await self._stand_on((*layers, path), regardless=regardless)

    async def _stand_on(
        self, layers: tuple[str, ...], *, regardless: bool = False, **changes: Any
    ) -> None:
        """Record and plan say from now on what the root disk consists of."""
        plan = self.record.plan
        if plan is not None:
            plan = planner.on_layers(plan, layers, self.record.base)
        changes = {"layers": layers, "plan": plan, **changes}
        await self.decide(lambda _: changes, regardless=regardless)

    def _refuse_devices(self, plan: LaunchPlan) -> None:
        if plan.devices:
            raise Refused(
                f"the machine has a passed-through device ({plan.devices[0]}), whose state "
                "cannot be kept",
                reason="DevicePassedThrough",
                resolution="stop it instead, or take a snapshot of the disk only",
            )

    async def _read_ahead(self) -> None:
        """Have the file that the machine maps in the page cache before it stands still:
        page by page, as QEMU would ask for it, that takes several times as long.
        """
        if self.record.mapped:
            await self._shared.ports.memory_store.read_ahead(self.record.mapped)

    async def _freeze(self, plan: LaunchPlan, watch: Stopwatch) -> str:
        """Workload frozen, disks flushed, machine paused. The guest's boot id."""
        ports, domain = self._shared.ports, plan.domain
        limit_s = self._shared.settings.freeze_timeout_s
        workload = FrozenWorkload(ports.guest, ports.hypervisor, ports.memory)
        with watch.step("freeze"):
            boot_id = await workload.acquire(self.ledger, domain, limit_s)
        with watch.step("pause"):
            await PausedMachine(ports.memory).acquire(self.ledger, domain)
        return boot_id

    async def _begin_image(
        self, plan: LaunchPlan, directory: str, copies: int = 1
    ) -> str:
        """Make room for the memory, `copies` times; the path of the file for it."""
        part = ImagePart(self._shared.ports.memory_store)
        return await part.acquire(self.ledger, directory, copies * image_bytes(plan))

    async def _publish_image(
        self,
        kind: ImageKind,
        name: str,
        target: str,
        captured: Captured,
        guest_boot_id: str,
        plan: LaunchPlan,
        watch: Stopwatch,
    ) -> MemoryRef:
        """Everything durable, the manifest last, then the image's name."""
        ports, record = self._shared.ports, self.record
        part = self._shared.launcher.places.paths(record.id).part
        with watch.step("write out"):
            await ports.disks.flush_status(plan.disk("status").path)
            parts = await ports.memory_store.write_parts(part, captured)
        token = await ports.records.token(record.id)
        manifest = await describe(
            ports,
            kind,
            plan,
            captured,
            parts,
            name=name,
            workspace=record.spec.workspace,
            guest_boot_id=guest_boot_id,
            spec=record.spec,
            token_expires_at=restore_check.token_expiry(
                token.get_secret_value() if token else ""
            ),
            secrets_digest=record.secrets_digest,
            extensions=self._shared.extensions.saved(record, self.ledger),
        )
        with watch.step("publish"):
            digest = await ports.memory_store.publish(part, target, manifest)
            await ports.memory_store.end(part)
        return MemoryRef(
            directory=target,
            digest=digest,
            kind=kind,
            name=name,
            stored_bytes=manifest.stored_bytes,
        )
