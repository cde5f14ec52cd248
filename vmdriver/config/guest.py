"""The settings about what is inside a guest: a part of model.py's Config."""

from __future__ import annotations

from pydantic import BaseModel, Field


class GuestSettings(BaseModel):
    """Users, limits and what the supervisor is told."""

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
