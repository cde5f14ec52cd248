"""A host in memory: machines, taps, tables, files. It survives a crash of the driver, as the real one does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pydantic import SecretStr

from tests.fakes.hanging import Hanging
from tests.fakes.stored_volumes import StoredVolumes
from vmdriver.errors import HostError
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model.devices import VFIO, PciFunction
from vmdriver.model.image import ImageConfig
from vmdriver.model.ipv6 import WayToIpv6
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import Accelerator, LaunchPlan, Processor


class Crash(BaseException):
    """The driver process is killed here. Not an Exception: nothing of the driver may handle it."""


PROCESSOR = Processor(model="a processor", microcode="0x1", flags=("avx", "sse"))


@dataclass
class World:
    """What is on the host, and on its disk."""

    domains: dict[str, DomainState] = field(default_factory=dict)
    processor: Processor = PROCESSOR
    """What new guests find."""
    marks: dict[str, str] = field(default_factory=dict)
    taps: dict[str, str] = field(default_factory=dict)
    namespaces: dict[str, str] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    ways_out: set[str] = field(default_factory=set)
    """Namespaces from which something may come: whose pair is up."""
    networks: dict[str, str] = field(default_factory=dict)
    """Domain -> the tap that its QEMU has open."""
    ipv6: dict[str, str] = field(default_factory=dict)
    """Tap -> the address that its guest may use."""
    way_to_ipv6: WayToIpv6 = field(default_factory=WayToIpv6)
    """The host's own."""
    beyond_repair: set[str] = field(default_factory=set)
    """Taps whose rules cannot be loaded."""
    files: set[str] = field(default_factory=set)
    reports: dict[str, GuestReport] = field(default_factory=dict)
    journals: dict[str, list[str]] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, SecretStr] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    """Notes of sandboxes that are gone."""
    free_bytes: int = 2**40
    held_mib: int | None = None
    """Of each machine's process; None: it cannot be told."""
    records_there: bool = True
    dead: bool = False
    hanging: Hanging = field(default_factory=Hanging)
    calls: list[str] = field(default_factory=list)
    fail: Callable[[str], bool] = lambda _call: False
    starts: dict[str, int] = field(default_factory=dict)
    seeds: dict[str, tuple[Mapping[str, str], Mapping[str, bytes]]] = field(
        default_factory=dict
    )
    flushed: list[str] = field(default_factory=list)
    frozen: set[str] = field(default_factory=set)
    """Domains whose workload is frozen."""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """Directory -> what is in it: "" while it is made, then the manifest's JSON."""
    memories: dict[str, int] = field(default_factory=dict)
    """Directory -> the guest's tick when it was captured."""
    writing: dict[str, str] = field(default_factory=dict)
    """Domain -> the file to which its QEMU writes its memory while it goes on, protected against its own writing."""
    half_written: set[str] = field(default_factory=set)
    """Such files that are not complete."""
    made_from: dict[str, str] = field(default_factory=dict)
    """Domain -> the directory whose memory it maps."""
    ticks: dict[str, int] = field(default_factory=dict)
    """Domain -> a count that grows whenever its workload runs: no tick may be lived twice."""
    lived: list[tuple[str, int]] = field(default_factory=list)
    backing: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Layer -> the layers below it, nearest first, as its header says."""
    root_layers: dict[str, str] = field(default_factory=dict)
    """Domain -> the layer that QEMU writes to."""
    frozen_layers: set[str] = field(default_factory=set)
    """Nobody writes to them any more, and nobody holds one of them to write to."""
    known_layers: dict[str, str] = field(default_factory=dict)
    """Domain -> the layer that libvirt believes it writes to; what QEMU does may be newer."""
    ended: set[str] = field(default_factory=set)
    """Domains whose QEMU has ended, and libvirt has not noticed yet: `domains` is what it believes."""
    closed: set[str] = field(default_factory=set)
    """Directories that QEMU's user cannot pass."""
    written: dict[str, int] = field(default_factory=dict)
    """Layer -> the tick that the guest wrote to it last."""
    knows_users: bool = True
    """False: a real adapter says whose files are."""
    claimed_users: set[int] = field(default_factory=set)
    """Numbers that have a folder of their own on disk."""
    file_users: dict[str, int] = field(default_factory=dict)
    """File -> the number that it belongs to, or in whose folder it lies."""
    machine_users: dict[str, int] = field(default_factory=dict)
    """Domain -> the number that its QEMU runs as."""
    damaged: set[str] = field(default_factory=set)
    images_in_use: set[str] = field(default_factory=set)
    supervisors_in_use: set[str] = field(default_factory=set)
    volumes: StoredVolumes = field(default_factory=StoredVolumes)
    limits: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    """Domain -> operations and MiB a second of its disks; tap -> Mbit a second."""
    kept_checkpoints: set[str] = field(default_factory=set)
    image_config: ImageConfig = field(default_factory=ImageConfig)
    kept_names: list[str] = field(default_factory=list)
    """Of images that are kept to a digest."""
    gateway_version: str = "0.0.111"
    """"": it does not answer."""
    accelerator: Accelerator = "tcg"
    pci: dict[str, PciFunction] = field(default_factory=dict)
    """Functions by address, as they are now."""
    groups: dict[int, int] = field(default_factory=dict)
    """IOMMU group -> the user whose its node is; root's are not here."""
    group_users: dict[str, set[int]] = field(default_factory=dict)
    """Domain -> groups that its QEMU has open."""
    folders: dict[str, dict[str, str]] = field(default_factory=dict)
    """Directory of sockets -> tag of each folder of the host that is read -> the domain for which, "" while none has
    come yet.
    """
    folder_marks: dict[str, str] = field(default_factory=dict)
    """Directory of sockets -> whose it is."""
    host_paths: set[str] = field(default_factory=set)
    """Folders of the host that are there."""
    has_virtiofsd: bool = True

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
            | {f"namespace {name}" for name in self.namespaces}
            | {f"firewall {name}" for name in self.tables}
            | {f"file {name}" for name in self.files}
            | {f"user {number}" for number in self.claimed_users}
            | {
                f"device {address}"
                for address, function in self.pci.items()
                if VFIO in {function.driver, function.override}
                or function.group in self.groups
            }
            | {f"folders {directory}" for directory in self.folders}
        )

    def running(self) -> set[str]:
        """Domains whose QEMU runs."""
        off = DomainState.OFF
        return {d for d, state in self.domains.items() if state != off} - self.ended

    def running_users(self) -> set[int]:
        """Numbers that a process runs as."""
        return {
            number
            for domain, number in self.machine_users.items()
            if self.domains.get(domain, DomainState.OFF) is not DomainState.OFF
            and domain not in self.ended
        }

    def run_as(self, plan: LaunchPlan) -> None:
        """The plan's QEMU begins. No two run as one user, and each finds what is its own."""
        assert plan.user is not None, "a machine without a user of its own"
        uid = plan.user.uid
        assert uid not in self.running_users(), "two machines run as one user"
        self.machine_users[plan.domain] = uid
        self.volumes.open_as(plan, self.running())
        if not self.knows_users:
            return
        assert uid in self.claimed_users, "a user that is not its own"
        root = plan.disk("root")
        for path in (root.path, plan.disk("seed").path):
            assert self.file_users.get(path, uid) == uid, f"{path} is another's"
        assert self.file_users[root.path] == uid, "it cannot write to its disk"

    def let_in(self, plan: LaunchPlan) -> None:
        """The machine's files are its user's."""
        assert plan.user is not None
        root = plan.disk("root").path
        if root in self.files:
            self.file_users[root] = plan.user.uid
        self.file_users[plan.disk("seed").path] = plan.user.uid

    def qemu_ends(self, domain: str) -> None:
        """It is killed. libvirt learns of it when it looks a second time, or asks it something."""
        if self.domains.get(domain) in {DomainState.RUNNING, DomainState.PAUSED}:
            self.ended.add(domain)
            self.volumes.qemu_ends(domain)
            self.group_users.pop(domain, None)
            self.readers_end(domain)
            self.writing.pop(domain, None)
            self.frozen.discard(domain)
            self.root_layers.pop(domain, None)

    def notice(self, domain: str) -> bool:
        """libvirt learns whether QEMU has ended."""
        if domain not in self.ended:
            return False
        self.ended.discard(domain)
        self.domains[domain] = DomainState.OFF
        return True

    def monitor(self, domain: str) -> None:
        """libvirt says something to QEMU."""
        if self.notice(domain):
            raise HostError("Unable to read from monitor: Connection reset by peer")

    def check_network(self, plan: LaunchPlan) -> None:
        """QEMU opens its tap, in the namespace that it was begun in."""
        tap, within = plan.network.lease.tap, plan.network.namespace
        assert tap in self.taps, "a machine without its tap"
        shut = within is not None and tap not in self.ways_out
        assert shut or tap in self.tables, "a machine without its firewall"
        self.networks[plan.domain] = tap
        inside = {within} - {None}
        assert inside == self.namespaces.keys() & {tap}, "a tap elsewhere"

    def open_devices(self, plan: LaunchPlan) -> None:
        """QEMU opens the groups of its devices: all of each is driven by vfio-pci, and it is its own."""
        wanted = {function.group for function in plan.passed}
        if not wanted:
            return
        assert plan.user is not None
        for function in self.pci.values():
            if function.group in wanted and not function.is_bridge:
                assert function.driver == VFIO, f"{function.address} is not viable"
        for group in wanted:
            assert self.groups.get(group) == plan.user.uid, f"group {group}"
            others = [d for d, gs in self.group_users.items() if group in gs]
            assert others in ([], [plan.domain]), f"group {group} is {others}'s"
        self.group_users[plan.domain] = wanted

    def open_folders(self, plan: LaunchPlan) -> None:
        """QEMU comes to whatever reads its folders: each waits for it, and serves one QEMU alone."""
        for mount in plan.host_mounts:
            directory = mount.socket.rpartition("/")[0]
            waiting = self.folders.get(directory, {}).get(mount.tag)
            assert waiting == "", f"nobody waits at {mount.socket}: {waiting}"
            self.folders[directory][mount.tag] = plan.domain

    def readers_end(self, domain: str) -> None:
        """Its QEMU has gone; what read its folders goes with it."""
        for directory, readers in self.folders.items():
            left = {tag: name for tag, name in readers.items() if name != domain}
            self.folders[directory] = left

    def check_rules(self, domain: str) -> None:
        """An instruction of it runs: behind rules that are its owner's."""
        tap = self.networks.get(domain)  # None: of an earlier driver's
        owner = self.marks[domain]
        assert tap is None or self.tables.get(tap) == owner, "it runs without its rules"

    def open_as_qemu(self, plan: LaunchPlan) -> None:
        """QEMU's user opens every file of the plan."""
        disks = [path for disk in plan.disks for path in (disk.path, *disk.backing)]
        for path in (plan.kernel, plan.initramfs, *disks):
            if not self.closed.isdisjoint(map(str, PurePosixPath(path).parents)):
                raise HostError(f"Could not open '{path}': Permission denied")

    def end_machine(self, domain: str, report: GuestReport | None = None) -> None:
        """The guest powers off, saying `report` first, or the machine crashes."""
        self.domains[domain] = DomainState.OFF
        self.volumes.qemu_ends(domain)
        self.group_users.pop(domain, None)
        self.readers_end(domain)
        if report is not None:
            for path in self.reports:
                if path.startswith(self.marks[domain].rpartition("/")[2]):
                    self.reports[path] = report
