"""The way from this host, and so from its guests, back to a gateway on another one."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from vmdriver.errors import Unavailable
from vmdriver.host.retry import backoff_s
from vmdriver.lifecycle.launch.environment import guest_endpoint
from vmdriver.lifecycle.ports.settings import TlsFiles
from vmdriver.service.gateway import GatewayService

_log = logging.getLogger(__name__)
_CONNECT_S = 5.0
_MOST_S = 60.0


@dataclass(frozen=True)
class Way:
    """`open`: somebody listens there; `gateway`: it is one, and says so. `text` is for people."""

    open: bool
    gateway: bool
    text: str
    advice: str = ""


class WayBack:
    """To `endpoint`, as this host reaches it; guests leave through this host."""

    def __init__(self, endpoint: str, tls: TlsFiles | None) -> None:
        self._endpoint = endpoint
        self._service = GatewayService(endpoint, tls)

    async def look(self) -> Way:
        """One try, of some 10 s at most."""
        try:
            version = await self._service.version()
        except Unavailable as error:
            return await self._closed(error.detail)
        return Way(True, True, f"gateway {version} answers at {self._endpoint}")

    async def _closed(self, why: str) -> Way:
        found = guest_endpoint(self._endpoint)
        host = "127.0.0.1" if found.on_host_loopback else found.host
        advice = (
            "openshell_endpoint means this host, and the gateway is on another one: set it to the "
            "gateway's URL as this host reaches it"
            if found.on_host_loopback
            else "check openshell_endpoint, the gateway's listener, and firewalls between the two"
        )
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, writer = await asyncio.open_connection(host, found.port)
        except (OSError, TimeoutError) as error:
            why = str(error) or f"nobody answers within {_CONNECT_S:.0f} s"
            text = f"nobody is reached at {self._endpoint}: {why}"
            return Way(False, False, text, advice)
        writer.transport.abort()
        return Way(True, False, f"{self._endpoint} says no version: {why}", advice)

    async def tell(self) -> None:
        """In the log, until it is there: sandboxes start and do not become ready meanwhile."""
        failures, told = 0, ""
        while True:
            way = await self.look()
            if way.gateway:
                _log.info("the way back: %s", way.text)
                return
            if way.text != told:
                _log.warning("the way back: %s; %s", way.text, way.advice)
                told = way.text
            failures += 1
            await asyncio.sleep(backoff_s(failures, first_s=1.0, most_s=_MOST_S))
