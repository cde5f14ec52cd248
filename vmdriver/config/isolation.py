"""The settings about the wall around each machine."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from vmdriver.model.spec import Frozen

_LEAST_NUMBER, _MOST_NUMBER = 1000, 2**31 - 1


class IsolationSettings(Frozen):
    """What keeps a machine from everything that is not its own."""

    isolation: Literal["strict", "available"] = Field(
        "strict",
        description="strict: no machine starts without a part of the wall that this host or "
        "connection cannot give it; available: it starts with what there is, and shows it",
    )
    machine_uids: str = Field(
        "",
        description="host user ids that machines run as, first to last, one each; the first is "
        "the group of what they may only read. Empty: 250000-259999, for another state_dir than "
        "the default 10000 numbers that go with it",
    )
    max_connections: int = Field(
        4096,
        ge=16,
        le=1_000_000,
        description="most connections of one machine at a time",
    )
    max_disk_iops: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="most operations a second of a machine's disks together; 0: no limit; "
        "driver_config.max_disk_iops may ask for less",
    )
    max_disk_mib_s: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="most MiB a second of a machine's disks together; 0: no limit; "
        "driver_config.max_disk_mib_s may ask for less",
    )
    max_net_mbit_s: int = Field(
        0,
        ge=0,
        le=30_000,
        description="most Mbit a second of a machine's network, each way; 0: no limit; "
        "driver_config.max_net_mbit_s may ask for less",
    )

    machine_cgroup: str = Field(
        "auto",
        pattern=r"^(auto|off|/.*)$",
        description="cgroup v2 folder that is left to the driver, below which each machine gets "
        "the kernel's limits; auto: the driver's own, where systemd leaves it to it (Delegate=yes) "
        "or there is no systemd; off: none",
    )

    @field_validator("machine_uids")
    @classmethod
    def _machine_uids(cls, value: str) -> str:
        if not value:
            return value
        found = re.fullmatch(r"\s*([0-9]{1,10})\s*-\s*([0-9]{1,10})\s*", value)
        if found is None:
            raise ValueError('is two numbers, such as "250000-259999"')
        first, last = int(found[1]), int(found[2])
        if not _LEAST_NUMBER <= first <= last - 2 or last > _MOST_NUMBER:
            raise ValueError(
                f"{value} is no range of user ids: it begins at {_LEAST_NUMBER} or above, "
                f"ends at {_MOST_NUMBER} or below, and has three numbers or more"
            )
        return f"{first}-{last}"
