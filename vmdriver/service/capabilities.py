"""What extensions can do on a driver and what they hold, as vmdriver.admin.v1 says it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmdriver._proto import admin_pb2 as pb
from vmdriver.lifecycle.engine.ledger import Held, Scope
from vmdriver.lifecycle.extending.catalogue import Entry, in_order
from vmdriver.lifecycle.extending.draft import MutationPoint
from vmdriver.lifecycle.extending.notes import is_hold
from vmdriver.lifecycle.extending.phases import Until
from vmdriver.lifecycle.extending.runner import Runner


def encode(
    runner: Runner[Any],
    points: Iterable[MutationPoint],
    extensions: Iterable[pb.Extension],
    held: Iterable[pb.Held],
    driver_config_schema: Mapping[str, object],
    hooks: Sequence[str] = (),
) -> pb.GetExtensionCapabilitiesResponse:
    """The whole answer."""
    driver, base = runner.names()
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
        extensions=extensions,
        held=held,
        driver_config_schema=json.dumps(driver_config_schema),
    )


def encode_extension(
    entry: Entry, runner: Runner[Any], sandboxes: Iterable[str]
) -> pb.Extension:
    """One of them, with the ids of the sandboxes that it takes part in."""
    return pb.Extension(
        name=entry.name,
        version=entry.version,
        kind=entry.kind,
        label_key=entry.label_key,
        phases=entry.phases,
        skipped_phases=entry.skipped,
        required_phases=entry.required,
        parameters_schema=_text(entry.parameters),
        configuration_schema=_text(entry.configuration),
        request_parameters=entry.name in runner.may_configure,
        sandboxes=sorted(sandboxes),
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


def _text(schema: dict[str, object] | None) -> str:
    return json.dumps(schema) if schema is not None else ""
