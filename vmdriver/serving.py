"""One driver process: the lock, both sockets, recovery behind them, and the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from vmdriver import __version__
from vmdriver.app import Driver, open_driver
from vmdriver.config import WITHOUT_MEANING, Config, Loaded
from vmdriver.config.views import (
    admin_socket,
    exec_socket,
    machine_uids,
    tls_keys,
    tls_socket,
)
from vmdriver.errors import ConfigError
from vmdriver.host import out_of_memory, reaper
from vmdriver.host.lock import StateLock
from vmdriver.host.service_manager import ServiceManager, is_host_ending
from vmdriver.host.users.uid_claim import UidClaim
from vmdriver.hypervisor.qemu_process import run_directory
from vmdriver.hypervisor.usage import HostUsage
from vmdriver.lifecycle.control.commands import Commands
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.service import admin, servicer, volumes
from vmdriver.service.remote import Remote, serve_remote
from vmdriver.service.server import (
    ADMIN,
    COMPUTE_DRIVER,
    VOLUMES,
    Server,
    check_path,
    serve,
)
from vmdriver.service.servicer import Identity, Readiness
from vmdriver.service.streams.server import StreamServer
from vmdriver.service.tls.address import parse_address
from vmdriver.service.tls.identity import Identity as TlsIdentity
from vmdriver.service.tls.keys import Side
from vmdriver.service.way_back import WayBack
from vmdriver.storage import disk_use
from vmdriver.storage.layers.machine_users import has_claims
from vmdriver.storage.layout import Layout
from vmdriver.storage.programs.needed import missing
from vmdriver.storage.programs.provided_boot import provide
from vmdriver.telemetry.pictures import Pictures
from vmdriver.telemetry.use import MachineUse

if TYPE_CHECKING:
    from vmdriver.telemetry.telemetry import Telemetry

_log = logging.getLogger(__name__)
_BACKGROUND_END_S = 2.0
"""For a template's build to clean up, and for the machines that wait; what is left is swept
by the next driver.
"""

_NOBODY = ServiceManager()
_LAST_FLUSH_S = 8.0
"""For each guest, where the host is shut down: the unit's TimeoutStopSec is 20."""
_TELL_S = 1.5
"""From the begin of the end, for collectors."""


async def run_server(
    loaded: Loaded, stop: asyncio.Event, manager: ServiceManager = _NOBODY
) -> None:
    """Serve until `stop` is set. Answers GetCapabilities at once, everything else after
    recovery; then the driver counts as started for the service `manager`.
    """
    config = loaded.config
    check_path(config.gateway.bind_socket)
    check_path(admin_socket(config), "admin_socket")
    _say_what_changes_nothing(loaded)
    layout = Layout(config.driver.state_dir)
    layout.make()
    lock = StateLock(layout.lock)
    await lock.acquire()
    uids = machine_uids(config)
    claim = UidClaim(uids.first, uids.last, str(layout.root), has_claims)
    await claim.acquire()
    out_of_memory.yield_to_launcher()
    reaper.install(asyncio.get_running_loop())
    known = tls_identity(config)
    driver = await open_driver(config)
    readiness, started = Readiness(), asyncio.Event()
    accompanied = asyncio.create_task(
        manager.accompany(started), name="service manager"
    )
    use = _use_of(driver)
    servers: list[Server | Remote] = []
    streams = _streams(driver, readiness)
    try:
        await _listen(config, driver, readiness, use, known, servers)
        await serve_commands(driver, streams)
        telemetry = await _watched(driver, use, readiness)
    except ConfigError:
        await _end(driver, servers, streams, None)
        raise
    await _boot_files(config, layout)
    _say_where_and_what_is_missing(config, layout)
    try:
        await _until_stopped(driver, readiness, started, stop)
    finally:
        accompanied.cancel()
        manager.tell("STOPPING=1", "STATUS=ending; machines go on")
        if await is_host_ending():
            await driver.core.last_flush.run(_LAST_FLUSH_S)
        await _end(driver, servers, streams, telemetry)
        claim.release()
        lock.release()


async def _until_stopped(
    driver: Driver, readiness: Readiness, started: asyncio.Event, stop: asyncio.Event
) -> None:
    """Recover, and wait for `stop`, which also cuts recovery off."""
    recovery = asyncio.create_task(driver.recover())
    stopping = asyncio.create_task(stop.wait())
    ways: list[asyncio.Task[None]] = []
    try:
        await asyncio.wait({recovery, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if recovery.done():
            recovery.result()
            readiness.set(driver.manager)
            started.set()
            ways.extend(_ways_back(driver))
            _log.info(
                "ready: %d sandboxes known", len(driver.manager.sandboxes.workers)
            )
            await stopping
    finally:
        _log.info("ending; machines go on")
        for task in (recovery, stopping, *ways):
            task.cancel()
        await asyncio.wait({recovery, stopping, *ways}, timeout=0.5)


def _ways_back(driver: Driver) -> Iterator[asyncio.Task[None]]:
    """To a gateway on another host, which may not be there yet: a task that tells of it."""
    if driver.config.remote.bind_tls:
        way = WayBack(driver.settings.endpoint, driver.settings.tls)
        yield asyncio.create_task(way.tell(), name="way back")


async def _boot_files(config: Config, layout: Layout) -> None:
    """Those that were installed; on a full disk the ones before stay in use."""
    try:
        await asyncio.to_thread(provide, layout, config.guest.boot_files)
    except OSError as error:
        _log.warning("installed boot files cannot be copied: %s", error)


def _use_of(driver: Driver) -> MachineUse:
    """What its machines use, for metrics and for pictures."""
    usage = HostUsage(run_directory(driver.connection.uri))
    return MachineUse(driver.core.sandboxes, usage.of)


async def _listen(
    config: Config,
    driver: Driver,
    readiness: Readiness,
    use: MachineUse,
    known: TlsIdentity | None,
    servers: list[Server | Remote],
) -> None:
    """Serve both sockets, and the TLS listener where there is one, `known` being as whom. What
    serves is added to `servers`, one by one.
    """
    identity = Identity(
        config.gateway.driver_name,
        __version__,
        config.images.default_image,
        config.gateway.gateway_manages_lifecycle,
    )
    compute = servicer.ComputeDriver(identity, readiness, driver.broadcaster)
    pictures = Pictures(
        core=driver.core,
        use=use,
        stored_of=partial(disk_use.of_files, driver.layout.root),
        sandbox_limit=config.machines.max_sandboxes,
        memory_limit_mib=config.machines.max_committed_mem_mib,
    )
    operators = admin.Admin(readiness, driver.broadcaster, pictures.now)
    for path in (config.gateway.bind_socket, admin_socket(config)):
        driver.layout.make_way_for_socket(path)
    first = partial(servicer.register, compute)

    def second(server: Server) -> None:
        admin.register(operators, server)
        volumes.register(volumes.Volumes(readiness), server)

    servers.append(await serve(config.gateway.bind_socket, first, COMPUTE_DRIVER))
    servers.append(await serve(admin_socket(config), second, ADMIN, VOLUMES))
    if known is not None:
        address = parse_address(config.remote.bind_tls)
        clients, path = config.remote.tls_clients, tls_socket(config)
        driver.layout.make_way_for_socket(path)
        servers.append(await serve_remote(address, known, clients, path, first))


def tls_identity(config: Config) -> TlsIdentity | None:
    """As whom other hosts are served; None where they are not. ConfigError."""
    keys = tls_keys(config)
    return TlsIdentity(keys, Side.SERVER) if keys is not None else None


def _streams(driver: Driver, readiness: Readiness) -> StreamServer:
    """For operators' commands in guests."""
    made: list[Commands] = []

    async def commands() -> Commands:
        manager = await readiness.manager()
        if not made:
            find = Operations(manager).find
            made.append(Commands(find=find, programs=driver.programs))
        return made[0]

    return StreamServer(commands)


async def serve_commands(driver: Driver, streams: StreamServer) -> None:
    """Operators' in guests, where the configuration allows them. ConfigError."""
    if driver.config.guest.operator_exec:
        path = exec_socket(driver.config)
        driver.layout.make_way_for_socket(path)
        await streams.start(path)


async def _watched(
    driver: Driver, use: MachineUse, readiness: Readiness
) -> Telemetry | None:
    """The SDK is some 4 MiB (measured), which nobody pays for who does not use it."""
    config = driver.config
    if not config.driver.metrics_listen and not config.gateway.otlp_endpoint:
        return None
    from vmdriver.watching import watched

    return watched(driver, use, lambda: readiness.is_set)


async def _end(
    driver: Driver,
    servers: list[Server | Remote],
    streams: StreamServer,
    telemetry: Telemetry | None,
) -> None:
    """Whoever told us to end does not wait: each step has its time, and what it leaves behind
    is the next driver's. What is told to those who watch is sent meanwhile.
    """
    begun = time.monotonic()
    telling = asyncio.ensure_future(telemetry.close()) if telemetry else None
    await streams.close()
    driver.broadcaster.close()  # open watches would otherwise hold the server for its whole grace
    await asyncio.gather(*(server.stop(0.5) for server in servers))
    background = asyncio.ensure_future(driver.manager.close_background())
    await asyncio.wait({background}, timeout=_BACKGROUND_END_S)
    # Not asyncio.timeout: what was begun on the host cannot be cancelled, only left behind.
    await asyncio.wait({asyncio.ensure_future(driver.close())}, timeout=1.0)
    driver.charge.end_probes()
    if telling is not None:
        await asyncio.wait(
            {telling}, timeout=max(0.0, begun + _TELL_S - time.monotonic())
        )


def _say_what_changes_nothing(loaded: Loaded) -> None:
    text = "%s (%s) is accepted and changes nothing: %s"
    for key, why in WITHOUT_MEANING.items():
        if key in loaded.sources:
            _log.info(text, key, loaded.sources[key], why)


def _say_where_and_what_is_missing(config: Config, layout: Layout) -> None:
    where = config.gateway.bind_socket, config.driver.state_dir
    _log.info("serving on %s; state in %s", *where)
    guest = config.guest
    for what in missing(layout.boot, guest.supervisor_path, guest.supervisor_image):
        _log.warning("no sandbox can be started yet: %s", what)
