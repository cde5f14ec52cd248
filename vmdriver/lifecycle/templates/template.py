"""Templates: guests that were booted once, up to a barrier before anything of anybody was in
them, and whose memory new sandboxes go on from instead of booting.

A template is bound to everything that its guest has seen: image, boot files, supervisor,
shape, hypervisor. A change of any of these is another key, and the old one is collected.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from secrets import token_hex

from vmdriver.errors import DriverError, NotFound
from vmdriver.host.log_context import at_nothing
from vmdriver.host.threads import finished
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.memory import restore_check
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.lifecycle.templates.build import TemplateMaker, owner_of
from vmdriver.lifecycle.templates.leftovers import Leftovers
from vmdriver.model.checkpoint import MEMORY, FileIdentity, MemoryManifest, Versions
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import SandboxRecord, layers_of, utc_now

_log = logging.getLogger(__name__)
_FORMAT = 2
"""Raised when the guest's way to the barrier changes, or what its files must be like. 2: nobody but
us may write to them, and machines' common group may read them.
"""
_MOST = 16
_FAILED_FOR_S = 600.0


@dataclass(frozen=True)
class Template:
    """One that can be used."""

    key: str
    """Another build of the same inputs has the same one: `layer` tells them apart."""
    directory: str
    """Of this build alone, so that one that is still in use may go on beside its successor."""
    manifest: MemoryManifest
    memory: FileIdentity
    """The memory file when it was checked last: any write since then is noticed."""
    used_at: datetime

    @property
    def layer(self) -> str:
        """The root disk's layer that the guest had written to before the barrier."""
        return self.manifest.plan.disk("root").path


def template_key(plan: LaunchPlan, versions: Versions, workspace: str) -> str:
    """Names everything that the guest has seen at the barrier."""
    inputs = {
        "format": _FORMAT,
        "image": plan.image_digest,
        "base": plan.disk("root").backing[-1],
        "boot": plan.boot_digest,
        "arguments": plan.kernel_arguments,
        "supervisor": plan.disk("supervisor").path,
        "shape": [plan.vcpus, plan.memory_mib, plan.accelerator],
        "disk": plan.disk("root").size_mib,
        "ids": [plan.sandbox_uid, plan.sandbox_gid],
        "versions": versions.model_dump(),
        "workspace": workspace,
    }
    if plan.accelerator == "kvm" and plan.processor is not None:
        inputs["processor"] = (
            plan.processor.model_dump()
        )  # TCG's goes with QEMU's version
    text = json.dumps(inputs, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Templates:
    """All templates of this driver. Builds one at a time, in the background."""

    def __init__(
        self,
        *,
        ports: Ports,
        settings: Settings,
        paths: Paths,
        maker: TemplateMaker,
        records: Callable[[], list[SandboxRecord]],
        layers_of_unread: Callable[[], set[str]],
        directory: str,
        leftovers: Leftovers,
    ) -> None:
        self._ports, self._settings, self._paths = ports, settings, paths
        self._maker, self._records, self._directory = maker, records, directory
        self.leftovers = leftovers
        self._known: dict[str, Template] = {}
        self._failed: dict[str, float] = {}
        self._wanted: dict[str, tuple[LaunchPlan, str]] = {}
        self._builder: asyncio.Task[None] | None = None
        self._uses: Counter[str] = Counter()
        """Layer -> how many hold the template, whose record does not name the layer yet."""
        self._leaving: dict[str, Template] = {}
        """Layer -> a template that was removed and is still held."""
        self._layers_of_unread = layers_of_unread
        """Layers that sandboxes need whose record cannot be read."""
        self.building_mib = 0
        """Memory of the machine that one is being made of."""
        self._before: list[Callable[[], Awaitable[None]]] = []
        self._after: list[Callable[[], None]] = []
        self._gone: list[Callable[[Template], Awaitable[None]]] = []
        maker.tell(self.make_way)

    def tell(
        self,
        *,
        before: Callable[[], Awaitable[None]],
        after: Callable[[], None],
        gone: Callable[[Template], Awaitable[None]],
    ) -> None:
        """From now on call these before one is built and after, and when one is `gone`."""
        self._before.append(before)
        self._after.append(after)
        self._gone.append(gone)

    # --- at start and end

    async def recover(self, *, collect: bool = True) -> None:
        """Read what there is; remove what was half made or can never be used again, and what
        was being removed when the last driver ended: it has no manifest any more. Not `collect`:
        all of it stays.
        """
        store = self._ports.memory_store
        for name in await store.listed(self._directory):
            directory = f"{self._directory}/{name}"
            try:
                template = await self._read(name, directory)
                self._known[template.key] = template
            except DriverError as error:
                _log.info("template %s cannot be used: %s", name, error)
                if collect:
                    await self.leftovers.remove_files(directory)
            except Exception:  # noqa: BLE001 - nothing that lies there keeps a driver from starting
                _log.exception("template %s cannot be used", name)
                if collect:
                    await self.leftovers.remove_files(directory)

    async def _read(self, name: str, directory: str) -> Template:
        """The template in that directory. DriverError when it cannot be used."""
        key, _, build = name.partition(".")
        if not self._settings.templates_enabled:
            raise NotFound("templates are switched off")
        if build.endswith("part") or key in self._known:
            raise NotFound("it was not finished, or is there twice")
        manifest, _ = await self._ports.memory_store.read(directory)
        versions = await self._ports.hypervisor.versions(manifest.plan.accelerator)
        if template_key(manifest.plan, versions, manifest.workspace) != key:
            raise NotFound("it is of another hypervisor")
        now = await self._ports.hypervisor.processor(manifest.plan.accelerator)
        if restore_check.processor_differences(manifest, now):
            raise NotFound("it is of another processor")
        if manifest.boot_digest != self._paths.boot().digest:
            raise NotFound("it is of other boot files")
        user = manifest.plan.user
        if user is None or user.gid != self._maker.group:
            raise NotFound("machines of this range of users cannot read it")
        return await self._checked(key, directory, manifest)

    async def _checked(
        self, key: str, directory: str, manifest: MemoryManifest
    ) -> Template:
        store = self._ports.memory_store
        problems = await store.damage(directory, manifest.parts)
        now = await store.identify(tuple(f.path for f in manifest.files))
        if problems or now != manifest.files:
            raise NotFound(f"it has changed: {problems or 'a file that it needs'}")
        (memory,) = await store.identify((f"{directory}/{MEMORY}",))
        return Template(key, directory, manifest, memory, manifest.created_at)

    async def close(self) -> None:
        """Give up a build under way; what it had made is removed."""
        self._wanted.clear()
        if self._builder is not None:
            self._builder.cancel()
            await asyncio.wait({self._builder})

    # --- use

    def layers(self) -> set[str]:
        """Layers that templates stand on, those of templates that were removed and are still
        held, and that of a build under way.
        """
        return {t.layer for t in self._all()} | self._maker.layers

    def plans(self) -> list[LaunchPlan]:
        """Of those that are there or still held, and of those that are to be built."""
        wanted = [plan for plan, _ in self._wanted.values()]
        return [t.manifest.plan for t in self._all()] + wanted

    def _all(self) -> list[Template]:
        return [*self._known.values(), *self._leaving.values()]

    def listed(self) -> list[Template]:
        """Those that can be used, by key."""
        return [self._known[key] for key in sorted(self._known)]

    async def key_of(self, plan: LaunchPlan, workspace: str) -> str:
        """The key of the template that would fit, or "" where none may be used."""
        if not self._settings.templates_enabled or plan.boot_digest == "external":
            return ""
        if not await self._ports.memory.seals():
            return ""  # everybody's memory is nobody's to change
        if plan.is_tied or not planner.fits_template_seed(plan):
            return ""
        versions = await self._ports.hypervisor.versions(plan.accelerator)
        return template_key(plan, versions, self._scope(workspace))

    def _scope(self, workspace: str) -> str:
        """The workspace that a template is for; "" for all of them."""
        return "" if self._settings.templates_scope == "host" else workspace

    def is_there(self, template: Template) -> bool:
        """Whether that very template can be used, not another build of its key."""
        known = self._known.get(template.key)
        return known is not None and known.layer == template.layer

    @asynccontextmanager
    async def use(self, key: str) -> AsyncIterator[Template | None]:
        """The template, if it is there and nobody has written to it. It is held meanwhile."""
        found = self._known.get(key)
        if found is None:
            yield None
            return
        async with self.hold(found):
            yield found if await self._is_sound(found) else None

    @asynccontextmanager
    async def hold(self, template: Template) -> AsyncIterator[None]:
        """Its layer and its directory stay until here, whoever removes it: by then a record
        names the layer, or nobody wants it. Only for one that is there, or held.
        """
        self._uses[template.layer] += 1
        try:
            yield
        finally:
            await finished(self._let_go(template))

    async def _let_go(self, template: Template) -> None:
        self._uses[template.layer] -= 1
        if self._uses[template.layer] > 0:
            return
        del self._uses[template.layer]
        if self._leaving.pop(template.layer, None) is None:
            return
        needed = self._layers_of_unread().union(
            *(layers_of(record) for record in self._records())
        )
        # Without the directory of records nobody knows who stands on it.
        known = self._ports.records.all_there()
        unneeded = known and template.layer not in needed
        await self.leftovers.remove_files(
            template.directory, template.layer if unneeded else ""
        )

    async def _is_sound(self, template: Template) -> bool:
        files = (template.memory, *template.manifest.files)
        try:
            now = await self._ports.memory_store.identify(tuple(f.path for f in files))
            for was, found in zip(files, now, strict=True):
                if was != found:
                    raise NotFound(f"{was.path} was written to")
        except DriverError as error:
            _log.warning("template %s is given up: %s", template.key, error)
            await self._take_off(template)
            return False
        if self.is_there(template):
            self._known[template.key] = replace(template, used_at=utc_now())
        return True

    async def remove(self, key: str) -> None:
        """Nobody begins to use it from now on. Machines that were forked from it go on: they
        have its files open; whoever is at it keeps it until he has what he needs. NotFound.
        """
        found = self._known.get(key)
        if found is None:
            raise NotFound(f"there is no template {key!r}")
        await self._take_off(found)

    async def _take_off(self, template: Template) -> None:
        if not self.is_there(template):
            return
        del self._known[template.key]
        self._leaving[template.layer] = template
        async with self.hold(template):
            try:
                # First, so that a driver that is begun after a kill does not find it again.
                await self._ports.memory_store.unpublish(template.directory)
            finally:
                for gone in self._gone:
                    await gone(template)

    # --- build

    async def want(self, plan: LaunchPlan, workspace: str) -> None:
        """A machine of this plan has just booted: the next one should not have to."""
        key = await self.key_of(plan, workspace)
        if not key or key in self._known or key in self._wanted:
            return
        loop = asyncio.get_running_loop()
        # What is left of its last build has the names that this one would have.
        left = self.leftovers.has(owner_of(key))
        if left or loop.time() < self._failed.get(key, 0.0):
            return
        self._wanted[key] = (plan, self._scope(workspace))
        self._begin()

    def _begin(self) -> None:
        if self._wanted and (self._builder is None or self._builder.done()):
            self._builder = asyncio.create_task(
                self._build_all(), name="template builds", context=at_nothing()
            )

    async def make_way(self) -> bool:
        """End the build that is under way, for a sandbox that needs what it holds; it is tried
        again later. False: there is none.
        """
        builder = self._builder
        if builder is None or builder.done():
            return False
        builder.cancel()
        await asyncio.wait({builder})
        self._begin()
        return True

    async def _build_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._wanted:
            key, (plan, scope) = next(iter(self._wanted.items()))
            try:
                await self._build(key, plan, scope)
            except asyncio.CancelledError:
                self._failed[key] = loop.time() + _FAILED_FOR_S
                raise
            except DriverError as error:
                self._failed[key] = loop.time() + _FAILED_FOR_S
                _log.warning("template %s could not be built: %s", key, error.text())
            except Exception:  # noqa: BLE001 - a bug must not end every later build
                self._failed[key] = loop.time() + _FAILED_FOR_S
                _log.exception("template %s could not be built", key)
            finally:
                self._wanted.pop(key, None)
            for after in self._after:
                after()

    async def _build(self, key: str, plan: LaunchPlan, scope: str) -> None:
        if not self._maker.has_room(plan):
            _log.info("template %s is not built: there is no memory for it now", key)
            return
        directory = f"{self._directory}/{key}.{token_hex(4)}"
        self.building_mib = plan.memory_mib
        try:
            await asyncio.gather(*(before() for before in self._before))
            manifest = await self._maker.run(key, plan, scope, directory)
        finally:
            self.building_mib = 0
        try:
            self._known[key] = await self._checked(key, directory, manifest)
        except BaseException:
            await self.leftovers.remove_files(
                directory, manifest.plan.disk("root").path
            )
            raise
        size = (plan.vcpus, plan.memory_mib, manifest.stored_bytes >> 20)
        text = "template %s is ready: %s, %d vCPUs, %d MiB (%d MiB stored)"
        _log.info(text, key, plan.image, *size)
        while len(self._known) > _MOST:
            oldest = min(self._known.values(), key=lambda t: t.used_at)
            await self.remove(oldest.key)


def on_template(plan: LaunchPlan, template: Template, layer: str) -> LaunchPlan:
    """The same sandbox, going on from a template: its own layer stands on the template's."""
    base = plan.disk("root").backing[-1]
    below = tuple(reversed(template.manifest.plan.disk("root").backing[:-1]))
    layers = (*below, template.layer, layer)
    return planner.on_layers(plan, layers, base).model_copy(
        update={"template": template.key}
    )
