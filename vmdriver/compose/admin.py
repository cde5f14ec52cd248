"""vmdriver.admin.v1 of a composed driver: what its extensions can do, and what they hold."""

from __future__ import annotations

import json
from typing import Any

from vmdriver._proto import admin_pb2 as pb
from vmdriver._proto import admin_pb2_grpc as pb_grpc
from vmdriver.compose.registry import Registry
from vmdriver.compose.sandbox import Composed
from vmdriver.lifecycle.ledger import Scope
from vmdriver.lifecycle.phases.api import Until
from vmdriver.lifecycle.phases.catalogue import Entry, entry_of, in_order
from vmdriver.lifecycle.phases.mutation import REQUEST_POINTS
from vmdriver.lifecycle.phases.runner import PhaseRunner, holds_of


def register(service: Admin, server: Any) -> None:
    """Serve it."""
    pb_grpc.add_AdminServicer_to_server(service, server)


class Admin(pb_grpc.AdminServicer):
    """The other calls of the service are the VM driver's: UNIMPLEMENTED here."""

    def __init__(self, runner: PhaseRunner, registry: Registry) -> None:
        self._runner = runner
        self._registry = registry

    async def GetExtensionCapabilities(
        self, request: pb.GetExtensionCapabilitiesRequest, context: Any
    ) -> pb.GetExtensionCapabilitiesResponse:
        """As it is now."""
        runner, boxes = self._runner, self._registry.all()
        entries = [entry_of(e, runner.supported) for e in runner.extensions.values()]
        return pb.GetExtensionCapabilitiesResponse(
            driver_name=runner.driver,
            base_driver_name=runner.base_driver,
            api="phases",
            phases=in_order(runner.supported),
            mutation_points=[
                pb.MutationPoint(
                    field=point.field,
                    phases=in_order(point.phases),
                    keyed=point.keyed,
                    meaning=point.meaning,
                )
                for point in REQUEST_POINTS
            ],
            extensions=[self._encode(entry, boxes) for entry in entries],
            held=[held for box in boxes for held in _held(box)],
            driver_config_schema=json.dumps(self._driver_config_schema(entries)),
        )

    def _encode(self, entry: Entry, boxes: list[Composed]) -> pb.Extension:
        return pb.Extension(
            name=entry.name,
            version=entry.version,
            label_key=entry.label_key,
            phases=entry.phases,
            skipped_phases=entry.skipped,
            required_phases=entry.required,
            parameters_schema=_text(entry.parameters),
            configuration_schema=_text(entry.configuration),
            request_parameters=entry.name in self._runner.may_configure,
            sandboxes=sorted(
                b.record.id for b in boxes if entry.name in b.record.active
            ),
        )

    def _driver_config_schema(self, entries: list[Entry]) -> dict[str, Any]:
        """The envelope. What is in "base" only the base driver knows."""
        allowed = {
            e.name: e.parameters or {"type": "object", "maxProperties": 0}
            for e in entries
            if e.name in self._runner.may_configure
        }
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "base": {"type": "object"},
                "extensions": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": allowed,
                },
            },
        }


def _text(schema: dict[str, object] | None) -> str:
    return json.dumps(schema) if schema is not None else ""


def _held(box: Composed) -> list[pb.Held]:
    overdue = box.overdue()
    return [
        pb.Held(
            sandbox=box.record.id,
            extension=held.data["extension"],
            kind=held.data["kind"],
            name=held.data["name"],
            until=(Until.STOP if held.scope is Scope.RUNTIME else Until.DELETE).value,
            orphan=overdue,
            problem=box.trouble if overdue else "",
        )
        for held in holds_of(box.ledger)
    ]
