"""The settings about what is inside a guest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from vmdriver.config.paths import AbsolutePath
from vmdriver.lifecycle.launch.supervisor import GATEWAY_VERSION
from vmdriver.model.spec import Frozen

PUBLISHED_SUPERVISOR = f"ghcr.io/nvidia/openshell/supervisor:{GATEWAY_VERSION}"
"""Where upstream publishes it (contract-0.0.md section 7)."""


class GuestSettings(Frozen):
    """The supervisor and what it is told; users and limits of the workload."""

    boot_files: AbsolutePath = Field(
        Path("/usr/lib/vmdriver/boot"),
        description="kernel and initramfs that were installed with the driver: it copies them to "
        "state_dir/boot when it starts, unless others were made there",
    )
    supervisor_path: AbsolutePath | None = Field(
        None, description="the openshell-sandbox program that guests run"
    )
    supervisor_image: str = Field(
        PUBLISHED_SUPERVISOR,
        description="image with the openshell-sandbox program, where supervisor_path is "
        "not set; {gateway_version}: the gateway's own, which it is asked for. Looked up once when "
        "the driver needs it first; the default's digest is kept",
    )
    sandbox_uid: int = Field(
        10001,
        ge=1,
        le=2**32 - 2,
        description="uid of the sandbox user in images without one",
    )
    sandbox_gid: int = Field(10001, ge=1, le=2**32 - 2, description="gid of the same")
    pids_max: int = Field(
        4096,
        ge=64,
        le=4194304,
        description="most processes and threads of a sandbox's workload",
    )
    telemetry: bool = Field(
        True,
        description="what guests are told of the gateway's telemetry: true: that it is on "
        "(OPENSHELL_TELEMETRY_ENABLED)",
    )

    operator_exec: bool = Field(
        False,
        description="vmdriver exec and console -i: the host's root may run programs in guests, "
        "past the supervisor and its policy; in machines that are started from then on; noted with "
        "who and what",
    )

    @field_validator("supervisor_path", mode="before")
    @classmethod
    def _unset(cls, value: Any) -> Any:
        """An empty flag takes a file's setting back, for supervisor_image."""
        return None if value == "" else value
