"""A host in memory: machines, taps, tables, files. It survives a crash of the driver, as the real one does."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from vmdriver.errors import AlreadyExists, HostError, NotFound, Refused
from vmdriver.lifecycle.image_ports import (
    BaseDisk,
    CachedFile,
    CacheLimits,
    ImageProgress,
    KnownImage,
    ProgressSink,
)
from vmdriver.lifecycle.memory_ports import Captured, SavedMachine, Streamed
from vmdriver.lifecycle.ports import (
    Found,
    GuestReport,
    Taken,
    no_checkpoint,
)
from vmdriver.model.ids import parse_mark
from vmdriver.model.image import ImageConfig
from vmdriver.model.memory_image import FileIdentity, MemoryManifest, Part, Versions
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
    frozen: set[str] = field(default_factory=set)
    """Domains whose workload is frozen."""
    images: dict[str, str] = field(default_factory=dict)
    """Directory -> what is in it: "" while it is made, then the manifest's JSON."""
    memories: dict[str, int] = field(default_factory=dict)
    """Directory -> the guest's tick when it was captured."""
    ticks: dict[str, int] = field(default_factory=dict)
    """Domain -> a count that grows whenever its workload runs: no tick may be lived twice."""
    lived: list[tuple[str, int]] = field(default_factory=list)
    root_layers: dict[str, str] = field(default_factory=dict)
    """Domain -> the layer that it writes to."""
    written: dict[str, int] = field(default_factory=dict)
    """Layer -> the tick that the guest wrote to it last."""
    damaged: set[str] = field(default_factory=set)
    images_in_use: set[str] = field(default_factory=set)
    supervisors_in_use: set[str] = field(default_factory=set)
    kept_images: set[str] = field(default_factory=set)
    image_config: ImageConfig = field(default_factory=ImageConfig)

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
        needed = {plan.disk("root").path}
        if "/template-" not in mark:
            needed.add(plan.disk("seed").path)
        assert needed <= world.files, "a machine without its disks"
        world.marks[plan.domain] = mark
        for half_way in (DomainState.OFF, DomainState.PAUSED):
            world.domains[plan.domain] = half_way
            await self._checkpoint(f"machine:{half_way}")
        world.domains[plan.domain] = DomainState.RUNNING
        world.root_layers[plan.domain] = plan.disk("root").path
        world.ticks[plan.domain] = 0
        world.starts[plan.domain] = world.starts.get(plan.domain, 0) + 1
        nobodys = "/template-" in mark
        world.reports[plan.disk("status").path] = GuestReport(
            "waiting" if nobodys else "started"
        )

    async def observe(self, domain: str) -> DomainState:
        return self._world.domains.get(domain, DomainState.ABSENT)

    async def build(self, accelerator: Accelerator) -> Versions:
        return Versions(hypervisor="7.2", libvirt="9.0", machine="pc-q35-7.2")

    async def remark(self, domain: str, mark: str) -> None:
        self._world.act(f"mark {domain}")
        self._world.marks[domain] = mark

    async def destroy(self, domain: str) -> None:
        self._world.act(f"destroy {domain}")
        self._world.domains.pop(domain, None)
        self._world.frozen.discard(domain)
        self._world.root_layers.pop(domain, None)

    async def marked(self) -> list[Found]:
        for _ in range(50):  # a look at a real host takes time: others go on meanwhile
            await asyncio.sleep(0)
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

    async def remark_tap(self, tap: str, mark: str) -> None:
        self._world.act(f"mark tap {tap}")
        assert tap in self._world.taps
        self._world.taps[tap] = mark

    async def remove_tap(self, tap: str, mark: str) -> None:
        self._world.act(f"remove tap {tap}")
        self._world.taps.pop(tap, None)

    async def reset_connections(self, guest_ip: str) -> None:
        self._world.act(f"reset connections with {guest_ip}")

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


class FakeMemory:
    """Machines that can be paused, and a guest whose workload ticks when it runs."""

    def __init__(
        self, world: World, checkpoint: Callable[[str], Awaitable[None]]
    ) -> None:
        self._world, self._checkpoint = world, checkpoint

    def _there(self, domain: str) -> None:
        if self._world.domains.get(domain) not in {
            DomainState.RUNNING,
            DomainState.PAUSED,
        }:
            raise NotFound(f"no domain {domain}")

    def tick(self, domain: str) -> int:
        """The workload runs for a moment."""
        world = self._world
        assert world.domains[domain] is DomainState.RUNNING
        assert domain not in world.frozen
        world.ticks[domain] += 1
        world.lived.append((domain, world.ticks[domain]))
        world.written[world.root_layers[domain]] = world.ticks[domain]
        return world.ticks[domain]

    async def pause(self, domain: str) -> None:
        self._world.act(f"pause {domain}")
        self._there(domain)
        self._world.domains[domain] = DomainState.PAUSED

    async def go_on(self, domain: str) -> None:
        self._world.act(f"go on {domain}")
        if self._world.domains.get(domain) is DomainState.PAUSED:
            self._world.domains[domain] = DomainState.RUNNING

    async def ask(
        self, domain: str, verb: str, fields: Mapping[str, str], timeout_s: float
    ) -> dict[str, str]:
        world = self._world
        world.act(f"{verb} {domain}")
        self._there(domain)
        assert world.domains[domain] is DomainState.RUNNING, f"{verb} of a paused guest"
        if verb == "flush":
            world.flushed.append(domain)
        elif verb == "freeze":
            world.frozen.add(domain)
            return {"boot_id": "guest-boot"}
        elif verb in {"thaw", "renew"}:
            world.frozen.discard(domain)
        elif verb == "adopt":
            for path in world.reports:
                if path.startswith(world.marks[domain].rpartition("/")[2]):
                    world.reports[path] = GuestReport("started")
        return {}

    async def capture(self, domain: str, memory: str, memory_mib: int) -> Captured:
        world = self._world
        world.act(f"capture {domain}")
        assert world.domains[domain] is DomainState.PAUSED
        nobodys = "/template-" in world.marks[domain]
        assert nobodys or domain in world.frozen, (
            "captured with a workload that would go on at once"
        )
        world.memories[memory.rpartition("/")[0]] = world.ticks[domain]
        await self._checkpoint("capture:half-way")
        return Captured(b"state", "<domain/>", 4096, "pc-q35-7.2", "<cpu/>")

    async def stream(self, domain: str, target: str) -> Streamed:
        captured = await self.capture(domain, target, 0)
        return Streamed(target, captured.domain_xml)

    async def split(self, streamed: Streamed, memory: str, memory_mib: int) -> Captured:
        self._world.act(f"split {streamed.path}")
        return Captured(b"state", "<domain/>", 4096, "pc-q35-7.2", "<cpu/>")

    async def load(
        self, plan: LaunchPlan, mark: str, saved: SavedMachine, scratch: str
    ) -> None:
        world = self._world
        world.act(f"load {plan.domain}")
        assert world.domains.get(plan.domain) in {None, DomainState.OFF}, "two machines"
        assert plan.network.lease.tap in world.tables, "a machine without its firewall"
        root = plan.disk("root")
        tick = world.memories[saved.memory.rpartition("/")[0]]
        below = [world.written.get(layer, 0) for layer in (root.path, *root.backing)]
        assert max(below) <= tick, "a disk that is newer than the memory"
        world.marks[plan.domain] = mark
        world.domains[plan.domain] = DomainState.PAUSED
        await self._checkpoint("load:paused")
        world.root_layers[plan.domain] = root.path
        world.ticks[plan.domain] = tick
        if plan.template is None:
            world.frozen.add(plan.domain)

    async def switch_layer(self, domain: str, layer: str) -> None:
        self._world.act(f"switch {domain} to {layer}")
        assert self._world.domains[domain] is DomainState.PAUSED
        assert layer in self._world.files
        self._world.root_layers[domain] = layer

    async def root_layer(self, domain: str) -> str:
        return self._world.root_layers.get(domain, "")


class FakeMemoryStore:
    def __init__(self, world: World) -> None:
        self._world = world

    async def begin(self, directory: str, needed_bytes: int) -> str:
        self._world.act(f"begin image {directory}")
        self._world.images[directory] = ""
        return f"{directory}/memory"

    async def end(self, directory: str) -> None:
        return

    async def write_parts(self, directory: str, captured: Captured) -> tuple[Part, ...]:
        self._world.act(f"write image {directory}")
        return (Part(name="memory", size=8192, stored=4096, digests=("d",)),)

    async def publish(
        self, directory: str, target: str, manifest: MemoryManifest
    ) -> str:
        world = self._world
        world.act(f"publish {target}")
        world.images.pop(directory)
        world.images[target] = manifest.model_dump_json()
        world.memories[target] = world.memories.pop(directory)
        return _digest(world.images[target])

    async def read(self, directory: str) -> tuple[MemoryManifest, str]:
        text = self._world.images.get(directory)
        if not text:
            raise NotFound(f"no image {directory}")
        return MemoryManifest.model_validate_json(text), _digest(text)

    async def damage(self, directory: str, parts: tuple[Part, ...]) -> list[str]:
        return ["memory has changed"] if directory in self._world.damaged else []

    async def saved(self, directory: str) -> SavedMachine:
        return SavedMachine(b"state", "<domain/>", f"{directory}/memory")

    async def lend(self, directory: str, *, lent: bool) -> None:
        return

    async def identify(self, paths: tuple[str, ...]) -> tuple[FileIdentity, ...]:
        """A file's content is what was written to it last."""
        written = self._world.written
        return tuple(
            FileIdentity(
                path=p, size=1, inode=1, modified_ns=written.get(p, 0), changed_ns=0
            )
            for p in paths
        )

    async def retire(self, directory: str, target: str) -> None:
        self._world.act(f"retire {directory}")
        if directory in self._world.images:
            del self._world.images[directory]
            self._world.images[target] = ""

    async def read_ahead(self, directory: str) -> None:
        return

    async def move(self, directory: str, target: str) -> None:
        self._world.act(f"move {directory}")
        if directory in self._world.images:
            self._world.images[target] = self._world.images.pop(directory)

    async def remove(self, directory: str) -> None:
        self._world.act(f"remove image {directory}")
        self._world.images.pop(directory, None)

    async def listed(self, parent: str) -> list[str]:
        found = [
            d.removeprefix(parent + "/")
            for d in self._world.images
            if d.startswith(parent + "/")
        ]
        return sorted(found)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class FakeDisks:
    def __init__(self, world: World) -> None:
        self._world = world

    async def create_overlay(self, disk: Disk) -> None:
        self._world.act(f"create overlay {disk.path}")
        self._world.files.add(disk.path)

    async def layers(self) -> list[str]:
        for _ in range(50):
            await asyncio.sleep(0)
        return [f for f in self._world.files if f.startswith("layers/")]

    async def merge_layer(self, layer: str, below: str) -> None:
        world = self._world
        world.act(f"merge {layer}")
        assert layer not in world.root_layers.values(), "merged under a running machine"
        world.written[below] = max(
            world.written.get(layer, 0), world.written.get(below, 0)
        )

    async def freeze_layer(self, path: str) -> int:
        self._world.act(f"freeze layer {path}")
        assert path not in self._world.root_layers.values()
        return 4096

    async def flush_status(self, path: str) -> None:
        return

    async def write_resume_files(
        self,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> None:
        self._world.act("write resume files")
        self._world.files.add(plan.disk("seed").path)
        self._world.reports[plan.disk("status").path] = GuestReport("started")

    async def write_barrier_files(self, plan: LaunchPlan) -> None:
        self._world.act("write barrier files")
        self._world.reports[plan.disk("status").path] = GuestReport("waiting")

    async def remove_abandoned(self, parent: str, keep: set[str]) -> None:
        return

    async def take_over_files(
        self,
        waiting: LaunchPlan,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> None:
        self._world.act("take over files")
        self._world.files.add(plan.disk("seed").path)
        self._world.reports.pop(waiting.disk("status").path, None)
        self._world.reports[plan.disk("status").path] = GuestReport()

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

    async def supervisor_disk(self, program: Path, root: Path = Path("/")) -> Path:
        return Path("/supervisor.img")

    async def collect_supervisors(self, in_use: set[str]) -> list[str]:
        self._world.supervisors_in_use = set(in_use)
        return []

    async def extension_directory(self, sandbox_id: str, name: str) -> Path:
        return Path("/nowhere") / sandbox_id / name


class FakeImages:
    def __init__(self, world: World) -> None:
        self._world = world

    def check(self, reference: str) -> None:
        if reference.startswith("forbidden.test/"):
            raise Refused("template.image: not among the images that are allowed")

    async def prepare(
        self, reference: str, owner: str, progress: ProgressSink
    ) -> BaseDisk:
        self._world.act(f"prepare {reference}")
        progress(ImageProgress("CacheHit", reference))
        self._world.kept_images.add(owner)
        return BaseDisk("/base.ext4", "sha256:" + "0" * 64, self._world.image_config)

    def release(self, owner: str) -> None:
        self._world.kept_images.discard(owner)

    async def tree(
        self, reference: str, owner: str, progress: ProgressSink
    ) -> tuple[Path, str]:
        self._world.act(f"unpack {reference}")
        return Path("/tree"), "sha256:" + "1" * 64

    async def known(self) -> list[KnownImage]:
        return []

    async def collect(
        self, in_use: set[str], limits: CacheLimits, *, dry_run: bool = False
    ) -> list[CachedFile]:
        self._world.images_in_use = set(in_use)
        return []


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

    def unreadable(self) -> list[str]:
        return []

    async def token(self, sandbox_id: str) -> SecretStr | None:
        return self._world.tokens.get(sandbox_id)

    async def remove(self, sandbox_id: str) -> None:
        await self._checkpoint("record:before-remove")
        self._world.act("remove record")
        self._world.records.pop(sandbox_id, None)
        for directory in list(self._world.images):
            if directory.startswith(f"{sandbox_id}/"):
                del self._world.images[directory]
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
