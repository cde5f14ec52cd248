"""Stamps labels and environment on new sandboxes by their workspace.

extensions = ["labels-and-placement"]

[extension.labels-and-placement.workspaces.research]
labels = { "example.org/pool" = "large" }
environment = { REGION = "north" }      # what the request sets itself stays

[extension.labels-and-placement.default]   # for every other workspace
labels = { "example.org/pool" = "shared" }
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from vmdriver.extension import Context, Draft, Extension


class Stamp(BaseModel):
    """What a workspace's sandboxes get."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    labels: Mapping[str, str] = {}
    environment: Mapping[str, str] = {}


class Table(BaseModel):
    """The extension's configuration table."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    default: Stamp = Stamp()
    workspaces: Mapping[str, Stamp] = {}


class LabelsAndPlacement(Extension):
    """Active for every sandbox."""

    name: ClassVar[str] = "labels-and-placement"
    configuration = Table

    async def prepare_plan(self, context: Context, draft: Draft) -> None:
        """One workspace's stamp, or the default."""
        table: Table = context.config
        stamp = table.workspaces.get(context.sandbox.workspace, table.default)
        for name, value in stamp.labels.items():
            draft.set_label(name, value)
        for name, value in stamp.environment.items():
            draft.set_default_environment(name, value)
