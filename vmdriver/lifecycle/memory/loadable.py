"""What is found out about a checkpoint before a byte of it is loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from vmdriver.errors import Exhausted, NotFound, NotRestorable, Refused
from vmdriver.host import facts
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.launch.launcher import Launcher
from vmdriver.lifecycle.launch.translation import bounded
from vmdriver.lifecycle.launch.walled import walled
from vmdriver.lifecycle.memory import restore_check
from vmdriver.lifecycle.memory.restore_tries import final
from vmdriver.lifecycle.ports.memory import SavedMachine
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.checkpoint import MemoryManifest, MemoryRef
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import SandboxRecord

_ANOTHER_PROCESSOR = (
    "resume it on the processor, microcode and KVM settings that it was begun on; "
    "with resume --cold it boots from its disk"
)


@dataclass(frozen=True)
class Loadable:
    """What may be loaded, but for its memory, which is not compared yet."""

    manifest: MemoryManifest
    plan: LaunchPlan
    """Of the machine to be, which has no user yet."""
    secrets: Mapping[str, bytes]
    saved: SavedMachine


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Looks; changes nothing."""

    ports: Ports
    settings: Settings
    launcher: Launcher

    async def look(self, record: SandboxRecord, ref: MemoryRef) -> Loadable:
        """All that there is to know. NotRestorable for a difference, Exhausted, StorageError and
        others for what may pass.
        """
        manifest, plan = await self._checked(record, ref)
        secrets = await self.launcher.secrets(record)
        store = self.ports.memory_store
        saved = await store.saved(ref.directory, manifest.parts)
        return Loadable(manifest, plan, secrets, saved)

    async def _checked(
        self, record: SandboxRecord, ref: MemoryRef
    ) -> tuple[MemoryManifest, LaunchPlan]:
        ports, old = self.ports, record.plan
        if old is None:
            raise NotRestorable("the sandbox has no plan", reason="ImageMismatch")
        try:
            manifest, digest = await ports.memory_store.read(ref.directory)
            files = await ports.memory_store.identify(
                tuple(identity.path for identity in manifest.files)
            )
        except (NotFound, Refused) as error:
            raise final(error) from error
        plan = planner.on_layers(manifest.plan, record.layers, record.base)
        plan = planner.limited(plan, record.spec, self.settings)
        plan = bounded(walled(plan, self.settings))
        now = restore_check.HostNow(
            versions=await ports.hypervisor.versions(plan.accelerator),
            processor=await ports.hypervisor.processor(plan.accelerator),
            files=files,
            time_s=time.time(),
            available_memory_bytes=facts.available_memory_bytes(),
        )
        found = restore_check.differences(manifest, digest, ref, old, now)
        other = restore_check.processor_differences(manifest, now.processor)
        if found or other:
            raise NotRestorable(
                "; ".join((*found, *other)),
                reason="ImageMismatch" if found else "ProcessorMismatch",
                resolution=_ANOTHER_PROCESSOR if other else "",
            )
        short = restore_check.shortage(manifest, now)
        if short:
            raise Exhausted(
                short,
                reason="MemoryShort",
                resolution="stop or suspend other sandboxes",
            )
        return manifest, await self.launcher.wall.around(plan)
