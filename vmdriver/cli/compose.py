"""Runs a composed driver until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import signal
from argparse import Namespace
from typing import Any

from vmdriver.cli.show import print_json, print_table
from vmdriver.compose.app import Composition
from vmdriver.compose.config import ComposeConfig, load, table
from vmdriver.config import hidden
from vmdriver.extensions.loader import load_extensions
from vmdriver.host import log
from vmdriver.lifecycle.phases.api import Extension

FLAGS = ("base", "bind_socket", "state_dir", "driver_name", "suffix", "log_level")
"""Settings that are flags too; the rest is in the file."""


async def _run(config: ComposeConfig, extensions: list[Extension]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Composition(config, extensions).run(stop)
    logging.shutdown()


def _show(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """The base driver's own settings are in its own process: `vmdriver config` of that one."""
    shown = [{**row, "value": hidden(row["key"], row["value"])} for row in rows]
    if as_json:
        print_json(shown)
        return
    keys = ("owner", "key", "value", "source")
    print_table(keys, [tuple(str(row[k]) for k in keys) for row in shown])


def compose(arguments: Namespace) -> int:
    """Ends with status 0 after SIGTERM or SIGINT; raises what keeps it from serving."""
    flags = {name: getattr(arguments, name) for name in FLAGS}
    given = {name: value for name, value in flags.items() if value is not None}
    config = load(arguments.config, given)
    if arguments.show_config:
        _show(table(config, given), as_json=arguments.json)
        return 0
    log.set_up(config.log_level, config.log_format)
    extensions = load_extensions(config.extensions, Extension)  # type: ignore[type-abstract,unused-ignore]
    asyncio.run(_run(config, extensions))
    return 0
