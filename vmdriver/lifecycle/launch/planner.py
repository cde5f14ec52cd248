"""From a record, the host's facts and what extensions asked, to the frozen launch plan.
Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmdriver.errors import Refused
from vmdriver.lifecycle.extending.draft import PlanDraft
from vmdriver.lifecycle.launch.egress import addressed, reaching, readdressed
from vmdriver.lifecycle.launch.environment import (
    HOST_ALIASES,
    check_added,
    check_passable,
    environment,
    guest_endpoint,
    hostname,
)
from vmdriver.lifecycle.launch.throttles import throttled
from vmdriver.lifecycle.launch.translation import bounded
from vmdriver.lifecycle.launch.walled import walled
from vmdriver.lifecycle.ports.paths import BootChoice, SandboxPaths
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model import ids
from vmdriver.model.devices import PassedFunction
from vmdriver.model.host_mount import HostMount
from vmdriver.model.image import ImageConfig
from vmdriver.model.ipv6 import WayToIpv6
from vmdriver.model.plan import (
    Accelerator,
    Disk,
    DropIn,
    LaunchPlan,
    Lease,
    MachineUser,
    MountedVolume,
    NetworkPlan,
    Processor,
)
from vmdriver.model.spec import Resources, SandboxSpec
from vmdriver.model.wall import WallPart

FEATURES = frozenset(
    {
        *("external-kernel-image", "guest-init-dropins"),
        *("tap-networking", "pci-passthrough"),
    }
)
"""Features that an extension may require: all that upstream knows. Which devices are passed, the
request says.
"""
OWN_USER: WallPart = "uid"
_TEMPLATE_SEED_BYTES = 512 * 1024
"""The disk has 1 MiB; tar's own blocks, TLS files and the token need some of it."""
KERNEL_ARGUMENTS = "console=ttyS0 quiet panic=-1 no_timer_check rdinit=/init"
"""panic=-1: a panic reboots at once, which QEMU turns into an end; the console is ttyS0
on x86. no_timer_check: without KVM, on a busy host, the kernel finds that the timer does
not tick while it waits for ten ticks, and panics ("IO-APIC + timer doesn't work").
"""


@dataclass(frozen=True)
class HostFacts:
    """What was found out for this launch."""

    accelerator: Accelerator
    boot: BootChoice
    base_disk: str
    layers: tuple[str, ...]
    """The root disk's qcow2 layers on it, bottom first."""
    image_digest: str
    image_config: ImageConfig
    supervisor_disk: str
    paths: SandboxPaths
    lease: Lease
    own_networks: tuple[str, ...]
    gateway_address: str | None
    """IPv4 address of a gateway elsewhere; None when it is on this host's loopback."""
    has_token: bool
    processor: Processor | None = None
    """The new guest's."""
    passed: tuple[PassedFunction, ...] = ()
    """PCI functions of the host's that the machine is to have."""
    volumes: tuple[tuple[MountedVolume, Disk], ...] = ()
    host_mounts: tuple[HostMount, ...] = ()
    ipv6: WayToIpv6 | None = None
    """None: it was not asked for."""


def size_of(resources: Resources, settings: Settings) -> tuple[int, int, int | None]:
    """vCPUs, memory in MiB, and CPU quota in thousandths (None: no limit below the
    vCPUs).
    """
    millis = resources.cpu_millis
    vcpus = settings.vcpus if millis is None else -(-millis // 1000)
    quota = millis if millis is not None and millis % 1000 else None
    return vcpus, resources.memory_mib or settings.memory_mib, quota


def disk_mib(spec: SandboxSpec, settings: Settings) -> int:
    """Size of the root disk, unless what it stands on is larger."""
    return int(spec.driver_config.get("disk_mib", settings.disk_mib))


def below(layers: tuple[str, ...], base: str) -> tuple[str, ...]:
    """What the topmost layer stands on, nearest first."""
    return (*reversed(layers[:-1]), base)


def files_of(plan: LaunchPlan) -> tuple[str, ...]:
    """Every file that a machine of this plan reads and that must stay as it is."""
    root = plan.disk("root")
    supervisor = plan.disk("supervisor").path
    volumes = (plan.disk(volume.role).path for volume in plan.volumes)
    return (
        *(plan.kernel, plan.initramfs, supervisor),
        *(root.path, *root.backing, *volumes),
    )


def with_lease(plan: LaunchPlan, lease: Lease) -> LaunchPlan:
    """The same machine at another address. What it knows the host as stays what it is."""
    within = None if plan.network.namespace is None else lease.tap
    update = {"lease": lease, "namespace": within}
    network = readdressed(plan.network.model_copy(update=update))
    return plan.model_copy(update={"network": network})


def with_user(plan: LaunchPlan, user: MachineUser) -> LaunchPlan:
    """The same machine as another host user."""
    wall = tuple(dict.fromkeys((*plan.wall, OWN_USER)))
    return plan.model_copy(update={"user": user, "wall": wall})


def as_unowned(
    plan: LaunchPlan, instance: str, owner: str, directory: str
) -> LaunchPlan:
    """The same machine under an owner that is no sandbox, its small files in `directory`."""
    disks = tuple(
        disk
        if disk.role in {"root", "supervisor"}
        else disk.model_copy(update={"path": f"{directory}/{disk.role}.img"})
        for disk in plan.disks
    )
    return plan.model_copy(
        update={
            "sandbox_id": owner,
            "domain": ids.domain_name(instance, owner),
            "domain_uuid": ids.domain_uuid(instance, owner),
            "disks": disks,
            "console": f"{directory}/console.log",
        }
    )


def fits_template_seed(plan: LaunchPlan) -> bool:
    """Whether what the guest is given fits on the seed disk that a template's guest knows."""
    size = sum(len(d.contents.encode()) + 1024 for d in plan.drop_ins)
    size += sum(len(k) + len(v.encode()) for k, v in plan.environment.items())
    return size < _TEMPLATE_SEED_BYTES


def on_layers(plan: LaunchPlan, layers: tuple[str, ...], base: str) -> LaunchPlan:
    """The same machine on other layers of its root disk."""
    root = plan.disk("root").model_copy(
        update={"path": layers[-1], "backing": below(layers, base)}
    )
    rest = (disk for disk in plan.disks if disk.role != "root")
    return plan.model_copy(update={"disks": (root, *rest)})


def limited(plan: LaunchPlan, spec: SandboxSpec, settings: Settings) -> LaunchPlan:
    """The same machine with the limits and lists of now, whatever it had before."""
    return reaching(throttled(plan, spec, settings), spec, settings)


def _disks(facts: HostFacts, size_mib: int) -> tuple[Disk, ...]:
    paths = facts.paths
    return (
        Disk(
            role="root",
            path=facts.layers[-1],
            format="qcow2",
            read_only=False,
            backing=below(facts.layers, facts.base_disk),
            size_mib=size_mib,
        ),
        Disk(role="seed", path=paths.seed, format="raw", read_only=True),
        Disk(role="status", path=paths.status, format="raw", read_only=False),
        Disk(
            role="supervisor", path=facts.supervisor_disk, format="raw", read_only=True
        ),
        *(disk for _, disk in facts.volumes),
    )


def _network(facts: HostFacts, settings: Settings) -> NetworkPlan:
    ipv6, lack = addressed(facts.lease.index, facts.ipv6, settings)
    return NetworkPlan(
        lease=facts.lease,
        gateway_port=guest_endpoint(settings.endpoint).port,
        gateway_address=facts.gateway_address,
        dns=settings.dns,
        search=settings.search,
        egress=settings.egress,
        host_access=settings.host_access,
        host_alias=settings.host_alias,
        pool=settings.address_pool,
        denied_networks=facts.own_networks,
        ipv6=ipv6,
        no_ipv6=lack,
    )


def _check_features(draft: PlanDraft) -> tuple[str, ...]:
    wanted = draft.collected("feature")
    for feature, (_, extension) in wanted.items():
        if feature not in FEATURES:
            raise Refused(
                f"extension {extension!r} requires {feature!r}, which this driver "
                "does not have",
                reason="FeatureMissing",
                resolution=f"it has {', '.join(sorted(FEATURES))}",
            )
    return tuple(sorted(wanted))


def _environment(
    spec: SandboxSpec, settings: Settings, facts: HostFacts
) -> dict[str, str]:
    image = facts.image_config.environment
    found = environment(spec, settings, has_token=facts.has_token, image=image)
    check_passable(found)
    return found


def with_added(
    environment: Mapping[str, str], added: Mapping[str, tuple[str, str]]
) -> dict[str, str]:
    """The environment with what extensions have added: values by name, each with the extension.
    Refused when it becomes too large.
    """
    merged = {**environment, **{name: value for name, (value, _) in added.items()}}
    check_added(merged, {name: extension for name, (_, extension) in added.items()})
    return merged


def check_machine(draft: PlanDraft, settings: Settings) -> None:
    """Refused when an extension asks for a larger machine than the operator allows."""
    for name, most in (
        ("vcpus", settings.max_vcpus),
        ("memory_mib", settings.max_memory_mib),
    ):
        wanted = draft.value(name, 0)
        if wanted > most:
            raise Refused(
                f"extension {draft.asker(name)!r}: {name} {wanted} is above the "
                f"operator's maximum {most}",
                reason="ExtensionRefused",
            )


def _hosts(settings: Settings, facts: HostFacts) -> tuple[tuple[str, str], ...]:
    endpoint = guest_endpoint(settings.endpoint)
    found = [(settings.host_alias, name) for name in HOST_ALIASES]
    if facts.gateway_address and facts.gateway_address != endpoint.host:
        found.append((facts.gateway_address, endpoint.host))
    return tuple(found)


def _drop_ins(draft: PlanDraft) -> tuple[DropIn, ...]:
    found = sorted(draft.collected("drop_in").items())
    return tuple(
        DropIn(name=name, contents=contents, extension=extension)
        for name, (contents, extension) in found
    )


def resolve(
    spec: SandboxSpec, settings: Settings, facts: HostFacts, draft: PlanDraft
) -> LaunchPlan:
    """Freeze the plan. Raises Refused when what extensions asked for cannot be had."""
    check_machine(draft, settings)
    vcpus, memory_mib, quota = size_of(spec.resources, settings)
    kernel = draft.value("kernel", facts.boot.kernel)
    added = draft.collected("env")
    plan = LaunchPlan(
        sandbox_id=spec.id,
        domain=ids.domain_name(settings.instance, spec.id),
        domain_uuid=ids.domain_uuid(settings.instance, spec.id),
        accelerator=facts.accelerator,
        vcpus=draft.value("vcpus", vcpus),
        cpu_quota_millis=None if draft.value("vcpus", vcpus) != vcpus else quota,
        memory_mib=draft.value("memory_mib", memory_mib),
        kernel=kernel,
        initramfs=draft.value("initramfs", facts.boot.initramfs),
        kernel_profile=draft.value("kernel_profile", None),
        kernel_arguments=KERNEL_ARGUMENTS,
        boot_digest=facts.boot.digest if kernel == facts.boot.kernel else "external",
        image=spec.image,
        image_digest=facts.image_digest,
        image_config=facts.image_config,
        disks=_disks(facts, disk_mib(spec, settings)),
        volumes=tuple(volume for volume, _ in facts.volumes),
        host_mounts=facts.host_mounts,
        console=facts.paths.console,
        network=_network(facts, settings),
        environment=with_added(_environment(spec, settings, facts), added),
        environment_by={name: extension for name, (_, extension) in added.items()},
        drop_ins=_drop_ins(draft),
        drop_in_environment={
            n: v for n, (v, _) in added.items() if n.startswith("OPENSHELL_VM_DATA_")
        },
        devices=tuple(f.address for f in facts.passed if f.given),
        passed=facts.passed,
        required_features=_check_features(draft),
        hostname=hostname(spec.name, spec.id),
        hosts=_hosts(settings, facts),
        sandbox_uid=settings.sandbox_uid,
        sandbox_gid=settings.sandbox_gid,
        pids_max=settings.pids_max,
        operator_exec=settings.operator_exec,
        processor=facts.processor,
    )
    return bounded(walled(limited(plan, spec, settings), settings))
