"""The launch plan: everything that decides what a machine will be, as one frozen,
serialisable value.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import Field

from vmdriver.model.devices import PassedFunction
from vmdriver.model.host_mount import HostMount
from vmdriver.model.image import ImageConfig
from vmdriver.model.ipv6 import Ipv6
from vmdriver.model.spec import Frozen
from vmdriver.model.volume import volume_id
from vmdriver.model.wall import WallPart

Egress = Literal["open", "private-denied", "none"]
HostAccess = Literal["gateway", "all"] | tuple[int, ...]
"""TCP ports of the host's loopback, beside the gateway's."""
Accelerator = Literal["kvm", "tcg"]
VolumeRole = Literal[
    "volume0",
    "volume1",
    "volume2",
    "volume3",
    "volume4",
    "volume5",
    "volume6",
    "volume7",
]
DiskRole = Literal["root", "seed", "status", "supervisor"] | VolumeRole
VOLUME_ROLES: tuple[VolumeRole, ...] = get_args(VolumeRole)


class Lease(Frozen):
    """An address lease: one /30 of the pool, with the names that go with it. Held from
    create to delete.
    """

    index: int
    """Number of the /30 block in the pool."""
    host_ip: str
    guest_ip: str
    prefix_length: int = 30
    mac: str
    tap: str

    @property
    def uplink_ip(self) -> str:
        """The block's last address: what the host is, seen from a machine's network namespace."""
        return str(ipaddress.IPv4Address(self.host_ip) + 2)


def outer_tap(tap: str) -> str:
    """What a tap is called that is still to be moved into the namespace of that name: the host's
    end of the way in has that name.

    >>> outer_tap("vmd0123456789ab")
    'vmt0123456789ab'
    """
    return f"vmt{tap[3:]}"


class NetworkPlan(Frozen):
    """The sandbox's network: all of it or none."""

    lease: Lease
    gateway_port: int
    gateway_address: str | None = None
    """IPv4 address of a gateway elsewhere; None: it is on this host's loopback."""
    dns: tuple[str, ...] = ()
    """The guest's name servers. `host_alias` among them: the driver asks the host's own for it."""
    search: tuple[str, ...] = ()
    """Domains that the guest tries for short names."""
    egress: Egress
    egress_allow: tuple[str, ...] = ()
    """Networks that are reached beside that."""
    egress_deny: tuple[str, ...] = ()
    """Networks that are not, whatever else is said."""
    egress_only: tuple[str, ...] | None = None
    """All others are not, as the request wants it. None: it wants nothing of the kind."""
    host_access: HostAccess = "gateway"
    """Which of the host's services are reached at `host_address`."""
    host_alias: str | None = None
    """What the guest knows the host as. None: a plan from before there was an alias."""
    pool: str
    """The whole pool, so that sandboxes can be kept from each other."""
    denied_networks: tuple[str, ...] = ()
    """The host's own networks, denied by egress "private-denied"."""
    namespace: str | None = None
    """Name of the network namespace that tap and QEMU are in. None: the host's own, as of a plan
    from before machines had one.
    """
    moved: bool = False
    """The tap is made outside and moved into the namespace once QEMU, which stays outside, has it
    open: libvirt is a daemon, and begins QEMU where it is itself.
    """
    max_connections: int | None = None
    """Most connections at a time. None: as many as the host can follow."""
    mbit_s: int | None = None
    """Most Mbit a second, each way. None: no limit."""
    ipv6: Ipv6 | None = None
    """None: the guest has none, and nothing of it passes."""
    no_ipv6: str = ""
    """Why there is none although the operator wants it."""

    @property
    def opened_tap(self) -> str:
        """The tap's name when QEMU opens it."""
        return outer_tap(self.lease.tap) if self.moved else self.lease.tap

    @property
    def host_address(self) -> str:
        """Where the guest finds services of the host's loopback."""
        return self.host_alias or self.lease.host_ip

    @property
    def host_ports(self) -> tuple[int, ...]:
        """The ports that are reached there, sorted. With host_access "all" every one is."""
        named = () if isinstance(self.host_access, str) else self.host_access
        gateway = () if self.gateway_address else (self.gateway_port,)
        return tuple(sorted({*named, *gateway}))

    @property
    def asks_host(self) -> bool:
        """Whether the guest asks for names at `host_alias`."""
        return self.host_alias in self.dns

    @property
    def servers_elsewhere(self) -> tuple[str, ...]:
        """Name servers that the guest asks itself."""
        return tuple(server for server in self.dns if server != self.host_alias)

    @property
    def guest_interface(self) -> str:
        """Address with prefix length, as `ip addr add` takes it."""
        return f"{self.lease.guest_ip}/{self.lease.prefix_length}"


class Disk(Frozen):
    """A file that the machine sees as a virtio block device; the guest finds it by
    `role`, its serial.
    """

    role: DiskRole
    path: str
    format: Literal["raw", "qcow2"]
    read_only: bool
    backing: tuple[str, ...] = ()
    """What is below a qcow2 layer: other layers, nearest first, and at the end the raw base."""
    size_mib: int = 0
    """Least size of a layer that is made; never less than what it stands on. Of a volume: its own.
    """


class MountedVolume(Frozen):
    """A volume that the machine has: where, and which of its disks it is."""

    role: VolumeRole
    workspace: str
    name: str
    mount: str
    may_be_made: bool = False
    """The request says how large, where it is not there."""

    @property
    def id(self) -> str:
        """The volume's."""
        return volume_id(self.workspace, self.name)


class DropIn(Frozen):
    """A program that runs in the guest as root before the supervisor; names sort the
    order.
    """

    name: str
    contents: str
    extension: str


class MachineUser(Frozen):
    """As whom a machine's QEMU runs."""

    uid: int
    """This machine's alone, as long as a file of its is left."""
    gid: int
    """The group of everything that machines may only read. None of their own files gives it
    a right.
    """


class Processor(Frozen):
    """What a guest finds as its processor, as far as it may not change under kept memory."""

    model: str
    """For people, too: vendor, numbers and name; under TCG what QEMU's own is most like."""
    microcode: str = ""
    flags: tuple[str, ...] = ()
    """What it can do, sorted."""


class LaunchPlan(Frozen):
    """A resolved launch. Printed by `vmdriver plan`, stored in the record, input of the
    golden tests.
    """

    schema_version: Literal[1] = 1
    sandbox_id: str
    domain: str
    domain_uuid: str
    accelerator: Accelerator
    vcpus: int
    cpu_quota_millis: int | None = None
    """Bandwidth limit in thousandths of a CPU; None: as many as there are vCPUs."""
    memory_mib: int
    kernel: str
    initramfs: str
    kernel_profile: str | None = None
    kernel_arguments: str
    boot_digest: str
    """Which boot files these are; "external" for a kernel that an extension brought."""
    image: str
    image_digest: str
    image_config: ImageConfig = ImageConfig()
    disks: tuple[Disk, ...]
    console: str
    network: NetworkPlan
    environment: Mapping[str, str] = Field(default_factory=dict)
    """The supervisor's whole environment. No secret is in it: those are files."""
    environment_by: Mapping[str, str] = Field(default_factory=dict)
    """Names in it that extensions asked for, to the extension."""
    drop_ins: tuple[DropIn, ...] = ()
    drop_in_environment: Mapping[str, str] = Field(default_factory=dict)
    devices: tuple[str, ...] = ()
    """PCI addresses (DDDD:BB:DD.F) to pass through."""
    passed: tuple[PassedFunction, ...] = ()
    """These and whatever goes along with them: all of their IOMMU groups."""
    volumes: tuple[MountedVolume, ...] = ()
    """Disks that outlive the sandbox."""
    host_mounts: tuple[HostMount, ...] = ()
    """Folders of the host's."""
    required_features: tuple[str, ...] = ()
    hostname: str
    hosts: tuple[tuple[str, str], ...] = ()
    """Lines of the guest's /etc/hosts: address and name."""
    sandbox_uid: int = 10001
    sandbox_gid: int = 10001
    pids_max: int = 4096
    """Most processes and threads of the workload, supervisor among them."""
    disk_iops: int | None = None
    """Most operations a second of all disks together. None: no limit."""
    disk_mib_s: int | None = None
    """The same in MiB a second."""
    user: MachineUser | None = None
    """None: the operator's `qemu_user`, as of a plan from before machines had one each."""
    wall: tuple[WallPart, ...] = ()
    """The parts of the wall around this machine that are in force."""
    processor: Processor | None = None
    """The guest's when the machine was first begun. None: of a plan from before that was noted."""
    translated_mib: int | None = None
    """Most that QEMU keeps of translated code. None: what it likes, as of a plan from before there
    was a bound, or nothing is translated.
    """
    operator_exec: bool = False
    """The guest's agent runs commands for operators."""
    template: str | None = None
    """Key of the template that the machine goes on from; None: it boots."""

    @property
    def is_tied(self) -> bool:
        """It has volumes, or devices or folders of the host: it goes on from no other machine's
        memory, and none from its.
        """
        return bool(self.devices or self.volumes or self.host_mounts)

    def disk(self, role: DiskRole) -> Disk:
        """The disk of that role."""
        return next(disk for disk in self.disks if disk.role == role)
