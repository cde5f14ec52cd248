"""What can be said of extensions on a driver: for discovery by programs and people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vmdriver.lifecycle.extending.activation import Registered, key_of
from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.lifecycle.extending.hooks import LifecycleExtension, OnRequest, hooks_of
from vmdriver.lifecycle.extending.phases import phases_of


@dataclass(frozen=True)
class Entry:
    """One extension. Schemas are JSON Schema, or None."""

    name: str
    version: str
    kind: str
    """"phases" or "hooks": what `phases` names."""
    label_key: str
    """"" when it is active for every sandbox."""
    phases: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    parameters: dict[str, object] | None = None
    configuration: dict[str, object] | None = None


def entry_of(extension: Registered, supported: frozenset[CallPoint]) -> Entry:
    """As it stands on a driver with these phases."""
    parameters = extension.parameters
    on_request = isinstance(extension.activation, OnRequest)
    entry = Entry(
        name=extension.name,
        version=extension.version,
        kind="hooks",
        label_key=key_of(extension) if on_request else "",
        phases=(),
        parameters=parameters.model_json_schema() if parameters else None,
    )
    if isinstance(extension, LifecycleExtension):
        return replace(entry, phases=hooks_of(extension))
    defined, configuration = phases_of(extension), extension.configuration
    return replace(
        entry,
        kind="phases",
        phases=in_order(defined & supported),
        skipped=in_order(defined - supported),
        required=in_order(extension.required),
        configuration=configuration.model_json_schema() if configuration else None,
    )


def parameter_schemas(
    entries: Iterable[Entry], may_configure: frozenset[str]
) -> dict[str, dict[str, object]]:
    """Of those that requests may say something to, by name."""
    nothing: dict[str, object] = {"type": "object", "maxProperties": 0}
    return {e.name: e.parameters or nothing for e in entries if e.name in may_configure}


def in_order(phases: Iterable[CallPoint]) -> tuple[str, ...]:
    """As they come in a sandbox's life."""
    wanted = set(phases)
    return tuple(p.value for p in CallPoint if p in wanted)
