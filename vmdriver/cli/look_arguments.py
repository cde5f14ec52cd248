"""Arguments of the commands that look at all sandboxes, or at one, or go into one."""

from __future__ import annotations

import argparse
import math
from typing import Any

from vmdriver.cli import commands_arguments, net_arguments
from vmdriver.cli.commands_arguments import SANDBOX
from vmdriver.cli.host_arguments import Leaf


def add(commands: Any, leaf: Leaf) -> None:
    """All of them."""
    text = "list the sandboxes of the running driver"
    one = leaf(commands, name="ls", text=text)
    one.add_argument("--watch", "-w", action="store_true", help="go on, as they change")
    text = "a screen with the sandboxes of the running driver, and keys for what is done with them"
    one = leaf(commands, name="top", text=text)
    one.add_argument(
        "--interval",
        type=_interval,
        default=2.0,
        metavar="SECONDS",
        help="between two looks; 2 by default, 1 at least",
    )
    text = "show all that is known of one sandbox; works without a running driver"
    one = leaf(commands, name="inspect", text=text)
    one.add_argument("id", help=SANDBOX)
    one.add_argument(
        "--timing",
        action="store_true",
        help="instead, where the time of its last start, and of its snapshots, went, step by step",
    )
    _add_console(leaf(commands, name="console", text=_CONSOLE))
    net_arguments.add(leaf(commands, name="net", text=net_arguments.TEXT))
    commands_arguments.add_to_exec(
        leaf(commands, name="exec", text=commands_arguments.TEXT)
    )


_CONSOLE = (
    "print what a sandbox's guest has printed; works without a running driver; with -i it is a "
    "shell in there instead"
)


def _add_console(one: argparse.ArgumentParser) -> None:
    one.add_argument("id", help=SANDBOX)
    one.add_argument(
        "--follow", "-f", action="store_true", help="go on printing what comes"
    )
    one.add_argument(
        "--raw",
        action="store_true",
        help="the guest's own bytes: what they do to a terminal, they do",
    )
    commands_arguments.add_to_console(one)


def _interval(text: str) -> float:
    """Of seconds that a driver can be asked for."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 1 <= found <= 3600:  # no number is not, either
        raise argparse.ArgumentTypeError(f"{text!r} is not within 1 and 3600 seconds")
    return found
