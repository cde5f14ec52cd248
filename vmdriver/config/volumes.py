"""The settings about volumes: how much of them there may be."""

from __future__ import annotations

from pydantic import Field

from vmdriver.model.spec import Frozen


class VolumeSettings(Frozen):
    """Sizes that volumes have for guests: on disk they take what was written to them."""

    max_workspace_volumes_mib: int = Field(
        102_400,
        ge=0,
        description="most MiB of one workspace's volumes together; 0: it has none",
    )
    max_volumes_mib: int = Field(
        512_000, ge=0, description="most MiB of all volumes together; 0: there are none"
    )
