"""Every setting as one model: flags, environment names, `vmdriver config` and the README's
table come from its fields.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from vmdriver.config.guest import GuestSettings
from vmdriver.config.images import ImageSettings
from vmdriver.config.network import NetworkSettings
from vmdriver.host import facts
from vmdriver.host.log import parse_level
from vmdriver.lifecycle.launch.environment import guest_endpoint
from vmdriver.model.ids import check_instance


class Config(ImageSettings, GuestSettings, NetworkSettings):
    """Every setting. Descriptions are what --help and the README say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state_dir: Path = Field(
        Path("/var/lib/vmdriver"), description="where everything durable is"
    )
    bind_socket: Path = Field(
        Path("/run/vmdriver/compute-driver.sock"),
        description="the gRPC socket to serve on",
    )
    openshell_endpoint: str = Field(
        "http://127.0.0.1:17670",
        description="the gateway's URL, as this host reaches it",
    )
    instance: str = Field(
        "",
        description="name in every mark; tells drivers that share a host apart; empty: "
        "vmdriver, and for another state_dir vmdriver-<hash of it>",
    )
    driver_name: str = Field(
        "vmdriver", description="name that GetCapabilities answers with"
    )
    gateway_manages_lifecycle: bool = Field(
        False,
        description=(
            "true: the gateway stops all sandboxes when it ends and starts them again"
        ),
    )
    supervisor_path: Path | None = Field(
        None, description="the openshell-sandbox program that guests run"
    )
    connection: str = Field(
        "embed",
        description='"embed" (libvirt in this process) or a URI such as qemu:///system',
    )
    qemu_user: str = Field("libvirt-qemu", description="host user that QEMU runs as")
    qemu_group: str = Field("kvm", description="host group that QEMU runs with")
    accelerator: Literal["auto", "kvm", "tcg"] = Field(
        "auto", description="auto: KVM once a probe guest has booted on it, else TCG"
    )
    probe_deadline_s: float = Field(
        15.0,
        gt=0,
        le=600,
        description="time for the KVM probe guest to reach user space",
    )
    vcpus: int = Field(
        2, ge=1, le=255, description="vCPUs of a sandbox that asks for none"
    )
    mem_mib: int = Field(
        2048, ge=128, description="memory of a sandbox that asks for none, MiB"
    )
    max_vcpus: int = Field(
        default_factory=facts.cpu_count,
        ge=1,
        le=255,
        description="most vCPUs of one sandbox",
    )
    max_mem_mib: int = Field(
        default_factory=facts.memory_mib,
        ge=128,
        description="most memory of one sandbox, MiB",
    )
    max_sandboxes: int = Field(1000, ge=0, description="most sandboxes known at a time")
    max_committed_mem_mib: int = Field(
        default_factory=facts.memory_mib,
        ge=0,
        description="most memory of all sandboxes meant to run, MiB",
    )
    stop_grace_s: float = Field(
        10.0, ge=0, le=600, description="time for a guest to flush its disks at a stop"
    )
    on_stop: Literal["shutdown", "suspend"] = Field(
        "shutdown",
        description="what a stop does: end the machine, or keep its memory; "
        "driver_config.on_stop wins",
    )
    on_restore_failure: Literal["cold-boot", "fail"] = Field(
        "cold-boot", description="when kept memory cannot be restored"
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
        "host", description="who may share a template's memory pages"
    )
    warm_pool: int = Field(
        0, ge=0, le=1000, description="forks of each template kept waiting for a create"
    )
    warm_pool_memory_mib: int = Field(
        1024, ge=0, description="most memory that all waiting forks may use, MiB"
    )
    admin_socket: Path | None = Field(
        None,
        description="socket of vmdriver.admin.v1; none: admin.sock in state_dir/run",
    )
    boot_timeout_s: float = Field(
        120.0, gt=0, le=3600, description="time from start to the supervisor's start"
    )
    crash_restarts: int = Field(
        0,
        ge=0,
        le=100,
        description="restarts after a crash before it counts as an error",
    )
    guest_tls_ca: Path | None = Field(
        None, description="CA certificate that guests trust for the gateway"
    )
    guest_tls_cert: Path | None = Field(
        None, description="the guests' client certificate"
    )
    guest_tls_key: Path | None = Field(None, description="the guests' client key")
    log_level: str = Field(
        "info", description="of this driver, and of supervisors that are given none"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="one line a record, on standard error"
    )
    extensions: list[str] = Field(
        [],
        description=(
            "extensions to load, in this order (entry points vmdriver.extensions)"
        ),
    )
    request_parameters: list[str] = Field(
        [],
        description="extensions that requests may give parameters to through driver_config",
    )
    extension: dict[str, dict[str, Any]] = Field(
        {}, description="[extension.<name>] tables, one per extension"
    )
    expected_peer_pid: int | None = Field(
        None,
        ge=1,
        le=2**31 - 1,
        description="process that launched the driver (a gateway says its own): the driver "
        "ends when that has ended, machines go on",
    )
    allow_same_uid_peer: bool = Field(
        False, description="accepted for stock gateways; no meaning here"
    )
    bootstrap_image: str = Field(
        "", description="accepted for stock gateways; no meaning here"
    )
    krun_log_level: int = Field(
        1, description="accepted for stock gateways; no meaning here"
    )
    otlp_endpoint: str = Field(
        "", description="accepted for stock gateways; no meaning here"
    )

    @field_validator("instance")
    @classmethod
    def _instance(cls, value: str) -> str:
        return check_instance(value) if value else value

    @field_validator("log_level")
    @classmethod
    def _log_level(cls, value: str) -> str:
        parse_level(value)
        return value

    @field_validator("openshell_endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        guest_endpoint(value)
        return value

    @field_validator("supervisor_path", mode="before")
    @classmethod
    def _unset(cls, value: Any) -> Any:
        """An empty flag takes a file's setting back, for supervisor_image."""
        return None if value == "" else value

    @field_validator(
        "state_dir",
        "bind_socket",
        "admin_socket",
        "supervisor_path",
        "guest_tls_ca",
        "guest_tls_cert",
        "guest_tls_key",
    )
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else Path(os.path.abspath(value))  # noqa: PTH100 - resolve() would follow links

    @model_validator(mode="after")
    def _together(self) -> Self:
        tls = (self.guest_tls_ca, self.guest_tls_cert, self.guest_tls_key)
        if any(tls) and not all(tls):
            raise ValueError(
                "guest_tls_ca, guest_tls_cert and guest_tls_key go together: all "
                "or none"
            )
        if guest_endpoint(self.openshell_endpoint).host == self.host_alias:
            raise ValueError(
                f"host_alias {self.host_alias} is the gateway's own address "
                "(openshell_endpoint)"
            )
        if self.openshell_endpoint.startswith("https:") and not all(tls):
            raise ValueError(
                "openshell_endpoint is https: guest_tls_ca, guest_tls_cert and "
                "guest_tls_key are needed"
            )
        return self
