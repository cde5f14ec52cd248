"""What the operator decided, as far as the core needs it. vmdriver.config makes it; nothing
here reads a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmdriver.model.host_mount import AllowedFolder
from vmdriver.model.plan import Egress, HostAccess


@dataclass(frozen=True)
class TlsFiles:
    """The guests' client bundle, as paths on this host."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True)
class Settings:
    """One driver instance. Without defaults: those are the operators', and are written once, in
    vmdriver.config.
    """

    instance: str
    state_dir: Path
    endpoint: str
    """The gateway's URL as the operator gave it."""
    default_image: str
    supervisor: Path | None
    supervisor_image: str
    """Where it comes from when there is no `supervisor`."""
    tls: TlsFiles | None
    vcpus: int
    memory_mib: int
    max_vcpus: int
    max_memory_mib: int
    prefetch_default_image: bool
    image_cache_bytes: int
    """0: no limit."""
    image_cache_s: float
    """0: no limit."""
    image_free_floor_bytes: int
    disk_mib: int
    max_disk_mib: int
    max_workspace_volumes_mib: int
    """Most that the volumes of one workspace have together."""
    max_volumes_mib: int
    max_sandboxes: int
    max_committed_memory_mib: int
    stop_grace_s: float
    boot_timeout_s: float
    crash_restarts: int
    egress: Egress
    egress_allow: tuple[str, ...]
    egress_deny: tuple[str, ...]
    egress_ipv6: bool
    host_access: HostAccess
    host_alias: str
    address_pool: str
    address_pool_ipv6: str
    dns: tuple[str, ...]
    """`host_alias`: the host's own resolver, asked by the driver."""
    search: tuple[str, ...]
    """Domains that guests try for short names."""
    dns_without_egress: bool
    namespaces: bool
    """Whether machines are started in network namespaces of their own."""
    moved_taps: bool
    """Whether their taps are moved in once QEMU, which stays outside, has them open."""
    max_connections: int
    sandbox_uid: int
    sandbox_gid: int
    pids_max: int
    max_disk_iops: int
    """0: no limit."""
    max_disk_mib_s: int
    """0: no limit."""
    max_net_mbit_s: int
    """0: no limit."""
    guest_log_level: str
    telemetry: bool
    operator_exec: bool
    on_stop: Literal["shutdown", "suspend"]
    on_restore_failure: Literal["cold-boot", "fail"]
    freeze_timeout_s: float
    restore_timeout_s: float
    restore_retry_s: float
    """How long a restore that something passing stands in the way of is tried again."""
    max_snapshots: int
    max_snapshot_bytes: int
    max_host_snapshots: int
    max_host_snapshot_bytes: int
    live_snapshots: bool
    """Whether the memory of snapshots is written while the machine goes on, where QEMU can."""
    snapshot_retention_days: float
    """0: snapshots stay until they are removed."""
    max_layers: int
    """Longest chain of a root disk's layers."""
    isolation: Literal["strict", "available"]
    passthrough_devices: tuple[str, ...]
    """PCI addresses, as the kernel writes them, that requests may have."""
    host_mounts: tuple[AllowedFolder, ...]
    """Folders of the host that requests may have, and what lies in them."""
    templates_enabled: bool
    templates_scope: Literal["host", "workspace"]
    warm_pool: int
    warm_pool_memory_mib: int
    recheck_s: float = 30.0
    """How often a resting worker looks although nothing told it to. No setting of operators."""
