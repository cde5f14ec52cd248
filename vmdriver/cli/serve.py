"""Runs the driver until it is told to end."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable

from vmdriver.cli.reload import reload
from vmdriver.config import Loaded
from vmdriver.config.service_manager import service_manager
from vmdriver.errors import ConfigError
from vmdriver.host import garbage, log
from vmdriver.host.launcher_watch import LauncherWatch
from vmdriver.host.service_manager import ServiceManager
from vmdriver.serving import run_server


class _Reloads:
    """On SIGHUP. A terminal that is closed sends the same, and still ends the driver that was
    started there.
    """

    def __init__(
        self, loaded: Loaded, again: Callable[[], Loaded], manager: ServiceManager
    ) -> None:
        self._loaded, self._again, self._manager = loaded, again, manager

    def listen(self) -> None:
        if not sys.stderr.isatty():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)

    def _reload(self) -> None:
        self._manager.reloading()
        try:
            # What is in force stays the first one's: that is what the driver was made of.
            reload(self._loaded, self._again)
        finally:
            self._manager.reloaded()


async def _run(loaded: Loaded, again: Callable[[], Loaded]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    launcher = loaded.config.gateway.expected_peer_pid
    if launcher is not None:
        LauncherWatch(launcher, os.getpid()).start(stop, os._exit)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    manager = service_manager()
    if manager.watchdog_s:
        faulthandler.enable()  # where each thread was, when the watchdog sends SIGABRT
    _Reloads(loaded, again, manager).listen()
    await run_server(loaded, stop, manager)
    # A call to libvirt may hang with its machine, and its thread with it; the ledger knows of it.
    # Whoever told us to end does not wait: a gateway kills after 5 s.
    logging.shutdown()
    os._exit(0)


def serve(loaded: Loaded, again: Callable[[], Loaded]) -> int:
    """Ends the process with status 0 after SIGTERM, SIGINT or the death of who launched
    it; raises what keeps it from serving. `again` reads the configuration anew, at a SIGHUP.
    """
    if os.geteuid() != 0:
        raise ConfigError(
            "the driver must run as root: taps, firewall tables and QEMU's user need it",
            resolution="start it as root",
        )
    log.set_up(loaded.config.driver.log_level, loaded.config.driver.log_format)
    garbage.leave_out_what_stays()
    asyncio.run(_run(loaded, again))
    return 0
