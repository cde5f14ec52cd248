"""What was asked for: a request as a frozen value, already valid, parsed once at the
edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Base of stored values and of settings: immutable, and unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Resources(Frozen):
    """What a sandbox may use. None: the operator's default."""

    cpu_millis: int | None = None
    """CPU quota in thousandths of a CPU; the machine gets the next whole number of
    vCPUs.
    """
    memory_mib: int | None = None
    gpus: int = 0
    """Any of those that the operator lets be passed through."""


class SandboxSpec(Frozen):
    """A sandbox as the gateway asked for it. Never holds the token."""

    id: str
    name: str
    namespace: str = ""
    workspace: str = ""
    image: str
    log_level: str = ""
    environment: Mapping[str, str] = Field(default_factory=dict)
    """The user's environment: the template's, overlaid by the spec's."""
    command: tuple[str, ...] = ()
    """The canonical main process; empty: an interactive login shell."""
    tty: bool = False
    labels: Mapping[str, str] = Field(default_factory=dict)
    """template.labels: the only labels that reach a driver."""
    resources: Resources = Resources()
    driver_config: Mapping[str, Any] = Field(default_factory=dict)
