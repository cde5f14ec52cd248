"""Asks an IPAM service for an address of the sandbox's own, tells the sandbox, and gives it back.

extensions = ["external-address"]

[extension.external-address]
url = "http://127.0.0.1:8099"       # the service, on this host
timeout_s = 10.0

A sandbox takes part when policy has set the label openshell.io/extension.external-address to
enabled; ...external-address.pool chooses a pool. The sandbox finds its address in
EXTERNAL_ADDRESS, the driver in the label external-address.

The service: PUT /pools/POOL/claims/CLAIM answers {"address": "..."}, the same one for the same
claim; DELETE of the same path gives it back, also one that was never made (404 is fine).
"""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from vmdriver.extension import (
    Context,
    Draft,
    Exhausted,
    Extension,
    Hold,
    OnRequest,
    Refused,
)

_NOT_FOUND, _CONFLICT = 404, 409


class Table(BaseModel):
    """The extension's configuration table."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    url: str = Field(pattern=r"^http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?/?$")
    timeout_s: float = Field(10.0, gt=0)


class Parameters(BaseModel):
    """What policy may choose."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    pool: str = Field("default", pattern=r"^[a-z0-9-]{1,63}$")


class ExternalAddress(Extension):
    """One address from create to delete."""

    name: ClassVar[str] = "external-address"
    version: ClassVar[str] = "1"
    activation = OnRequest("external-address")
    configuration = Table
    parameters = Parameters

    async def before_create(self, context: Context, draft: Draft) -> None:
        """The claim is named after the sandbox: asked twice, the service says the same."""
        path = f"/pools/{context.parameters.pool}/claims/{quote(context.sandbox.id)}"
        await context.hold("address", context.sandbox.id, {"path": path})
        status, body = await self._ask(context.config, "PUT", path)
        if status == _CONFLICT:
            raise Exhausted(f"address pool {context.parameters.pool!r} is used up")
        if status >= 300 or not isinstance(body.get("address"), str):
            raise Refused(f"the address service answered {status}")
        draft.set_environment("EXTERNAL_ADDRESS", body["address"])
        draft.set_label("external-address", body["address"])

    async def undo(self, context: Context, hold: Hold) -> None:
        """Fine with a claim that was never made."""
        status, _ = await self._ask(context.config, "DELETE", hold.data["path"])
        if status >= 300 and status != _NOT_FOUND:
            raise Refused(f"the address service answered {status} to a release")

    @staticmethod
    async def _ask(config: Table, verb: str, path: str) -> tuple[int, dict[str, Any]]:
        try:
            return await asyncio.to_thread(_request, config, verb, path)
        except OSError as error:
            raise Refused(
                f"the address service on {config.url} is not reachable",
                detail=str(error),
            ) from error


def _request(config: Table, verb: str, path: str) -> tuple[int, dict[str, Any]]:
    url = urlsplit(config.url)
    connection = http.client.HTTPConnection(
        url.hostname or "", url.port, timeout=config.timeout_s
    )
    try:
        connection.request(verb, path)
        answer = connection.getresponse()
        body = answer.read(65536)
        try:
            found = json.loads(body) if body else {}
        except ValueError:
            found = {}
        return answer.status, found if isinstance(found, dict) else {}
    finally:
        connection.close()
