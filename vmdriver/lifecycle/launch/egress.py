"""Networks beside `egress`: the operator's lists, and what a request asks for less. Pure.

Nothing that a request says widens what the operator allows: its own list of allowed networks only
takes away what is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmdriver.errors import InvalidRequest
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.egress import MOST, networks_of
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.spec import SandboxSpec

_ALLOW, _DENY = "egress_allow", "egress_deny"
_MEANINGS = {
    _ALLOW: "of what the operator's rules allow, only these networks are reached; []: none",
    _DENY: "networks that are not reached either",
}
EGRESS_SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    key: {
        "type": "array",
        "maxItems": MOST,
        "items": {"type": "string", "format": "IPv4 network"},
        "description": meaning,
    }
    for key, meaning in _MEANINGS.items()
}
"""JSON Schema of each in template.driver_config."""


def check_egress(config: Mapping[str, Any]) -> None:
    """InvalidRequest, with the key's path, for what is no list of networks."""
    for key in _MEANINGS:
        if key not in config:
            continue
        value, path = config[key], f"template.driver_config.{key}"
        if not isinstance(value, list | tuple) or len(value) > MOST:
            raise InvalidRequest(path, f"must be a list of at most {MOST} networks")
        try:
            networks_of(value)
        except ValueError as error:
            raise InvalidRequest(path, str(error)) from error


def reaching(plan: LaunchPlan, spec: SandboxSpec, settings: Settings) -> LaunchPlan:
    """The same machine with `egress` and the lists of now, whatever it had before."""
    config = spec.driver_config
    deny = networks_of([*settings.egress_deny, *config.get(_DENY, ())])
    only = networks_of(config[_ALLOW]) if _ALLOW in config else None
    network = plan.network.model_copy(
        update={
            "egress": settings.egress,
            "egress_allow": settings.egress_allow,
            "egress_deny": deny,
            "egress_only": only,
        }
    )
    return plan.model_copy(update={"network": network})
