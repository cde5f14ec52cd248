"""How much a machine may ask of the host's disks and network: the operator's maximum, or less where
the request says so. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmdriver.errors import InvalidRequest
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.spec import SandboxSpec


@dataclass(frozen=True)
class Throttle:
    """One that a request may set: the operator's setting of that name, and what it is."""

    name: str
    least: int
    most: int
    unit: str
    meaning: str


THROTTLES = (
    Throttle(
        "max_disk_iops",
        16,
        1_000_000,
        "operations a second",
        "most operations a second of the machine's disks together",
    ),
    Throttle(
        "max_disk_mib_s",
        1,
        1_000_000,
        "MiB a second",
        "most MiB a second of the machine's disks together",
    ),
    Throttle(
        "max_net_mbit_s",
        1,
        30_000,
        "Mbit a second",
        "most Mbit a second of the machine's network, each way",
    ),
)
THROTTLE_SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    throttle.name: {
        "type": "integer",
        "minimum": throttle.least,
        "maximum": throttle.most,
        "description": f"{throttle.meaning}; the operator's maximum by default",
    }
    for throttle in THROTTLES
}
"""JSON Schema of each in template.driver_config."""


def check_throttles(config: Mapping[str, Any], settings: Settings) -> None:
    """InvalidRequest, with the key's path, for what is no number or above what may be asked for."""
    for throttle in THROTTLES:
        if throttle.name not in config:
            continue
        asked, path = config[throttle.name], f"template.driver_config.{throttle.name}"
        if not isinstance(asked, int) or isinstance(asked, bool):
            raise InvalidRequest(path, f"must be a whole number of {throttle.unit}")
        most = int(getattr(settings, throttle.name))
        if most and asked > most:
            raise InvalidRequest(
                path,
                f"{asked} {throttle.unit} are above the operator's maximum {most}",
            )
        if not throttle.least <= asked <= throttle.most:
            raise InvalidRequest(
                path,
                f"{asked} {throttle.unit} are not within {throttle.least} and "
                f"{throttle.most}",
            )


def _limit(spec: SandboxSpec, settings: Settings, name: str) -> int | None:
    """The lower one of what the operator and the request say; None where neither says anything."""
    said = (int(getattr(settings, name)), int(spec.driver_config.get(name, 0)))
    return min((limit for limit in said if limit), default=None)


def throttled(plan: LaunchPlan, spec: SandboxSpec, settings: Settings) -> LaunchPlan:
    """The same machine with the limits of now, whatever it had before."""
    mbit_s = _limit(spec, settings, "max_net_mbit_s")
    return plan.model_copy(
        update={
            "disk_iops": _limit(spec, settings, "max_disk_iops"),
            "disk_mib_s": _limit(spec, settings, "max_disk_mib_s"),
            "network": plan.network.model_copy(update={"mbit_s": mbit_s}),
        }
    )
