"""What can be said of extensions on a driver: for discovery by programs and people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vmdriver.lifecycle.hooks import OnRequest
from vmdriver.lifecycle.phases.activation import key_of
from vmdriver.lifecycle.phases.api import Extension, Phase, phases_of


@dataclass(frozen=True)
class Entry:
    """One extension. Schemas are JSON Schema, or None."""

    name: str
    version: str
    label_key: str
    """"" when it is active for every sandbox."""
    phases: tuple[str, ...]
    skipped: tuple[str, ...]
    required: tuple[str, ...]
    parameters: dict[str, object] | None
    configuration: dict[str, object] | None


def entry_of(extension: Extension, supported: frozenset[Phase]) -> Entry:
    """As it stands on a driver with these phases."""
    defined, parameters = phases_of(extension), extension.parameters
    configuration = extension.configuration
    on_request = isinstance(extension.activation, OnRequest)
    return Entry(
        name=extension.name,
        version=extension.version,
        label_key=key_of(extension) if on_request else "",
        phases=in_order(defined & supported),
        skipped=in_order(defined - supported),
        required=in_order(extension.required),
        parameters=parameters.model_json_schema() if parameters else None,
        configuration=configuration.model_json_schema() if configuration else None,
    )


def in_order(phases: Iterable[Phase]) -> tuple[str, ...]:
    """As they come in a sandbox's life."""
    wanted = set(phases)
    return tuple(p.value for p in Phase if p in wanted)
