"""What can be said of extensions on a driver: for discovery by programs and people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vmdriver.lifecycle.extending.activation import key_of, on_request
from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.lifecycle.extending.participants import Participant


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


def entry_of(participant: Participant, supported: frozenset[CallPoint]) -> Entry:
    """As it stands on a driver with these phases."""
    extension, called_in = participant.extension, participant.defined
    lacking = {p.value for p in CallPoint if p not in supported}
    parameters, configuration = extension.parameters, participant.configuration
    return Entry(
        name=participant.name,
        version=extension.version,
        kind=participant.language,
        label_key=key_of(extension) if on_request(extension) else "",
        phases=tuple(name for name in called_in if name not in lacking),
        skipped=tuple(name for name in called_in if name in lacking),
        required=in_order(participant.required),
        parameters=parameters.model_json_schema() if parameters else None,
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
