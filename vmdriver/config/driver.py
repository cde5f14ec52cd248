"""The settings about the driver itself and about its host."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from vmdriver.config.log_level import LogLevel
from vmdriver.config.paths import AbsolutePath
from vmdriver.model.ids import check_instance
from vmdriver.model.spec import Frozen
from vmdriver.telemetry.listen import MetricsAddress

DEFAULT_STATE_DIR = Path("/var/lib/vmdriver")


class DriverSettings(Frozen):
    """Where the driver keeps what it knows, and what of the host it uses."""

    state_dir: AbsolutePath = Field(
        DEFAULT_STATE_DIR, description="where everything durable is"
    )
    instance: str = Field(
        "",
        validate_default=True,
        description="name in every mark; tells drivers that share a host apart; empty: "
        "vmdriver, and for another state_dir vmdriver-<hash of it>",
    )
    admin_socket: AbsolutePath | None = Field(
        None,
        description="socket of vmdriver.admin.v1; none: admin.sock in state_dir/run",
    )
    connection: str = Field(
        "embed",
        description='"embed" (libvirt in this process) or a URI such as qemu:///system',
    )
    qemu_user: str = Field(
        "libvirt-qemu",
        description="libvirt's own user, as which it asks QEMU what it can do; no machine runs "
        "as it",
    )
    qemu_group: str = Field("kvm", description="that user's group")
    accelerator: Literal["auto", "kvm", "tcg"] = Field(
        "auto", description="auto: KVM once a probe guest has booted on it, else TCG"
    )
    probe_deadline_s: float = Field(
        15.0,
        gt=0,
        le=600,
        description="time for the KVM probe guest to reach user space",
    )
    log_level: LogLevel = Field(
        "info",
        description="debug, info, warning or error: of this driver, and of supervisors that are "
        "given none",
    )
    log_format: Literal["text", "json"] = Field(
        "text",
        description="one line a record, on standard error; json: with sandbox, trace and step",
    )

    metrics_listen: MetricsAddress = Field(
        "",
        description="where Prometheus may ask for metrics: unix:/PATH, or a port of the loopback "
        "such as 127.0.0.1:9464; empty: nowhere",
    )

    @field_validator("instance")
    @classmethod
    def _instance(cls, value: str, before: ValidationInfo) -> str:
        """Two state directories must never sweep each other's objects."""
        state_dir = before.data.get("state_dir", DEFAULT_STATE_DIR)
        if value:
            return check_instance(value)
        if state_dir == DEFAULT_STATE_DIR:
            return "vmdriver"
        return f"vmdriver-{hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:8]}"
