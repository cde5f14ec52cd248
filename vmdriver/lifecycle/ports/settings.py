"""What the operator decided, as far as the core needs it. vmdriver.config makes it; nothing
here reads a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmdriver.model.plan import Egress, HostAccess


@dataclass(frozen=True)
class TlsFiles:
    """The guests' client bundle, as paths on this host."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True)
class Settings:
    """One driver instance."""

    instance: str
    state_dir: Path
    endpoint: str
    """The gateway's URL as the operator gave it."""
    default_image: str = ""
    supervisor: Path | None = None
    supervisor_image: str = ""
    """Where it comes from when there is no `supervisor`."""
    tls: TlsFiles | None = None
    vcpus: int = 2
    memory_mib: int = 2048
    max_vcpus: int = 64
    max_memory_mib: int = 1024 * 1024
    prefetch_default_image: bool = False
    image_cache_bytes: int = 0
    """0: no limit."""
    image_cache_s: float = 0.0
    """0: no limit."""
    image_free_floor_bytes: int = 0
    disk_mib: int = 4096
    max_disk_mib: int = 65536
    max_sandboxes: int = 1000
    max_committed_memory_mib: int = 1024 * 1024
    stop_grace_s: float = 10.0
    boot_timeout_s: float = 120.0
    crash_restarts: int = 0
    egress: Egress = "private-denied"
    host_access: HostAccess = "gateway"
    host_alias: str = "192.168.127.254"
    address_pool: str = "10.0.128.0/17"
    dns: tuple[str, ...] = ()
    sandbox_uid: int = 10001
    sandbox_gid: int = 10001
    pids_max: int = 4096
    guest_log_level: str = "info"
    telemetry: bool = True
    on_stop: Literal["shutdown", "suspend"] = "shutdown"
    on_restore_failure: Literal["cold-boot", "fail"] = "cold-boot"
    freeze_timeout_s: float = 10.0
    restore_timeout_s: float = 30.0
    restore_retry_s: float = 120.0
    """How long a restore that something passing stands in the way of is tried again."""
    max_snapshots: int = 16
    max_snapshot_bytes: int = 64 * 2**30
    max_host_snapshots: int = 1000
    max_host_snapshot_bytes: int = 512 * 2**30
    snapshot_retention_days: float = 0.0
    """0: snapshots stay until they are removed."""
    max_layers: int = 16
    """Longest chain of a root disk's layers."""
    templates_enabled: bool = False
    templates_scope: Literal["host", "workspace"] = "host"
    warm_pool: int = 0
    warm_pool_memory_mib: int = 1024
    recheck_s: float = 30.0
    """How often a resting worker looks although nothing told it to."""
