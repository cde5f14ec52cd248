"""The settings about the machines: their size, their number, their beginning and end."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from vmdriver.host import facts
from vmdriver.model.devices import pci_address
from vmdriver.model.host_mount import AllowedFolder
from vmdriver.model.spec import Frozen


class MachineSettings(Frozen):
    """What one machine may have, what all may have, and how long they are waited for."""

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
    boot_timeout_s: float = Field(
        120.0, gt=0, le=3600, description="time from start to the supervisor's start"
    )
    stop_grace_s: float = Field(
        10.0, ge=0, le=600, description="time for a guest to flush its disks at a stop"
    )
    on_stop: Literal["shutdown", "suspend"] = Field(
        "shutdown",
        description="what a stop does: end the machine, or keep its memory; "
        "driver_config.on_stop wins",
    )
    crash_restarts: int = Field(
        0,
        ge=0,
        le=100,
        description="restarts after a crash before it counts as an error",
    )
    passthrough_devices: list[str] = Field(
        [],
        description="PCI addresses of this host's devices that sandboxes may have "
        "(docs/devices.md); empty: none",
    )

    host_mounts: list[AllowedFolder] = Field(
        [],
        description="folders of this host that sandboxes may have, with path, read_only (true) and "
        "user (docs/host_mounts.md), in flags PATH or PATH=USER; empty: none",
    )

    @field_validator("host_mounts")
    @classmethod
    def _host_mounts(cls, value: list[AllowedFolder]) -> list[AllowedFolder]:
        paths = [folder.path for folder in value]
        for path in paths:
            if paths.count(path) > 1:
                raise ValueError(f"names {path} twice")
        return value

    @field_validator("passthrough_devices")
    @classmethod
    def _passthrough_devices(cls, value: list[str]) -> list[str]:
        """In the kernel's words, each once."""
        return list(dict.fromkeys(map(pci_address, value)))
