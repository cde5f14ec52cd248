"""Puts a composed driver together and runs it: the composition root of this folder."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmdriver.compose import admin
from vmdriver.compose.base import Asked, Base, BaseRejected
from vmdriver.compose.config import SCHEME, ComposeConfig
from vmdriver.compose.dialect import Dialect
from vmdriver.compose.driver import ComposedDriver
from vmdriver.compose.follower import Follower
from vmdriver.compose.registry import Registry
from vmdriver.compose.server import Handler
from vmdriver.compose.store import Record, Store
from vmdriver.errors import ConfigError, DriverError
from vmdriver.host.lock import StateLock
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.extending.by_phases import ByPhases
from vmdriver.lifecycle.extending.phases import Extension
from vmdriver.lifecycle.extending.runner import Runner
from vmdriver.lifecycle.ports.host import Guard, no_crash_point
from vmdriver.service.server import (
    ADMIN,
    COMPUTE_DRIVER,
    check_path,
    secure_directory,
    serve,
)
from vmdriver.service.tls.address import parse_address
from vmdriver.service.tls.identity import Identity
from vmdriver.service.tls.keys import Side
from vmdriver.service.tls.tunnel import Tunnel

if TYPE_CHECKING:
    from vmdriver.telemetry.telemetry import Telemetry

_log = logging.getLogger(__name__)
_THREADS = 8
_TELL_S = 1.0
"""For collectors, at the end."""


def tunnel_of(config: ComposeConfig, path: Path | None = None) -> Tunnel | None:
    """To a base on another host; None where it is on this one. `path`: of its socket, else one in
    state_dir. ConfigError for files that cannot be used.
    """
    keys = config.keys()
    if keys is None:
        return None
    address = parse_address(config.base.removeprefix(SCHEME))
    path = path or config.state_dir / "run" / "base.sock"
    return Tunnel(address, Identity(keys, Side.CLIENT), path, config.tls_server_name)


class Composition:
    """One composed driver on its socket."""

    def __init__(
        self,
        config: ComposeConfig,
        extensions: Sequence[Extension],
        crash_point: Guard = no_crash_point,
    ) -> None:
        self.config = config
        self._files = Threads("compose", _THREADS)
        store = Store(config.state_dir, self._files, crash_point)
        self.tunnel = tunnel_of(config)
        dialect = Dialect.of(config.base_by_id, config.base_reasons)
        self.base = Base(config.base, config.base_wait_s, dialect, self.tunnel)
        self.runner = Runner(
            [ByPhases(extension) for extension in extensions],
            config.extension,
            store.extension_directory,
            frozenset(config.request_parameters),
            subject_of=Record.subject,
            of_base=frozenset(config.base_extensions),
            names=lambda: self.driver.names,
            tell=lambda *told: self.registry.tell(told[0], "ExtensionFailed", told[1]),
            known=lambda: self.registry.known(),  # noqa: PLW0108 - made below
        )
        self.registry = Registry(
            self.base,
            store,
            self.runner,
            config.create_grace_s,
            lambda *event: self.follower.relay.publish(*event),  # noqa: PLW0108 - as above
        )
        self.driver = ComposedDriver(
            self.base, self.registry, self.runner, config.driver_name, config.suffix
        )
        self.follower = Follower(self.base, self.registry)
        self.admin_socket = config.state_dir / "run" / "admin.sock"
        self._lock = StateLock(config.state_dir / "lock")

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set."""
        check_path(self.config.bind_socket)
        check_path(self.admin_socket, "state_dir")
        self.config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        await self._lock.acquire()
        self.registry.open()
        if self.tunnel is not None:
            secure_directory(self.tunnel.path.parent)
            await self.tunnel.start()
        servers = await self._serve()
        try:
            telemetry = self._watched()
        except ConfigError:
            await self._end(servers, None)
            raise
        _log.info(
            "serving on %s, in front of %s", self.config.bind_socket, self.base.address
        )
        self.follower.start()
        names = asyncio.create_task(self._learn_names())
        try:
            await stop.wait()
        finally:
            _log.info("ending; sandboxes go on")
            names.cancel()
            await self._end(servers, telemetry)

    async def _end(self, servers: list[Any], telemetry: Telemetry | None) -> None:
        """What is told to those who watch over hosts is sent meanwhile, and not waited for long."""
        telling = [asyncio.ensure_future(telemetry.close())] if telemetry else []
        await self.follower.close()
        await asyncio.gather(*(server.stop(0.5) for server in servers))
        await self.base.close()
        if self.tunnel is not None:
            await self.tunnel.close()
        if telling:
            await asyncio.wait(telling, timeout=_TELL_S)
        self._files.close()
        self._lock.release()

    def _watched(self) -> Telemetry | None:
        """Who does not use it pays nothing for the SDK. ConfigError."""
        if not self.config.metrics_listen and not self.config.otlp_endpoint:
            return None
        from vmdriver.compose.watching import watched

        return watched(self.config, self.registry, self.follower.relay)

    async def _serve(self) -> list[Any]:
        handler = Handler(self.driver, self.base, self.follower.relay)
        operators = admin.Admin(self.runner, self.registry)
        return [
            await serve(
                self.config.bind_socket,
                lambda server: server.add_generic_rpc_handlers((handler,)),
                COMPUTE_DRIVER,
            ),
            await serve(self.admin_socket, partial(admin.register, operators), ADMIN),
        ]

    async def _learn_names(self) -> None:
        """Extensions are told which driver they are on, whether or not somebody asks us."""
        with contextlib.suppress(BaseRejected):
            while not self.driver.names[0]:
                with contextlib.suppress(DriverError):
                    await self.driver.capabilities(b"", Asked())
