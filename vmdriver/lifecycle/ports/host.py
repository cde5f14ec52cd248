"""The outside worlds as the core sees them. Each has an adapter folder and a fake in
tests/fakes.

Unless a method says otherwise: it raises HostError subclasses, every remove is fine
with what is already gone, and a cancelled call has either not begun or finishes before
the cancellation is raised (host.threads.finished).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import SecretStr

from vmdriver.lifecycle.ports.ipv6 import Ipv6Ways
from vmdriver.model.checkpoint import Versions
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import (
    Accelerator,
    Disk,
    LaunchPlan,
    MachineUser,
    NetworkPlan,
    Processor,
)
from vmdriver.model.record import SandboxRecord
from vmdriver.model.set_aside import Salvage
from vmdriver.model.wall import Offer


@dataclass(frozen=True)
class Ownership:
    """A host user, and its group."""

    uid: int
    gid: int


@dataclass(frozen=True)
class GuestReport:
    """A status disk's record. phase: "" (nothing yet), waiting (at a template's barrier),
    started, exited, failed or probed.
    """

    phase: str = ""
    exit_code: int | None = None
    reason: str = ""
    stamps: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A host object that carries our mark. kind: domain, tap, namespace or firewall."""

    kind: str
    name: str
    sandbox_id: str


@dataclass(frozen=True)
class Taken:
    """Interface names and IPv4 addresses in use on the host."""

    names: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()


class Hypervisor(Protocol):
    """Machines."""

    async def start(self, plan: LaunchPlan, mark: str) -> None:
        """Define the plan's domain and start it. Unavailable when there is no
        connection.
        """

    async def observe(self, domain: str) -> DomainState:
        """The domain's state now."""

    async def destroy(self, domain: str) -> None:
        """End the machine at once and forget the domain: by SIGKILL where it does not react.
        Nothing that was asked of it before goes on afterwards. TimedOut.
        """

    def abandon(self, domain: str) -> None:
        """Whoever waits for the machine or its guest gets TimedOut now. What was asked may still
        happen, until the machine is destroyed.
        """

    async def marked(self) -> list[Found]:
        """Every domain with this instance's mark."""

    async def versions(self, accelerator: Accelerator) -> Versions:
        """What new machines are made by."""

    async def processor(self, accelerator: Accelerator) -> Processor:
        """What the guest of a new machine finds as its processor."""

    async def reassign(self, domain: str, mark: str) -> None:
        """Give a domain another mark: it belongs to somebody else from now on."""

    async def limit(self, plan: LaunchPlan) -> None:
        """Have a machine that is there already limited as the plan says."""

    async def held_mib(self, domain: str) -> int | None:
        """MiB of the host's memory that the machine's process has, with its share of what several
        have, rounded up. None: that cannot be told.
        """

    async def bound_logs(self) -> None:
        """Keep what it writes of machines' own words in bounds."""

    def on_change(self, hint: Callable[[str], None]) -> None:
        """Call `hint` with a domain's name, in the loop's thread, when it may have
        changed.
        """


class AcceleratorChoice(Protocol):
    """Which accelerator new machines use."""

    async def chosen(self) -> Accelerator:
        """Waits for the probe where one is under way."""


class WallSource(Protocol):
    """Makes parts of the wall around machines."""

    async def offer(self, plan: LaunchPlan | None) -> Offer:
        """What that plan's machine would get; None: any. Asked before each start; HostError."""


class Network(Ipv6Ways, Protocol):
    """Taps, machines' network namespaces and firewall tables."""

    async def make_tap(self, plan: NetworkPlan, mark: str) -> None:
        """Make the tap, in the plan's namespace, which is made for it, or in the host's; mark both,
        give it the host's address and bring it up. An own leftover is replaced. Out of a namespace
        nothing comes before its rules are loaded.
        """

    async def reassign_tap(self, tap: str, mark: str) -> None:
        """Give a tap and its namespace another mark: they belong to somebody else from now on."""

    async def limit_rate(self, plan: NetworkPlan) -> None:
        """Have what goes through a tap that is there limited as the plan says. NetworkError, also
        where the kernel cannot.
        """

    async def remove_tap(self, tap: str, mark: str, *, made: bool = False) -> None:
        """Remove it and its namespace, as far as they are there and carry that mark. `made`: they
        were made under these names, and go unless they carry another sandbox's mark. NotOursError
        for what is left alone.
        """

    async def reset_connections(self, guest_ip: str) -> None:
        """Have this host's own TCP connections with a guest that is gone end at once."""

    async def load_rules(self, plan: NetworkPlan, mark: str) -> None:
        """Load the sandbox's tables, replacing older ones: in its namespace, then in the host's,
        each in one transaction; then have the way out of its namespace up.
        """

    async def remove_rules(self, tap: str) -> None:
        """Remove the host's table. What is in a namespace goes with it."""

    async def taken(self) -> Taken:
        """What other interfaces of the host have taken, another driver's taps among them."""

    async def own_networks(self) -> tuple[str, ...]:
        """The host's directly connected IPv4 networks, without our taps'."""

    async def resolve(self, host: str) -> str:
        """An IPv4 address of that name. Unavailable if there is none."""

    async def marked(self) -> list[Found]:
        """Every tap, namespace and table with this instance's mark. The host's end of the way into
        a namespace counts as the tap.
        """


class Disks(Protocol):
    """A sandbox's files."""

    async def create_overlay(self, disk: Disk, user: MachineUser | None) -> None:
        """Make the root disk's layer, that machine's to write to; one that a machine may have
        written to is kept instead. Exhausted, StorageError.
        """

    async def is_whole(self, layer: str, below: str) -> bool:
        """Whether that layer was finished and stands on the other. StorageError when it cannot
        be read.
        """

    async def sync_layer(self, path: str) -> None:
        """Make a new layer durable, its name too. StorageError."""

    async def layers(self, sandbox_id: str = "") -> list[str]:
        """Paths of all layers and copies of volumes, or of those made for that sandbox."""

    async def own_layers(self, sandbox_id: str) -> Mapping[str, tuple[str, ...]]:
        """Layers that were made for that sandbox, oldest first, each with the layers below it,
        nearest first. StorageError where that cannot be told.
        """

    async def check_layers(self, disk: Disk) -> None:
        """See that the layers of a root disk are still such as this driver makes them, each on the
        next. StorageError: nothing may open them.
        """

    async def merge_layer(self, disk: Disk, user: MachineUser | None) -> None:
        """Write a root disk's topmost layer into the one below it, which is that machine's to write
        to from then on. No machine uses them. May be repeated.
        """

    async def free_bytes(self, path: str) -> int:
        """Free space for the files beside that one, as QEMU's user may use it."""

    async def freeze_layer(self, path: str, user: MachineUser | None) -> int:
        """Nobody is to write to it any more, and only that machine to read it; the bytes that it
        occupies. StorageError where a machine can still write to it, as it has it open.
        """

    async def share_layer(self, path: str, user: MachineUser | None) -> None:
        """Nobody is to write to it any more, and every machine to read it. `user`: of the one
        that wrote it.
        """

    async def flush_status(self, path: str) -> None:
        """Make the status disk's content durable."""

    async def remove(self, path: str) -> None:
        """Remove one file."""

    async def report(self, path: str) -> GuestReport:
        """The guest's last report."""

    def report_now(self, path: str) -> GuestReport:
        """The same, at once, for polling."""

    async def console_tail(self, path: str, size: int = 2000) -> str:
        """End of the console, printable."""

    async def bound_console(self, path: str) -> None:
        """Keep the console's size in bounds."""

    async def extension_directory(self, sandbox_id: str, name: str) -> Path:
        """An extension's private directory, made if absent."""


class LaunchFiles(Protocol):
    """What a machine is given, and what it and its console are written to."""

    async def write(
        self,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> None:
        """Write seed, status disk and console for a launch."""

    async def write_for_resume(
        self,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> None:
        """Write the seed for a machine that has booted already, and have its status disk
        say so.
        """

    async def take_over(
        self,
        waiting: LaunchPlan,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> None:
        """Give a waiting machine's seed, status disk and console the plan's names, and
        write the seed, while the machine has them open.
        """

    async def remove_abandoned(self, parent: str, keep: set[str]) -> None:
        """Remove the directories of waiting machines that neither wait (`keep`) nor have
        become a sandbox's.
        """

    async def write_for_template(self, plan: LaunchPlan) -> None:
        """Write seed, status disk and console for a template."""


class MachineUsers(Protocol):
    """Host users, by number, one for each machine. A number is free when nothing of this host
    belongs to it.
    """

    async def claim(self, number: int) -> bool:
        """Have it belong to one machine, on disk. May be repeated while nothing belongs to it.
        False: a process runs as it, or files of a former machine are left.
        """

    async def is_idle(self, number: int) -> bool:
        """Whether no process runs as it."""

    async def clear(self, number: int, owner: str) -> None:
        """Have nothing belong to it any more, of that owner's files among it: what others need
        stays, and is nobody's. Unavailable while a process runs as it. May be repeated.
        """

    async def collect(self, held: set[int], *, all_known: bool) -> set[int]:
        """Give up claims that nothing belongs to but for those held; all the others that
        something of this driver on disk still belongs to. Not `all_known`: any claim may be held.
        """


class SupervisorDisks(Protocol):
    """Read-only disks with the supervisor that guests run."""

    async def disk(self, program: Path, root: Path = Path("/")) -> Path:
        """A disk with that program, and what it needs of the file system below `root`."""

    async def collect(self, in_use: set[str]) -> list[str]:
        """Remove disks that are not in use; their paths."""


class Records(Protocol):
    """Records on disk."""

    async def create(self, record: SandboxRecord, token: SecretStr | None) -> None:
        """Store a new sandbox. AlreadyExists."""

    async def save(self, record: SandboxRecord) -> None:
        """Replace a record."""

    async def load_all(self) -> list[SandboxRecord]:
        """Every readable record."""

    def unreadable(self) -> Mapping[str, str]:
        """Ids of those that could not be read then, with what is wrong."""

    def all_there(self) -> bool:
        """False where the place of all records was lost: there may be sandboxes, with machines,
        that nobody knows of.
        """

    async def salvage(self, sandbox_id: str) -> Salvage:
        """What can be made out in files of a sandbox that cannot be read."""

    async def give_up(self, record: SandboxRecord) -> None:
        """Put a record in place of what cannot be read."""

    async def token(self, sandbox_id: str) -> SecretStr | None:
        """The sandbox's token."""

    async def remove(self, sandbox_id: str, *, noted: bool) -> None:
        """Forget the sandbox and everything in its directory. `noted`: that it is gone stays known,
        also to the next driver, as far as it can be stored.
        """

    async def deleted(self, for_s: float) -> Mapping[str, float]:
        """Ids of those whose end was noted in the last `for_s` seconds, and how many seconds ago;
        older notes, and those of sandboxes that are there again, are removed. Asked once, before
        anything is removed.
        """

    async def forget_deleted(self, for_s: float) -> None:
        """Remove older notes."""


class Journal(Protocol):
    """A ledger's lines on disk."""

    def read(self) -> list[Mapping[str, Any]]:
        """Every acknowledged line, oldest first."""

    async def append(self, *lines: Mapping[str, Any]) -> None:
        """Add lines; durable when this returns. StorageError: then there is none of them."""

    async def rewrite(self, lines: list[Mapping[str, Any]]) -> None:
        """Replace all lines at once. StorageError: then they are as they were. To have none
        takes no space.
        """


JournalOpener = Callable[[str], Journal]
"""Opens a sandbox's journal by its id."""


class Guard(Protocol):
    """Where a test may stop the world; production uses `no_crash_point`."""

    def __call__(self, crash_point: str) -> Awaitable[None]:
        """Pass a crash point such as "tap:after-intent"."""


async def no_crash_point(crash_point: str) -> None:
    """Nothing happens at crash points outside tests."""
