"""What `vmdriver doctor` takes, and which of its works that asks for."""

from __future__ import annotations

import argparse
from pathlib import Path

from vmdriver.config import Loaded
from vmdriver.errors import ConfigError

TEXT = (
    "check this host and say what is to be done, in order; ends with 0: nothing, 1: machines "
    "cannot be started, 3: they can, and something is to be looked at, 2: it could not be asked"
)
_OF_A_BUNDLE = ("sandbox", "console", "log")


def add_arguments(one: argparse.ArgumentParser) -> None:
    """Its own."""
    instead = one.add_mutually_exclusive_group()
    instead.add_argument(
        "--compose",
        action="store_true",
        help="instead, check a composed driver's base and the way to it (its --config, or "
        "/etc/vmdriver/compose.toml)",
    )
    instead.add_argument(
        "--attack",
        nargs="?",
        const="",
        metavar="ID",
        help="instead, try from that sandbox's machine, or from each that runs, what an escaped "
        "QEMU could do, and flush its firewall: 1 if anything got further than it should",
    )
    instead.add_argument(
        "--bundle",
        type=Path,
        metavar="FILE",
        help="instead, write a report for whoever is to find a fault (.tar.gz, mode 0600): "
        "versions, settings, records, logs, nothing secret; its list is printed first",
    )
    one.add_argument(
        "--sandbox", default="", metavar="ID", help="with --bundle: of that sandbox"
    )
    one.add_argument(
        "--console",
        action="store_true",
        help="with --bundle: with what guests printed, which may hold secrets",
    )
    one.add_argument(
        "--log",
        type=Path,
        metavar="FILE",
        help="with --bundle: the driver's log, where it is neither a file of the one that runs "
        "nor in the journal",
    )


def _check(arguments: argparse.Namespace) -> None:
    """ConfigError for what would be ignored."""
    if arguments.bundle is None:
        for name in _OF_A_BUNDLE:
            if getattr(arguments, name):
                raise ConfigError(f"--{name} goes with --bundle")


def run_compose(arguments: argparse.Namespace) -> int:
    """What the process ends with."""
    from vmdriver.cli.doctor.base_findings import doctor_of_compose

    _check(arguments)
    return doctor_of_compose(arguments.config, as_json=arguments.json)


def run(loaded: Loaded, arguments: argparse.Namespace) -> int:
    """What the process ends with."""
    _check(arguments)
    if arguments.bundle is not None:
        from vmdriver.cli.bundle import bundle
        from vmdriver.cli.bundle.contents import Wanted

        wanted = Wanted(arguments.sandbox, arguments.console)
        path, log, as_json = arguments.bundle, arguments.log, arguments.json
        return bundle(loaded, path, wanted, log, shown_as_json=as_json)
    if arguments.attack is not None:
        from vmdriver.cli.doctor.attack import attack

        return attack(loaded, arguments.attack, as_json=arguments.json)
    from vmdriver.cli.doctor.showing import not_loaded, shown

    try:
        from vmdriver.cli.doctor.examination import doctor
    except ImportError as error:
        return shown(not_loaded(error), as_json=arguments.json)
    return doctor(loaded, as_json=arguments.json)
