"""Keeps the sandboxes whose record or ledger cannot be read out of everything: nothing of them is
touched, nothing that they may need is removed, and only a delete is done to them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from vmdriver.errors import DriverError, StorageError
from vmdriver.host.threads import finished
from vmdriver.lifecycle.control.sandboxes import Sandboxes
from vmdriver.lifecycle.engine.ledger import MACHINE, Held, Ledger, Scope
from vmdriver.lifecycle.engine.resource import (
    DEVICES,
    FILES,
    FIREWALL,
    LEASE,
    MACHINE_USER,
    OVERLAY,
    Resources,
)
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.launch.devices import DevicePool, entry_data, functions_of
from vmdriver.lifecycle.launch.marked import entry, marked
from vmdriver.lifecycle.launch.users import UserPool
from vmdriver.lifecycle.ports.host import JournalOpener
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.plan import Lease
from vmdriver.model.record import ExtensionState, SandboxRecord, layers_of, utc_now
from vmdriver.model.set_aside import STATE_UNREADABLE, SetAside, salvage_of
from vmdriver.model.spec import SandboxSpec

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Shelf:
    """They lie here until they are deleted, or a driver is started with their files repaired."""

    sandboxes: Sandboxes
    ports: Ports
    paths: Paths
    addresses: AddressPool
    users: UserPool
    devices: DevicePool
    instance: str
    journals: JournalOpener
    open: Callable[[str], Ledger]
    """A sandbox's ledger. StorageError."""
    resources: Resources
    _taking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def kept(self) -> dict[str, SetAside]:
        """Those that lie here, by id."""
        return self.sandboxes.set_aside

    def consoles(self) -> list[str]:
        """Of their machines, which may run. A guest could fill the disk through its own."""
        return [self.paths.of(sandbox_id).console for sandbox_id in self.kept]

    def ledger(self, record: SandboxRecord) -> Ledger:
        """A sandbox's ledger, and its address, user and devices are noted. StorageError."""
        ledger = self.open(record.id)
        for held in ledger.held():
            if not self.resources.can_be_undone(held):
                raise StorageError(
                    f"sandboxes/{record.id}/ledger.jsonl does not say how to give back "
                    f"its {held.key}"
                )
        passed = ledger.get(DEVICES)
        if passed is not None:
            self._adopt_devices(record.id, passed)
        lease, user = ledger.get(LEASE), ledger.get(MACHINE_USER)
        if lease is not None:
            self._adopt(record.id, lease)
        if user is not None:
            self._adopt_user(record.id, user)
        return ledger

    def _adopt_devices(self, sandbox_id: str, held: Held) -> None:
        functions = functions_of(held)
        for function in functions:
            other = self.devices.owner(function.address)
            if other != sandbox_id and other in self.sandboxes.workers:
                raise StorageError(
                    f"the device {function.address} that its ledger holds is that of sandbox "
                    f"{other}"
                )
        self.devices.adopt(sandbox_id, functions)

    def _adopt_user(self, sandbox_id: str, held: Held) -> None:
        number = str(held.data["uid"])
        if not number.isdecimal():
            raise StorageError(
                f"sandboxes/{sandbox_id}/ledger.jsonl holds no valid user id"
            )
        other = self.users.holder(int(number))
        if other not in {None, sandbox_id}:
            raise StorageError(
                f"the user {number} that its ledger holds is that of sandbox {other}"
            )
        self.users.adopt(sandbox_id, int(number))

    def _adopt(self, sandbox_id: str, held: Held) -> None:
        try:
            lease = Lease.model_validate(held.data)
        except ValidationError as error:
            raise StorageError(
                f"sandboxes/{sandbox_id}/ledger.jsonl holds no valid lease"
            ) from error
        other = self.addresses.holder(lease.index)
        if other not in {None, sandbox_id}:
            raise StorageError(
                f"the address {lease.guest_ip} that its ledger holds is that of sandbox "
                f"{other}"
            )
        self.addresses.adopt(sandbox_id, lease)

    async def put(
        self, sandbox_id: str, problem: str, record: SandboxRecord | None = None
    ) -> None:
        """From now on it lies here. Nothing of it, and nothing that it may need, is touched."""
        found = await self.ports.records.salvage(sandbox_id)
        if record is not None:
            lease = found.lease or record.lease
            uid = found.uid or salvage_of(record).uid
            found = replace(salvage_of(record), lease=lease, uid=uid)
        if found.uid is not None and self.users.holder(found.uid) is None:
            self.users.adopt(sandbox_id, found.uid)
        if found.lease is not None and self.addresses.holder(found.lease.index) is None:
            self.addresses.adopt(sandbox_id, found.lease)
        if record is not None and record.plan is not None:
            self.devices.adopt_free(sandbox_id, record.plan.passed)
        layers = layers_of(record) if record is not None else set()
        layers |= await self._may_need(sandbox_id, certain=record is not None)
        self.kept[sandbox_id] = SetAside(
            sandbox_id,
            problem,
            utc_now(),
            found,
            record,
            record.plan.domain_uuid if record is not None and record.plan else "",
            frozenset(layers),
        )
        _log.error("%s: %s: %s", sandbox_id, STATE_UNREADABLE, problem)

    async def _may_need(self, sandbox_id: str, *, certain: bool) -> set[str]:
        """What its own layers stand on. Any layer, where that is unknown: it may be a fork that
        has no layer of its own yet.
        """
        disks = self.ports.disks
        try:
            own = await disks.own_layers(sandbox_id)
        except DriverError as error:
            _log.warning("%s: every layer is kept: %s", sandbox_id, error.text())
            return set(await disks.layers())
        if not own and not certain:
            return set(await disks.layers())
        return set(own).union(*own.values())

    # --- delete

    async def take(self, sandbox_id: str) -> tuple[SandboxRecord, Ledger] | None:
        """Make it one that can be read and is to be deleted, durably: its ledger holds whatever
        on the host bears its mark. None: it lies here no more.
        """
        return await finished(self._take(sandbox_id))

    async def _take(self, sandbox_id: str) -> tuple[SandboxRecord, Ledger] | None:
        async with self._taking:
            aside = self.kept.get(sandbox_id)
            if aside is None:
                return None
            held = await self._held(aside)
            record = await self._stand_in(aside, held)
            await self.ports.records.give_up(record)
            lines = [line for h in held for line in h.lines()]
            await self.journals(sandbox_id).rewrite(lines)
            ledger = self.open(sandbox_id)
            del self.kept[sandbox_id]
            return record, ledger

    async def _held(self, aside: SetAside) -> list[Held]:
        """What its ledger says, if it can be read, and what is found on the host besides."""
        try:
            ledger = self.open(aside.id)
            held = {h.key: h for h in ledger.held() if self.resources.can_be_undone(h)}
        except StorageError:
            held = {}
        lease = aside.salvage.lease
        if lease is not None:
            data = lease.model_dump()
            held.setdefault(LEASE, Held(LEASE, Scope.PERSISTENT, data, done=True))
        if aside.salvage.uid is not None:
            user = Held(MACHINE_USER, Scope.PERSISTENT, {"uid": str(aside.salvage.uid)})
            held.setdefault(MACHINE_USER, replace(user, done=True))
        for path in list(await self._own_layers(aside.id))[-1:]:
            layer = {"path": path}
            held.setdefault(OVERLAY, Held(OVERLAY, Scope.PERSISTENT, layer, done=True))
        plan = aside.record.plan if aside.record is not None else None
        passed = plan.passed if plan is not None else ()
        its = tuple(f for f in passed if self.devices.owner(f.address) == aside.id)
        if its:
            entries = dict(entry_data(its))
            held.setdefault(DEVICES, Held(DEVICES, Scope.RUNTIME, entries))
        seed = {"seed": self.paths.of(aside.id).seed}
        held.setdefault(FILES, Held(FILES, Scope.RUNTIME, seed))
        guest_ip = lease.guest_ip if lease else ""
        for item in await marked(self.ports):
            if item.sandbox_id == aside.id:
                found = entry(item, self.instance, guest_ip)
                held.setdefault(found.key, found)
        last = [held.pop(key) for key in (FIREWALL, MACHINE) if key in held]
        return [*held.values(), *last]  # undone in reverse: the machine holds the rest

    async def _own_layers(self, sandbox_id: str) -> dict[str, tuple[str, ...]]:
        try:
            return dict(await self.ports.disks.own_layers(sandbox_id))
        except DriverError as error:
            _log.warning("%s: layers may be left over: %s", sandbox_id, error.text())
            return {}

    async def _stand_in(self, aside: SetAside, held: Iterable[Held]) -> SandboxRecord:
        own = await self._own_layers(aside.id)
        going = {"intent": Intent.DELETED, "phase": Phase.DELETING}
        if aside.record is not None:
            layers = (*aside.record.layers, *(set(own) - set(aside.record.layers)))
            return aside.record.model_copy(update={**going, "layers": layers})
        names = {str(h.data["extension"]) for h in held if "extension" in h.data}
        known, now = aside.salvage, utc_now()
        spec = SandboxSpec(
            id=aside.id,
            name=aside.name,
            namespace=known.namespace,
            workspace=known.workspace,
            image="unknown",
        )
        return SandboxRecord(
            spec=spec,
            created_at=now,
            changed_at=now,
            layers=tuple(set(own).union(*own.values())),
            lease=known.lease,
            extensions=ExtensionState(active=tuple(sorted(names))),
            **going,
        )
