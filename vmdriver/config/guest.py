"""The settings about what is inside a guest."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from vmdriver.config.paths import AbsolutePath
from vmdriver.model.spec import Frozen


class GuestSettings(Frozen):
    """The supervisor and what it is told; users and limits of the workload."""

    supervisor_path: AbsolutePath | None = Field(
        None, description="the openshell-sandbox program that guests run"
    )
    supervisor_image: str = Field(
        "",
        description="image with the openshell-sandbox program, where supervisor_path is "
        "not set; looked up once when the driver needs it first",
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
        True, description="what guests are told about the gateway's telemetry"
    )

    @field_validator("supervisor_path", mode="before")
    @classmethod
    def _unset(cls, value: Any) -> Any:
        """An empty flag takes a file's setting back, for supervisor_image."""
        return None if value == "" else value
