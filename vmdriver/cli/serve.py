"""Runs the driver until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

from vmdriver.config import Loaded
from vmdriver.errors import ConfigError
from vmdriver.host import garbage, log
from vmdriver.host.launcher_watch import LauncherWatch
from vmdriver.serving import run_server


async def _run(loaded: Loaded) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    launcher = loaded.config.gateway.expected_peer_pid
    if launcher is not None:
        LauncherWatch(launcher, os.getpid()).start(stop, os._exit)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run_server(loaded, stop)
    # A call to libvirt may hang with its machine, and its thread with it; the ledger knows of it.
    # Whoever told us to end does not wait: a gateway kills after 5 s.
    logging.shutdown()
    os._exit(0)


def serve(loaded: Loaded) -> int:
    """Ends the process with status 0 after SIGTERM, SIGINT or the death of who launched
    it; raises what keeps it from serving.
    """
    if os.geteuid() != 0:
        raise ConfigError(
            "the driver must run as root: taps, firewall tables and QEMU's user need it",
            resolution="start it as root",
        )
    log.set_up(loaded.config.driver.log_level, loaded.config.driver.log_format)
    garbage.leave_out_what_stays()
    asyncio.run(_run(loaded))
    return 0
