"""vmdriver.admin.v1 of a composed driver: what its extensions can do, and what they hold."""

from __future__ import annotations

from typing import Any

from vmdriver._proto import admin_pb2 as pb
from vmdriver._proto import admin_pb2_grpc as pb_grpc
from vmdriver.compose.registry import Registry
from vmdriver.compose.sandbox import Composed
from vmdriver.compose.store import Record
from vmdriver.lifecycle.extending.draft import REQUEST_POINTS
from vmdriver.lifecycle.extending.notes import holds_of
from vmdriver.lifecycle.extending.runner import Runner
from vmdriver.service.capabilities import encode, encode_held


def register(service: Admin, server: Any) -> None:
    """Serve it."""
    pb_grpc.add_AdminServicer_to_server(service, server)


class Admin(pb_grpc.AdminServicer):
    """The other calls of the service are the VM driver's: UNIMPLEMENTED here."""

    def __init__(self, runner: Runner[Record], registry: Registry) -> None:
        self._runner = runner
        self._registry = registry

    async def GetExtensionCapabilities(
        self, request: pb.GetExtensionCapabilitiesRequest, context: Any
    ) -> pb.GetExtensionCapabilitiesResponse:
        """As it is now."""
        sandboxes = self._registry.all()
        active = {s.record.id: s.record.active for s in sandboxes}
        held = [held for sandbox in sandboxes for held in _held(sandbox)]
        schema = _driver_config_schema
        return encode(self._runner, REQUEST_POINTS, active, held, schema)


def _driver_config_schema(parameters: dict[str, Any]) -> dict[str, Any]:
    """The envelope. What is in "base" only the base driver knows."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "base": {"type": "object"},
            "extensions": {
                "type": "object",
                "additionalProperties": False,
                "properties": parameters,
            },
        },
    }


def _held(sandbox: Composed) -> list[pb.Held]:
    orphan = sandbox.overdue()
    return [
        encode_held(sandbox.record.id, held, orphan=orphan, problem=sandbox.trouble)
        for held in holds_of(sandbox.ledger)
    ]
