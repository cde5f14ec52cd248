"""What a configuration means to each part of the driver."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vmdriver.config.model import Config
from vmdriver.errors import ConfigError
from vmdriver.host import facts
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.lifecycle.ports.settings import Settings, TlsFiles
from vmdriver.oci.policy import ImagePolicy
from vmdriver.service.server import MAX_PATH


def settings_from(config: Config) -> Settings:
    """The core's view of the configuration."""
    tls = None
    if config.guest_tls_ca and config.guest_tls_cert and config.guest_tls_key:
        tls = TlsFiles(config.guest_tls_ca, config.guest_tls_cert, config.guest_tls_key)
    return Settings(
        instance=config.instance,
        state_dir=config.state_dir,
        endpoint=config.openshell_endpoint,
        default_image=config.default_image,
        supervisor=config.supervisor_path,
        supervisor_image=config.supervisor_image,
        tls=tls,
        vcpus=config.vcpus,
        memory_mib=config.mem_mib,
        max_vcpus=max(config.max_vcpus, config.vcpus),
        max_memory_mib=config.max_mem_mib,
        prefetch_default_image=config.prefetch_default_image,
        image_cache_bytes=config.image_cache_mib * 2**20,
        image_cache_s=config.image_cache_days * 86400,
        image_free_floor_bytes=config.image_free_floor_mib * 2**20,
        disk_mib=config.overlay_disk_mib,
        max_disk_mib=max(config.max_disk_mib, config.overlay_disk_mib),
        max_sandboxes=config.max_sandboxes,
        max_committed_memory_mib=config.max_committed_mem_mib,
        stop_grace_s=config.stop_grace_s,
        boot_timeout_s=config.boot_timeout_s,
        crash_restarts=config.crash_restarts,
        egress=config.egress,
        host_access=config.host_access
        if isinstance(config.host_access, str)
        else tuple(config.host_access),
        host_alias=config.host_alias,
        address_pool=config.address_pool,
        dns=facts.name_servers() if config.dns == "auto" else tuple(config.dns),
        sandbox_uid=config.sandbox_uid,
        sandbox_gid=config.sandbox_gid,
        pids_max=config.pids_max,
        guest_log_level=config.log_level,
        telemetry=config.telemetry,
        on_stop=config.on_stop,
        on_restore_failure=config.on_restore_failure,
        freeze_timeout_s=config.freeze_timeout_s,
        restore_timeout_s=config.restore_timeout_s,
        restore_retry_s=config.restore_retry_s,
        max_snapshots=config.max_snapshots,
        max_snapshot_bytes=config.max_snapshot_mib * 2**20,
        max_host_snapshots=config.max_host_snapshots,
        max_host_snapshot_bytes=config.max_host_snapshot_mib * 2**20,
        snapshot_retention_days=config.snapshot_retention_days,
        max_layers=config.max_layers,
        templates_enabled=config.templates_enabled,
        templates_scope=config.templates_scope,
        warm_pool=config.warm_pool,
        warm_pool_memory_mib=config.warm_pool_memory_mib,
    )


def image_policy(config: Config) -> ImagePolicy:
    """What the operator allows of images."""
    return ImagePolicy(
        insecure_registries=tuple(config.insecure_registries),
        allowed_directories=tuple(config.allowed_image_dirs),
        allowed_images=tuple(config.allowed_images),
        local_stores=tuple(config.local_image_stores),
        auth_file=config.image_auth_file,
        registries_conf=config.image_registries_conf,
        signature_policy=config.image_signature_policy,
        certificates=config.image_certs_dir,
        refresh_s=config.image_refresh_s,
        max_content=config.max_image_mib * 2**20,
        max_files=config.max_image_files,
        free_floor=config.image_free_floor_mib * 2**20,
    )


def admin_socket(config: Config) -> Path:
    """Where operators' commands find the driver: in the state directory, if its path is
    short enough for a socket's.
    """
    if config.admin_socket is not None:
        return config.admin_socket
    path = config.state_dir / "run" / "admin.sock"
    if len(os.fsencode(path)) <= MAX_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(config.state_dir)).hexdigest()[:12]
    return Path("/run/vmdriver") / f"admin-{digest}" / "admin.sock"


def qemu_owner(config: Config) -> Ownership:
    """The user that QEMU runs as. ConfigError if the host has none of that name."""
    ids = facts.user_ids(config.qemu_user)
    group = facts.group_id(config.qemu_group)
    if ids is None or group is None:
        raise ConfigError(
            f"qemu_user, qemu_group: this host has no user {config.qemu_user!r} "
            f"or no group {config.qemu_group!r}",
            resolution="run scripts/prepare-host, or name others",
        )
    return Ownership(ids[0], group)
