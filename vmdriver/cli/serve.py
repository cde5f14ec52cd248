"""Runs the driver until it is told to end."""

from __future__ import annotations

import asyncio
import signal

from vmdriver.app import run_server
from vmdriver.config import Loaded
from vmdriver.host import log


async def _run(loaded: Loaded) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run_server(loaded, stop)


def serve(loaded: Loaded) -> int:
    """0 after SIGTERM or SIGINT."""
    log.set_up(loaded.config.log_level, loaded.config.log_format)
    asyncio.run(_run(loaded))
    return 0
