"""A host in memory: machines, taps, tables, files. It survives a crash of the driver, as the real one does."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from vmdriver.errors import AlreadyExists, HostError
from vmdriver.lifecycle.ports import (
    BaseDisk,
    Found,
    GuestReport,
    ProgressSink,
    Taken,
    no_checkpoint,
)
from vmdriver.model.ids import parse_mark
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import Accelerator, Disk, LaunchPlan, NetworkPlan
from vmdriver.model.record import SandboxRecord


class Crash(BaseException):
    """The driver process is killed here. Not an Exception: nothing of the driver may handle it."""


@dataclass
class World:
    """What is on the host, and on its disk."""

    domains: dict[str, DomainState] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    taps: dict[str, str] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    reports: dict[str, GuestReport] = field(default_factory=dict)
    journals: dict[str, list[str]] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, SecretStr] = field(default_factory=dict)
    dead: bool = False
    calls: list[str] = field(default_factory=list)
    fail: Callable[[str], bool] = lambda _call: False
    starts: dict[str, int] = field(default_factory=dict)
    seeds: dict[str, tuple[Mapping[str, str], Mapping[str, bytes]]] = field(
        default_factory=dict
    )
    flushed: list[str] = field(default_factory=list)

    def act(self, call: str) -> None:
        """Every effect passes here: a dead driver has none, and a test may make one fail."""
        if self.dead:
            raise Crash(call)
        self.calls.append(call)
        if self.fail(call):
            raise HostError(f"{call} failed on purpose", reason="OnPurpose")

    def objects(self) -> set[str]:
        """Everything that must be in some ledger."""
        return (
            {f"machine {name}" for name in self.domains}
            | {f"tap {name}" for name in self.taps}
            | {f"firewall {name}" for name in self.tables}
            | {f"file {name}" for name in self.files}
        )

    def end_machine(self, domain: str, report: GuestReport | None = None) -> None:
        """The guest powers off, saying `report` first, or the machine crashes."""
        self.domains[domain] = DomainState.OFF
        if report is not None:
            for path in self.reports:
                if path.startswith(self.marks[domain].rpartition("/")[2]):
                    self.reports[path] = report


class FakeHypervisor:
    def __init__(
        self,
        world: World,
        instance: str,
        checkpoint: Callable[[str], Awaitable[None]] = no_checkpoint,
    ) -> None:
        self._world, self._instance, self._checkpoint = world, instance, checkpoint
        self.hint: Callable[[str], None] = lambda _name: None

    async def start(self, plan: LaunchPlan, mark: str) -> None:
        world = self._world
        world.act(f"start {plan.domain}")
        if world.domains.get(plan.domain) is DomainState.RUNNING:
            raise HostError("two machines on one disk")
        assert plan.network.lease.tap in world.taps, "a machine without its tap"
        assert plan.network.lease.tap in world.tables, "a machine without its firewall"
        assert {plan.disk("root").path, plan.disk("seed").path} <= world.files, (
            "a machine without its disks"
        )
        world.marks[plan.domain] = mark
        for half_way in (DomainState.OFF, DomainState.PAUSED):
            world.domains[plan.domain] = half_way
            await self._checkpoint(f"machine:{half_way}")
        world.domains[plan.domain] = DomainState.RUNNING
        world.starts[plan.domain] = world.starts.get(plan.domain, 0) + 1
        world.reports[plan.disk("status").path] = GuestReport("started")

    async def observe(self, domain: str) -> DomainState:
        return self._world.domains.get(domain, DomainState.ABSENT)

    async def flush(self, domain: str, timeout_s: float) -> bool:
        self._world.act(f"flush {domain}")
        self._world.flushed.append(domain)
        return True

    async def destroy(self, domain: str) -> None:
        self._world.act(f"destroy {domain}")
        self._world.domains.pop(domain, None)

    async def marked(self) -> list[Found]:
        found = [
            Found("domain", d, parse_mark(self._world.marks[d], self._instance) or "")
            for d in self._world.domains
        ]
        return [f for f in found if f.sandbox_id]

    def on_change(self, hint: Callable[[str], None]) -> None:
        self.hint = hint


class FakeNetwork:
    def __init__(self, world: World, instance: str) -> None:
        self._world, self._instance = world, instance

    async def make_tap(self, plan: NetworkPlan, mark: str) -> None:
        self._world.act(f"make tap {plan.lease.tap}")
        self._world.taps[plan.lease.tap] = mark

    async def remove_tap(self, tap: str, mark: str) -> None:
        self._world.act(f"remove tap {tap}")
        self._world.taps.pop(tap, None)

    async def load_rules(self, plan: NetworkPlan, mark: str) -> None:
        self._world.act(f"load rules {plan.lease.tap}")
        self._world.tables[plan.lease.tap] = mark

    async def remove_rules(self, tap: str) -> None:
        self._world.act(f"remove rules {tap}")
        self._world.tables.pop(tap, None)

    async def taken(self) -> Taken:
        return Taken(frozenset({"lo", *self._world.taps}))

    async def own_networks(self) -> tuple[str, ...]:
        return ("192.0.2.0/24",)

    async def resolve(self, host: str) -> str:
        return "198.51.100.7"

    async def marked(self) -> list[Found]:
        both = (("tap", self._world.taps), ("firewall", self._world.tables))
        found = [
            Found(kind, n, parse_mark(m, self._instance) or "")
            for kind, all_ in both
            for n, m in all_.items()
        ]
        return [f for f in found if f.sandbox_id]


class FakeDisks:
    def __init__(self, world: World) -> None:
        self._world = world

    async def create_overlay(self, disk: Disk) -> None:
        self._world.act(f"create overlay {disk.path}")
        self._world.files.add(disk.path)

    async def write_launch_files(
        self,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> None:
        self._world.act("write launch files")
        self._world.files.add(plan.disk("seed").path)
        self._world.seeds[plan.sandbox_id] = (environment, secrets)
        self._world.reports[plan.disk("status").path] = GuestReport()

    async def remove(self, path: str) -> None:
        self._world.act(f"remove {path}")
        self._world.files.discard(path)

    async def report(self, path: str) -> GuestReport:
        return self.report_now(path)

    def report_now(self, path: str) -> GuestReport:
        return self._world.reports.get(path, GuestReport())

    async def console_tail(self, path: str, size: int = 2000) -> str:
        return "last words"

    async def bound_console(self, path: str) -> None:
        return

    async def supervisor_disk(self, program: Path) -> Path:
        return Path("/supervisor.img")

    async def extension_directory(self, sandbox_id: str, name: str) -> Path:
        return Path("/nowhere") / sandbox_id / name


class FakeImages:
    def __init__(self, world: World) -> None:
        self._world = world

    async def prepare(self, reference: str, progress: ProgressSink) -> BaseDisk:
        self._world.act(f"prepare {reference}")
        progress("CacheHit", reference)
        return BaseDisk("/base.ext4", "sha256:" + "0" * 64)


class FakeRecords:
    """Records as JSON texts, so that what cannot be stored is noticed."""

    def __init__(
        self, world: World, checkpoint: Callable[[str], Awaitable[None]]
    ) -> None:
        self._world, self._checkpoint = world, checkpoint

    async def create(self, record: SandboxRecord, token: SecretStr | None) -> None:
        await self._checkpoint("record:before-create")
        if record.id in self._world.records:
            raise AlreadyExists(record.id)
        self._world.records[record.id] = record.model_dump_json()
        if token is not None:
            self._world.tokens[record.id] = token
        await self._checkpoint("record:after-create")

    async def save(self, record: SandboxRecord) -> None:
        await self._checkpoint("record:before-save")
        self._world.act("save record")
        self._world.records[record.id] = record.model_dump_json()
        await self._checkpoint("record:after-save")

    async def load_all(self) -> list[SandboxRecord]:
        return [
            SandboxRecord.model_validate_json(text)
            for text in self._world.records.values()
        ]

    async def token(self, sandbox_id: str) -> SecretStr | None:
        return self._world.tokens.get(sandbox_id)

    async def remove(self, sandbox_id: str) -> None:
        await self._checkpoint("record:before-remove")
        self._world.act("remove record")
        self._world.records.pop(sandbox_id, None)
        self._world.tokens.pop(sandbox_id, None)
        self._world.journals.pop(sandbox_id, None)
        await self._checkpoint("record:after-remove")


class FakeJournal:
    def __init__(self, world: World, sandbox_id: str) -> None:
        self._world, self._id = world, sandbox_id

    def read(self) -> list[Mapping[str, Any]]:
        return [json.loads(line) for line in self._world.journals.get(self._id, [])]

    async def append(self, entry: Mapping[str, Any]) -> None:
        self._world.act("append to journal")
        self._world.journals.setdefault(self._id, []).append(json.dumps(entry))

    async def rewrite(self, entries: list[Mapping[str, Any]]) -> None:
        self._world.act("rewrite journal")
        self._world.journals[self._id] = [json.dumps(entry) for entry in entries]


class FakeAccelerator:
    async def chosen(self) -> Accelerator:
        return "tcg"

    def note(self) -> str:
        return ""
