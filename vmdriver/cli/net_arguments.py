"""What `vmdriver net` takes."""

from __future__ import annotations

import argparse

from vmdriver.cli.commands_arguments import SANDBOX

TEXT = (
    "explain what a sandbox reaches on the network and why, rule by rule; or try one destination "
    "against the rules that are loaded for it"
)


def add(one: argparse.ArgumentParser) -> None:
    """Its own."""
    one.add_argument("id", help=SANDBOX)
    one.add_argument(
        "destination",
        nargs="?",
        default="",
        metavar="HOST:PORT",
        help="name or IPv4 address, with a TCP port, or a UDP port as 53/udp; 1 if the sandbox "
        "does not reach it",
    )
