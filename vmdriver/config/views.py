"""What a configuration means to each part of the driver."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from vmdriver.config.driver import DEFAULT_STATE_DIR
from vmdriver.config.gateway import GatewaySettings
from vmdriver.config.guest import PUBLISHED_SUPERVISOR
from vmdriver.config.images import PUBLISHED_IMAGE
from vmdriver.config.model import Config
from vmdriver.config.network import NetworkSettings
from vmdriver.config.sources import process_environment
from vmdriver.errors import ConfigError
from vmdriver.host import facts, resolv_conf
from vmdriver.host.unix_socket import MAX_PATH
from vmdriver.host.users import ids
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.lifecycle.ports.settings import Settings, TlsFiles
from vmdriver.model.ipv6 import private_pool
from vmdriver.model.machine_uids import MachineUids
from vmdriver.oci.policy import ImagePolicy
from vmdriver.oci.proxies import Proxies
from vmdriver.service.tls.keys import Keys

_FIRST_UID, _UIDS = 250_000, 10_000
_CORES = {field.name for field in dataclasses.fields(Settings)}


def settings_from(config: Config) -> Settings:
    """The core's view of the configuration: what has the operators' key there is the operators'
    value, and words and units that are theirs alone are translated.
    """
    gateway, machines, network = config.gateway, config.machines, config.network
    images, guest, memory = config.images, config.guest, config.memory
    same = {k: v for _, section in config for k, v in section if k in _CORES}
    translated = {
        "endpoint": gateway.openshell_endpoint,
        "tls": _tls(gateway),
        "supervisor": guest.supervisor_path,
        "guest_log_level": config.driver.log_level,
        "memory_mib": machines.mem_mib,
        "max_vcpus": max(machines.max_vcpus, machines.vcpus),
        "max_memory_mib": machines.max_mem_mib,
        "max_committed_memory_mib": machines.max_committed_mem_mib,
        "image_cache_bytes": images.image_cache_mib * 2**20,
        "image_cache_s": images.image_cache_days * 86400,
        "image_free_floor_bytes": images.image_free_floor_mib * 2**20,
        "prefetch_default_image": images.prefetch_default_image
        and images.default_image != PUBLISHED_IMAGE,
        "disk_mib": images.overlay_disk_mib,
        "max_disk_mib": max(images.max_disk_mib, images.overlay_disk_mib),
        "max_snapshot_bytes": memory.max_snapshot_mib * 2**20,
        "max_host_snapshot_bytes": memory.max_host_snapshot_mib * 2**20,
        "host_access": network.host_access
        if isinstance(network.host_access, str)
        else tuple(network.host_access),
        "passthrough_devices": tuple(machines.passthrough_devices),
        "host_mounts": tuple(machines.host_mounts),
        "egress_allow": tuple(network.egress_allow),
        "egress_deny": tuple(network.egress_deny),
        "address_pool_ipv6": ipv6_pool(config),
        "namespaces": True,
        "moved_taps": config.driver.connection != "embed",
        **_names(network),
    }
    return Settings(**same | translated)


def ipv6_pool(config: Config) -> str:
    """What sandboxes get their IPv6 addresses of, if they have any."""
    return config.network.address_pool_ipv6 or private_pool(config.driver.instance)


def _names(network: NetworkSettings) -> dict[str, tuple[str, ...]]:
    """Whom guests ask for names, and which domains they try."""
    if isinstance(network.dns, list):
        return {"dns": tuple(network.dns), "search": ()}
    host = resolv_conf.read()
    first = host.for_guests[:1] if host.servers[0] in host.for_guests else ()
    if network.dns == "auto" and first:
        return {"dns": first, "search": ()}
    return {"dns": (network.host_alias,), "search": host.search}


def _tls(gateway: GatewaySettings) -> TlsFiles | None:
    ca, cert, key = gateway.guest_tls_ca, gateway.guest_tls_cert, gateway.guest_tls_key
    return TlsFiles(ca, cert, key) if ca and cert and key else None


def image_policy(config: Config) -> ImagePolicy:
    """What the operator allows of images."""
    images = config.images
    return ImagePolicy(
        insecure_registries=tuple(images.insecure_registries),
        allowed_directories=tuple(images.allowed_image_dirs),
        allowed_images=tuple(images.allowed_images),
        local_stores=tuple(images.local_image_stores),
        auth_file=images.image_auth_file,
        credential_registries=tuple(images.credential_registries),
        registries_conf=images.image_registries_conf,
        signature_policy=images.image_signature_policy,
        certificates=images.image_certs_dir,
        refresh_s=images.image_refresh_s,
        max_content=images.max_image_mib * 2**20,
        max_files=images.max_image_files,
        free_floor=images.image_free_floor_mib * 2**20,
        kept_repositories=tuple(_published(config)),
        proxies=Proxies.of(process_environment()),
    )


def _published(config: Config) -> Iterator[str]:
    """Repositories of what upstream publishes, where the operator has named nothing else."""
    for named, published in (
        (config.images.default_image, PUBLISHED_IMAGE),
        (config.guest.supervisor_image, PUBLISHED_SUPERVISOR),
    ):
        if named == published:
            yield published.rpartition(":")[0]


def admin_socket(config: Config) -> Path:
    """Where operators' commands find the driver: in the state directory, if its path is
    short enough for a socket's.
    """
    if config.driver.admin_socket is not None:
        return config.driver.admin_socket
    path = config.driver.state_dir / "run" / "admin.sock"
    if len(os.fsencode(path)) <= MAX_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(config.driver.state_dir)).hexdigest()[:12]
    return Path("/run/vmdriver") / f"admin-{digest}" / "admin.sock"


def exec_socket(config: Config) -> Path:
    """Where operators' commands in guests are served: beside the admin socket."""
    path = admin_socket(config)
    return path.with_name("exec.sock" if path.name != "exec.sock" else "exec2.sock")


def tls_socket(config: Config) -> Path:
    """Between the TLS listener and the service: beside the admin socket."""
    path = admin_socket(config)
    return path.with_name("tls.sock" if path.name != "tls.sock" else "tls2.sock")


def tls_keys(config: Config) -> Keys | None:
    """None: gateways on other hosts are not served."""
    remote = config.remote
    ca, certificate, key = remote.tls_ca, remote.tls_certificate, remote.tls_key
    if not remote.bind_tls or not ca or not certificate or not key:
        return None
    return Keys(ca, certificate, key, remote.tls_crl)


def machine_uids(config: Config) -> MachineUids:
    """The host users that machines run as. Another state directory than the default one has
    numbers of its own among those that nobody is known to use.
    """
    first, _, last = config.isolation.machine_uids.partition("-")
    if last:
        return MachineUids(int(first), int(last))
    if config.driver.state_dir == DEFAULT_STATE_DIR:
        return MachineUids(_FIRST_UID, _FIRST_UID + _UIDS - 1)
    digest = hashlib.sha256(os.fsencode(config.driver.state_dir)).digest()
    slot = int.from_bytes(digest[:8]) % (len(ids.UNUSED) // _UIDS)
    begin = ids.UNUSED[slot * _UIDS]
    return MachineUids(begin, begin + _UIDS - 1)


def qemu_owner(config: Config) -> Ownership:
    """libvirt's own user, as which machines of earlier drivers run. ConfigError if the host has
    none of that name.
    """
    name, group_name = config.driver.qemu_user, config.driver.qemu_group
    ids, group = facts.user_ids(name), facts.group_id(group_name)
    if ids is None or group is None:
        add_group = f"groupadd --system {group_name}"
        add_user = (
            f"useradd --system --gid {group_name} --no-create-home "
            f"--shell /usr/sbin/nologin {name}"
        )
        missing = ((group, add_group), (ids, add_user))
        commands = " && ".join(words for found, words in missing if found is None)
        raise ConfigError(
            f"qemu_user, qemu_group: this host has no user {name!r} "
            f"or no group {group_name!r}",
            resolution=f"{commands}, or name others",
        )
    return Ownership(ids[0], group)
