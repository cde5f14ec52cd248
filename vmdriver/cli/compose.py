"""Runs a composed driver until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import signal
from argparse import Namespace
from pathlib import Path

from vmdriver.cli.terminal import print_json, print_table
from vmdriver.compose.app import Composition
from vmdriver.compose.config import ComposeConfig, load, table
from vmdriver.config import hidden
from vmdriver.extensions.loader import load_extensions
from vmdriver.host import garbage, log
from vmdriver.lifecycle.extending.phases import Extension

FLAGS = (
    *("base", "bind_socket", "state_dir", "driver_name", "suffix", "log_level"),
    *("metrics_listen", "otlp_endpoint"),
    *("tls_ca", "tls_certificate", "tls_key", "tls_crl", "tls_server_name"),
)
"""Settings that are flags too; the rest is in the file."""


async def _run(config: ComposeConfig, extensions: list[Extension]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Composition(config, extensions).run(stop)
    logging.shutdown()


def config(file: Path | None, *, as_json: bool) -> int:
    """The wrapper's settings and its extensions'. The base driver's are in its own process:
    `vmdriver config` there.
    """
    found = table(load(file, {}))
    rows = [{**row, "value": hidden(row["key"], row["value"])} for row in found]
    if as_json:
        print_json(rows)
        return 0
    keys = ("owner", "key", "value", "source")
    print_table(keys, [tuple(str(row[k]) for k in keys) for row in rows])
    return 0


def compose(arguments: Namespace) -> int:
    """Ends with status 0 after SIGTERM or SIGINT; raises what keeps it from serving."""
    flags = {name: getattr(arguments, name) for name in FLAGS}
    given = {name: value for name, value in flags.items() if value is not None}
    settings = load(arguments.config, given, FLAGS)
    log.set_up(settings.log_level, settings.log_format)
    extensions = load_extensions(settings.extensions, Extension)  # type: ignore[type-abstract,unused-ignore]
    garbage.leave_out_what_stays()
    asyncio.run(_run(settings, extensions))
    return 0
