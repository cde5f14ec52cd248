"""The settings about kept memory: suspended machines, snapshots, templates and their forks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vmdriver.model.spec import Frozen


class MemorySettings(Frozen):
    """How memory is kept and restored, and how much of it is kept."""

    on_restore_failure: Literal["cold-boot", "fail"] = Field(
        "cold-boot",
        description="when kept memory cannot be restored: cold-boot: the disk is booted, and it is "
        "said what was lost; fail: the sandbox fails, and the next start tries again",
    )
    freeze_timeout_s: float = Field(
        10.0, gt=0, le=600, description="time for a guest to freeze its workload"
    )
    restore_timeout_s: float = Field(
        30.0, gt=0, le=600, description="time for a restored guest to answer"
    )
    restore_retry_s: float = Field(
        120.0,
        ge=0,
        le=3600,
        description="how long a restore is tried again when what stands in its way may pass",
    )
    max_snapshots: int = Field(16, ge=0, description="most snapshots of one sandbox")
    max_snapshot_mib: int = Field(
        65536, ge=0, description="most disk space of one sandbox's snapshots, MiB"
    )
    max_host_snapshots: int = Field(1000, ge=0, description="most snapshots in all")
    max_host_snapshot_mib: int = Field(
        524288, ge=0, description="most disk space of all snapshots, MiB"
    )
    live_snapshots: bool = Field(
        False,
        description="the memory of snapshots is written while the machine goes on, where its QEMU "
        "can: it needs the host's vm.unprivileged_userfaultfd = 1",
    )
    snapshot_retention_days: float = Field(
        0.0,
        ge=0,
        description="days of the host's running time after which snapshots are removed; 0: never",
    )
    max_layers: int = Field(
        16, ge=2, le=64, description="longest chain of a root disk's layers"
    )
    templates_enabled: bool = Field(
        True, description="new sandboxes go on from a booted template's memory"
    )
    templates_scope: Literal["host", "workspace"] = Field(
        "host",
        description="who may share a template's memory pages: every sandbox of this host, or "
        "those of one workspace",
    )
    warm_pool: int = Field(
        0, ge=0, le=1000, description="forks of each template kept waiting for a create"
    )
    warm_pool_memory_mib: int = Field(
        1024, ge=0, description="most memory that all waiting forks may use, MiB"
    )
