"""New sandboxes whose machine goes on from a template's memory instead of booting."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from vmdriver.errors import DriverError
from vmdriver.host.threads import finished
from vmdriver.lifecycle.engine import measures
from vmdriver.lifecycle.engine.ledger import MACHINE
from vmdriver.lifecycle.engine.resource import (
    FILES,
    LEASE,
    MACHINE_USER,
    OVERLAY,
    TAP,
)
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.launch.launch import Beginning
from vmdriver.lifecycle.launch.resources import Effects, MachineSource, is_there
from vmdriver.lifecycle.launch.users import UserLease
from vmdriver.lifecycle.ports.guest import Guest
from vmdriver.lifecycle.ports.host import Hypervisor, LaunchFiles, Network
from vmdriver.lifecycle.ports.memory import MachineMemory, MemoryStore
from vmdriver.lifecycle.ports.network_guard import NetworkGuard
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.templates.pool import Waiting, WarmPool
from vmdriver.lifecycle.templates.template import Template, Templates, on_template
from vmdriver.model.ids import mark
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.runs import RestoreKind


@dataclass(frozen=True, kw_only=True)
class Forks:
    """A launch.Beginnings: a template where there is one, else a boot."""

    templates: Templates
    warm_pool: WarmPool
    hypervisor: Hypervisor
    network: Network
    guard: NetworkGuard
    launch_files: LaunchFiles
    memory: MachineMemory
    memory_store: MemoryStore
    guest: Guest
    addresses: AddressPool
    user: UserLease
    paths: Paths
    instance: str
    restore_timeout_s: float

    async def started(self, sandbox: Sandbox) -> None:
        """Have a template made of what was booted for the first time, and machines wait."""
        record = sandbox.record
        plan = record.plan
        if plan is not None and plan.template is None and record.launches == 1:
            await self.templates.want(plan, record.spec.workspace)
        self.warm_pool.refill()

    @asynccontextmanager
    async def begin(
        self, sandbox: Sandbox, plan: LaunchPlan
    ) -> AsyncIterator[Beginning]:
        """What the launch inside starts from. If that does not come to its end, what was not
        taken over from a waiting machine is gone afterwards. The template is held until the
        record names its layer and the machine has its memory open.
        """
        warm_pool = self.warm_pool
        key = await self._key(sandbox, plan)
        async with self.templates.use(key) as found:
            miss = "miss" if key else "none"
            measures.looked_for_template("hit" if found else miss)
            if found is None:
                await warm_pool.keep_within()
                yield Beginning(plan, partial(self._source, plan))
                return
            waiting = warm_pool.claim(found)
            if warm_pool.most:
                measures.looked_for_waiting(found=waiting is not None)
            try:
                await warm_pool.keep_within()
                if waiting is None:
                    yield self._fork(sandbox, plan, found)
                else:
                    yield await self._claim(sandbox, plan, found, waiting)
            except BaseException:
                if waiting is not None:
                    taken = sandbox.ledger.get(OVERLAY) is not None
                    await finished(warm_pool.discard(waiting, keep_layer=taken))
                raise
            if waiting is not None:
                warm_pool.settle(waiting)

    async def _key(self, sandbox: Sandbox, plan: LaunchPlan) -> str:
        """Of the template that would fit; "" where none may be used. Only for a disk that
        nobody has written to yet.
        """
        if sandbox.record.layers:
            return ""
        return await self.templates.key_of(plan, sandbox.record.spec.workspace)

    def _source(
        self,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> MachineSource:
        owner = mark(self.instance, plan.sandbox_id)
        return MachineSource(plan, owner, environment, secrets)

    def _fork(
        self, sandbox: Sandbox, plan: LaunchPlan, template: Template
    ) -> Beginning:
        plan = on_template(plan, template, plan.disk("root").path)

        def source(
            environment: Mapping[str, str], secrets: Mapping[str, bytes]
        ) -> MachineSource:
            boot = self._source(plan, environment, secrets)
            start = partial(self._start_fork, sandbox, boot, template)
            return replace(boot, instead={MACHINE: start}, paused=True)

        return Beginning(plan, source, RestoreKind.TEMPLATE)

    async def _claim(
        self, sandbox: Sandbox, plan: LaunchPlan, template: Template, waiting: Waiting
    ) -> Beginning:
        """Everything is there already, and gets another owner."""
        plan = await self._take_leases(sandbox, plan, waiting)
        plan = on_template(plan, template, waiting.plan.disk("root").path)

        def source(
            environment: Mapping[str, str], secrets: Mapping[str, bytes]
        ) -> MachineSource:
            boot = self._source(plan, environment, secrets)
            take_over = partial(self.launch_files.take_over, waiting.plan, plan)
            instead: Effects = {
                OVERLAY: is_there,
                FILES: partial(take_over, environment, secrets),
                TAP: partial(self._take_tap, plan, boot.mark, waiting.plan),
                MACHINE: partial(self._start_claimed, sandbox, boot, waiting.plan),
            }
            return replace(boot, instead=instead, paused=True)

        return Beginning(plan, source, RestoreKind.TEMPLATE)

    async def _take_tap(self, plan: LaunchPlan, owner: str, waited: LaunchPlan) -> None:
        # What it was is not to be had again; with its rules the guard keeps what it is then.
        await self.guard.leave(plan.network.lease.tap)
        await self.network.reassign_tap(plan.network.lease.tap, owner)
        if plan.network.mbit_s != waited.network.mbit_s:
            await self.network.limit_rate(plan.network)
        if plan.network.ipv6 is not None:
            await self.network.give_ipv6(plan.network, owner)

    async def _take_leases(
        self, sandbox: Sandbox, plan: LaunchPlan, waiting: Waiting
    ) -> LaunchPlan:
        """The sandbox's address and user are the waiting machine's from now on."""
        lease, user = waiting.plan.network.lease, waiting.plan.user
        assert user is not None  # noqa: S101 - it was started by this driver
        name, ledger = sandbox.record.id, sandbox.ledger

        async def exchange() -> None:
            taken = {LEASE: lease.model_dump(), MACHINE_USER: {"uid": str(user.uid)}}
            await ledger.remember_all(taken)
            self.addresses.free(waiting.owner)
            self.addresses.adopt(name, lease)
            self.user.pass_on(waiting.owner, name)

        await finished(exchange())
        plan = planner.with_user(planner.with_lease(plan, lease), user)
        begun = {"domain": waiting.plan.domain, "wall": waiting.plan.wall}
        return plan.model_copy(update=begun)

    async def _start_fork(
        self, sandbox: Sandbox, source: MachineSource, template: Template
    ) -> None:
        """Have the machine go on from the template, as this sandbox; boot it if that is
        not to be.
        """
        plan, load = source.plan, self.memory.load
        scratch = self.paths.of(plan.sandbox_id).scratch

        async def have() -> None:
            saved = await self.memory_store.saved(template.directory)
            with sandbox.stopwatch.step("load"):
                await load(plan, source.mark, saved, scratch)

        await self._go_on_or_boot(sandbox, source, have)

    async def _start_claimed(
        self, sandbox: Sandbox, source: MachineSource, waited: LaunchPlan
    ) -> None:
        plan = source.plan

        async def have() -> None:
            await self.hypervisor.reassign(plan.domain, source.mark)
            if _limits(plan) != _limits(waited):
                await self.hypervisor.limit(plan)

        await self._go_on_or_boot(sandbox, source, have)

    async def _go_on_or_boot(
        self,
        sandbox: Sandbox,
        source: MachineSource,
        have: Callable[[], Awaitable[None]],
    ) -> None:
        """Nothing runs of what `have` has paused, nor of a machine that boots instead, before its
        rules are loaded.
        """
        failed: DriverError | None = None
        try:
            await have()
        except DriverError as error:
            failed = error
        await source.rules.passed()
        if failed is None:
            try:
                await self._adopt_guest(sandbox, source.plan)
            except DriverError as error:
                failed = error
        if failed is not None:
            await self._boot_instead(sandbox, source, failed)

    async def _adopt_guest(self, sandbox: Sandbox, plan: LaunchPlan) -> None:
        timed = sandbox.stopwatch.step
        with timed("go on"):
            await self.memory.go_on(plan.domain)
        with timed("guest takes its files"):
            await self.guest.adopt(plan.domain, self.restore_timeout_s)

    async def _boot_instead(
        self, sandbox: Sandbox, source: MachineSource, error: DriverError
    ) -> None:
        text = "the machine boots, since it could not go on from its template"
        sandbox.tell("TemplateFailed", f"{text}: {error.text()}", warn=True)
        await self.hypervisor.destroy(source.plan.domain)
        await self.hypervisor.start(source.plan, source.mark)


def _limits(plan: LaunchPlan) -> tuple[int | None, ...]:
    """What a machine that waits is limited to; all else of its size is its template's."""
    own = (plan.vcpus, plan.memory_mib, plan.cpu_quota_millis)
    return (*own, plan.disk_iops, plan.disk_mib_s)
