"""Implements lifecycle.ports.gateway.Gateway: its own service, as far as the driver asks it."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import grpc

from vmdriver._proto import gateway_health_pb2 as pb
from vmdriver.errors import Unavailable
from vmdriver.lifecycle.launch.environment import HOST_ALIASES
from vmdriver.lifecycle.ports.settings import TlsFiles

_HEALTH = "/openshell.v1.OpenShell/Health"
_DEADLINE_S = 5.0
_OPTIONS: tuple[tuple[str, str | int], ...] = (("grpc.enable_http_proxy", 0),)


class GatewayService:
    """At the URL by which this host reaches it, with the guests' certificate where it has TLS."""

    def __init__(self, endpoint: str, tls: TlsFiles | None) -> None:
        self._endpoint, self._tls = endpoint, tls

    async def version(self) -> str:
        """Asked anew each time. `Health` needs no token; gateways v0.0.69 to v0.0.116 have it."""
        url = urlsplit(self._endpoint)
        port = url.port or (443 if url.scheme == "https" else 80)
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        # A gateway that launches us may say the name by which guests know this host.
        place = "127.0.0.1" if host in HOST_ALIASES else host
        try:
            async with await self._channel(f"{place}:{port}", str(host)) as channel:
                health = channel.unary_unary(
                    _HEALTH,
                    request_serializer=pb.GatewayHealthRequest.SerializeToString,
                    response_deserializer=pb.GatewayHealthResponse.FromString,
                )
                answer = await health(pb.GatewayHealthRequest(), timeout=_DEADLINE_S)
        except (grpc.RpcError, OSError) as error:
            raise Unavailable(
                f"the gateway at {self._endpoint} does not say its version",
                detail=str(error),
                reason="GatewayUnavailable",
                resolution="check openshell_endpoint, or set supervisor_path or supervisor_image",
            ) from error
        if not answer.version:
            raise Unavailable(
                f"the gateway at {self._endpoint} says no version of its own",
                reason="GatewayUnavailable",
                resolution="set supervisor_path or supervisor_image",
            )
        return str(answer.version)

    async def _channel(self, address: str, name: str) -> grpc.aio.Channel:
        """`name`: whose certificate it has to be."""
        if not self._endpoint.startswith("https:"):
            return grpc.aio.insecure_channel(address, options=_OPTIONS)
        ca = key = certificate = None
        if (tls := self._tls) is not None:
            ca, key, certificate = await asyncio.gather(
                *(asyncio.to_thread(f.read_bytes) for f in (tls.ca, tls.key, tls.cert))
            )
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        options = list(_OPTIONS)
        if name in HOST_ALIASES:
            options.append(("grpc.ssl_target_name_override", name))
        return grpc.aio.secure_channel(address, credentials, options=options)
