"""What extensions can do on a driver and what they hold, as vmdriver.admin.v1 says it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from vmdriver._proto import admin_pb2 as pb
from vmdriver.lifecycle.engine.ledger import Held, Scope
from vmdriver.lifecycle.extending.activation import (
    key_of,
    on_request,
    parameter_schemas,
)
from vmdriver.lifecycle.extending.call_points import CallPoint, in_order
from vmdriver.lifecycle.extending.draft import MutationPoint
from vmdriver.lifecycle.extending.notes import is_hold
from vmdriver.lifecycle.extending.participants import Participant
from vmdriver.lifecycle.extending.phases import Until
from vmdriver.lifecycle.extending.runner import Runner


def encode(
    runner: Runner[Any],
    points: Iterable[MutationPoint],
    active: Mapping[str, Collection[str]],
    held: Iterable[pb.Held],
    schema: Callable[[dict[str, Any]], Mapping[str, object]],
    hooks: Sequence[str] = (),
) -> pb.GetExtensionCapabilitiesResponse:
    """The whole answer. `active`: who takes part, by sandbox. `schema`: of driver_config, from
    those of its extensions' parameters.
    """
    driver, base = runner.names()
    loaded = runner.participants.values()
    configurable = parameter_schemas(loaded, runner.may_configure)
    return pb.GetExtensionCapabilitiesResponse(
        driver_name=driver,
        base_driver_name=base,
        api="phases+hooks" if hooks else "phases",
        phases=in_order(runner.supported),
        hooks=hooks,
        mutation_points=[
            pb.MutationPoint(
                field=point.field,
                phases=in_order(point.phases),
                keyed=point.keyed,
                meaning=point.meaning,
            )
            for point in points
        ],
        extensions=[_extension(found, runner, active) for found in loaded],
        held=held,
        driver_config_schema=json.dumps(schema(configurable)),
    )


def _extension(
    found: Participant, runner: Runner[Any], active: Mapping[str, Collection[str]]
) -> pb.Extension:
    extension, skipped = found.extension, frozenset(CallPoint) - runner.supported
    return pb.Extension(
        name=found.name,
        version=extension.version,
        kind=found.language,
        label_key=key_of(extension) if on_request(extension) else "",
        phases=[name for name in found.defined if name not in skipped],
        skipped_phases=[name for name in found.defined if name in skipped],
        required_phases=in_order(found.required),
        parameters_schema=_schema(extension.parameters),
        configuration_schema=_schema(found.configuration),
        request_parameters=found.name in runner.may_configure,
        sandboxes=sorted(i for i, names in active.items() if found.name in names),
    )


def encode_held(sandbox_id: str, held: Held, *, orphan: bool, problem: str) -> pb.Held:
    """One ledger entry. What is no hold is a call that is still to be made."""
    of_run = held.scope is Scope.RUNTIME
    kind, name = "call", "after_stop" if of_run else "after_delete"
    if is_hold(held):
        kind, name = held.data["kind"], held.data["name"]
    return pb.Held(
        sandbox=sandbox_id,
        extension=held.data["extension"],
        kind=kind,
        name=name,
        until=(Until.STOP if of_run else Until.DELETE).value,
        orphan=orphan,
        problem=problem if orphan else "",
    )


def _schema(model: type[BaseModel] | None) -> str:
    return json.dumps(model.model_json_schema()) if model else ""
