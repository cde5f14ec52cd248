"""Limits the sandboxes of each workspace, in number and memory.

extensions = ["workspace-quota"]

[extension.workspace-quota.default]
sandboxes = 20
memory_mib = 65536          # of the sandboxes' memory limits; one that names none counts as
unnamed_mib = 2048          # this much

[extension.workspace-quota.workspaces.research]
sandboxes = 100
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from vmdriver.extension import Context, Exhausted, Extension, SandboxView


class Quota(BaseModel):
    """Of one workspace. None: no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sandboxes: int | None = Field(None, ge=0)
    memory_mib: int | None = Field(None, ge=0)
    unnamed_mib: int = Field(2048, ge=0)

    def size(self, sandbox: SandboxView) -> int:
        """Memory that it counts for, in MiB."""
        return sandbox.resources.memory_mib or self.unnamed_mib


class Table(BaseModel):
    """The extension's configuration table."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    default: Quota = Quota()
    workspaces: Mapping[str, Quota] = {}


class WorkspaceQuota(Extension):
    """Active for every sandbox. Of two creates at a time the first counts for the second."""

    name: ClassVar[str] = "workspace-quota"
    version: ClassVar[str] = "1"
    configuration = Table

    async def validate_request(self, context: Context) -> None:
        """Exhausted, naming the limit."""
        table: Table = context.config
        workspace = context.sandbox.workspace
        quota = table.workspaces.get(workspace, table.default)
        peers = [other for other in context.others if other.workspace == workspace]
        if quota.sandboxes is not None and len(peers) >= quota.sandboxes:
            raise _used_up(workspace, f"{quota.sandboxes} sandboxes")
        wanted = quota.size(context.sandbox)
        used = sum(quota.size(other) for other in peers)
        if quota.memory_mib is not None and used + wanted > quota.memory_mib:
            raise _used_up(
                workspace,
                f"{quota.memory_mib} MiB of memory, of which {used} MiB are used and "
                f"{wanted} MiB are asked for",
            )


def _used_up(workspace: str, limit: str) -> Exhausted:
    return Exhausted(
        f"workspace {workspace!r} may have {limit}",
        reason="WorkspaceQuota",
        resolution="delete sandboxes, ask for less, or have the quota raised",
    )
