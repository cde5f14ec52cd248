"""What `vmdriver exec` and `vmdriver console -i` take."""

from __future__ import annotations

import argparse

from vmdriver.errors import ConfigError

SANDBOX = "sandbox id, or a unique name"
FAILED = 125
"""What exec ends with where the fault is not the command's, as of env(1) and timeout(1)."""
TEXT = (
    "run a command in a sandbox's machine, past its supervisor, and end with its exit code; what "
    "it has begun ends with it. Off by default: it takes operator_exec. Who runs what is noted, in "
    "the log and as an event that the gateway is told, every word of it: give what is secret as "
    "input"
)
ENDS = (
    "the command's exit code; 128 and a signal's number where one ended it; 127: there "
    f"is no such command; 126: it cannot be run; {FAILED}: it was not run, or was cut off (by "
    "--timeout, the machine's or the driver's end), and why was said; 130: you pressed Ctrl-C, "
    "which ends it in the guest, too."
)
"""With what exec ends."""


def add_to_console(one: argparse.ArgumentParser) -> None:
    """Its own."""
    one.add_argument(
        "--interactive",
        "-i",
        action="store_true",
        help="instead, a shell in the machine on this terminal; Ctrl-] ends it (operator_exec)",
    )
    one.add_argument(
        "--root",
        action="store_true",
        help="with -i: as the guest's root, not as sandbox",
    )


def check(arguments: argparse.Namespace) -> None:
    """Nothing that was asked for is ignored. ConfigError."""
    if arguments.command != "console":
        return
    chosen = vars(arguments)
    if not arguments.interactive:
        if arguments.root:
            raise ConfigError("console takes --root with -i only")
        return
    for name in ("json", "follow", "raw"):
        if chosen[name]:
            raise ConfigError(
                f"console -i takes no --{name}: it is a shell on a terminal",
                resolution="leave one of them out; exec runs a program without a terminal",
            )


def add_to_exec(one: argparse.ArgumentParser) -> None:
    """Its own."""
    one.epilog = f"Ends with {ENDS} {one.epilog}"
    one.add_argument("id", help=SANDBOX)
    one.add_argument("words", nargs="+", metavar="WORD", help="behind --")
    one.add_argument(
        "--root", action="store_true", help="as the guest's root, not as sandbox"
    )
    one.add_argument(
        "--timeout",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="then it is ended; 0: whenever it ends",
    )
    one.add_argument(
        "--raw", action="store_true", help="its own bytes also to a terminal"
    )
