"""Arguments of both commands. Each command's work is in a module of its own."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vmdriver import __version__
from vmdriver.cli import (
    commands_arguments,
    compose_arguments,
    demo,
    host_arguments,
    look_arguments,
)
from vmdriver.cli.commands_arguments import SANDBOX
from vmdriver.cli.doctor import command as doctor_command
from vmdriver.cli.terminal import indented, shown_as_text
from vmdriver.config import SETTINGS, Loaded, load, quiet_libraries
from vmdriver.errors import DriverError
from vmdriver.host import garbage
from vmdriver.host.packages import way_to_module

_log = logging.getLogger(__name__)
_SETTINGS_TOO = (
    "Every setting of the driver is an option, too, such as --state-dir or --bind-socket, for one "
    "that was started with others than the file has: vmdriver serve --help lists them, vmdriver "
    "config prints those in force."
)
_SWITCHES = {name for name, field in SETTINGS.items() if field.annotation is bool}


EXIT_STATUS = (
    "Ends with 0: done; 1: something is wrong, and was said; 2: it could not be done; 130: it was "
    "interrupted. doctor also ends with 3, exec as the command that it runs: see there."
)
"""Of every command."""


def _add_settings(parser: argparse.ArgumentParser, *, shown: bool) -> None:
    """A flag for every setting, named as the gateway names them. `shown`: in --help, too."""
    group: argparse._ActionsContainer = parser
    if shown:
        text = "which the file and the environment can say, too"
        group = parser.add_argument_group("settings", text)
    for name, field in SETTINGS.items():
        if name == "extension":
            continue  # tables belong into the file
        flag = "--" + name.replace("_", "-")
        text = (field.description or "") if shown else argparse.SUPPRESS
        if name in _SWITCHES:
            group.add_argument(
                flag,
                dest=f"set_{name}",
                nargs="?",
                const="true",
                metavar="BOOL",
                help=text,
            )
        else:
            group.add_argument(flag, dest=f"set_{name}", metavar="VALUE", help=text)


def _load(arguments: argparse.Namespace) -> Loaded:
    prefix = "set_"
    flags = {
        k.removeprefix(prefix): v
        for k, v in vars(arguments).items()
        if k.startswith(prefix) and v is not None
    }
    return load(file=arguments.config, flags=flags)


def _common(*, shown: bool = True) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config",
        type=Path,
        help="TOML file; default /etc/vmdriver/config.toml if it is there",
    )
    _add_settings(common, shown=shown)
    return common


def _leaf(
    commands: Any, common: argparse.ArgumentParser, name: str, text: str
) -> argparse.ArgumentParser:
    """A command that takes every setting, and prints JSON if asked to."""
    sub: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        parents=[common],
        allow_abbrev=False,
        epilog=None if name == "serve" else _SETTINGS_TOO,
    )
    if name not in {"serve", "stop-all", "top", "exec"}:
        sub.add_argument("--json", action="store_true", help="print JSON for machines")
    return sub


def parser() -> argparse.ArgumentParser:
    """Every command with its arguments; manual page and completion are made of it, too."""
    parser = argparse.ArgumentParser(
        prog="vmdriver",
        description="OpenShell compute driver: every sandbox is a virtual machine.",
        epilog=f"vmdriver COMMAND --help says more of one. {EXIT_STATUS}",
    )
    parser.add_argument(
        "--version", action="version", version=f"vmdriver {__version__}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = _common(shown=False)
    text = "print the effective settings, whose they are and where each comes from"
    one = _leaf(commands, common, "config", text)
    one.add_argument(
        "--compose",
        action="store_true",
        help="those of a composed driver (its --config, or /etc/vmdriver/compose.toml)",
    )
    _leaf(commands, _common(), "serve", "run the driver on its socket")
    text = "stop every sandbox, as before the driver is removed from a host"
    _leaf(commands, common, "stop-all", text)
    doctor_command.add_arguments(_leaf(commands, common, "doctor", doctor_command.TEXT))
    demo.add(commands)
    look_arguments.add(commands, partial(_leaf, common=common))
    text = "say what a reason means, and what to do about it; all without one"
    one = commands.add_parser("explain", help=text, description=text)
    text = "as a condition, an event or an error has it"
    one.add_argument("reason", nargs="?", default="", metavar="REASON", help=text)
    one.add_argument("--json", action="store_true", help="print JSON for machines")
    text = (
        "print the launch plan of a request (JSON file, - for standard input); "
        "does nothing"
    )
    one = _leaf(commands, common, "plan", text)
    one.add_argument("request", help="a DriverSandbox message as JSON")
    text = "remove host objects that carry our mark and belong to no sandbox"
    one = _leaf(commands, common, "sweep", text)
    one.add_argument("--dry-run", action="store_true", help="only list them")
    _add_memory_commands(commands, common)
    host_arguments.add(commands, partial(_leaf, common=common))
    _add_extension_commands(commands, common)
    compose_arguments.add(commands)
    return parser


def _add_extension_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    text = "list extensions of a running driver, what they may do and what they hold"
    group = commands.add_parser("extensions", help=text, description=text)
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")
    _leaf(
        actions, common, "ls", "list them; --admin-socket names another driver's socket"
    )
    one = _leaf(actions, common, "describe", "show one, with its schemas")
    one.add_argument("name", help="the extension's name")
    _leaf(actions, common, "orphans", "list what should have been given back by now")
    text = "write a package with an extension and a test that passes"
    one = actions.add_parser("new", help=text, description=text)
    one.add_argument("name", help="small letters, digits, hyphens")
    one.add_argument(
        "--in", dest="parent", type=Path, default=Path(), help="default: here"
    )
    text = "print the JSON Schema of a request's template.driver_config"
    _leaf(commands, common, "schema", text)


def _add_memory_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    one = _leaf(commands, common, "suspend", "put a sandbox away with its memory")
    one.add_argument("id", help=SANDBOX)
    text = "bring a suspended (or stopped) sandbox back"
    one = _leaf(commands, common, "resume", text)
    one.add_argument("id", help=SANDBOX)
    one.add_argument(
        "--cold", action="store_true", help="drop the memory and boot from the disk"
    )
    text = "take, list, show, remove and return to snapshots"
    group = commands.add_parser("snapshot", help=text, description=text)
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, text in (
        ("create", "take a snapshot; the sandbox goes on"),
        ("ls", "list a sandbox's snapshots"),
        ("show", "show one"),
        ("rm", "remove one"),
        ("restore", "make the sandbox what it was then; what it is now is lost"),
    ):
        one = _leaf(actions, common, action, text)
        one.add_argument("id", help=SANDBOX)
        if action != "ls":
            one.add_argument("name", help="the snapshot's name")
        if action == "create":
            one.add_argument(
                "--disk-only", action="store_true", help="without the memory"
            )
        if action in {"create", "restore"}:
            meaning = {
                "create": "with what is on its volumes; with --disk-only alone",
                "restore": "its volumes too, as the snapshot has them: all or none",
            }[action]
            one.add_argument("--volumes", action="store_true", help=meaning)
    text = "list and remove templates of booted guests"
    group = commands.add_parser("template", help=text, description=text)
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")
    _leaf(actions, common, "ls", "list them")
    one = _leaf(actions, common, "rm", "remove one; it is built again when needed")
    one.add_argument("key", help="as `ls` shows it")


def _dispatch(arguments: argparse.Namespace, loaded: Loaded) -> int:
    commands_arguments.check(arguments)
    if arguments.command == "serve":
        with garbage.none_meanwhile():
            from vmdriver.cli.serve import serve

        return serve(loaded, partial(_load, arguments))
    if arguments.command == "doctor":
        return doctor_command.run(loaded, arguments)
    if arguments.command == "plan":
        from vmdriver.cli.plan import plan

        return plan(loaded, arguments.request)
    if arguments.command in {"ls", "inspect", "net", "top"}:
        return _look(arguments, loaded)
    if arguments.command == "stop-all":
        from vmdriver.cli.stop_all import stop_all

        return stop_all(loaded)
    if arguments.command in {"extensions", "schema"}:
        from vmdriver.cli import extensions

        return int(getattr(extensions, arguments.command)(loaded, arguments))
    if arguments.command in {"images", "volume"}:
        from vmdriver.cli import images, volumes

        of_images = arguments.command == "images"
        return (images.images if of_images else volumes.volume)(loaded, arguments)
    if arguments.command == "exec" or getattr(arguments, "interactive", False):
        from vmdriver.cli import commands as operators

        return operators.run(loaded, arguments)
    if arguments.command in {"suspend", "resume", "snapshot", "template"}:
        from vmdriver.cli import memory

        return int(getattr(memory, arguments.command)(loaded, arguments))
    return _without_driver(arguments, loaded)


def _without_driver(arguments: argparse.Namespace, loaded: Loaded) -> int:
    """sweep, devices, config, console."""
    if arguments.command == "devices":
        from vmdriver.cli.devices import devices

        return devices(loaded.config, as_json=arguments.json)
    if arguments.command == "sweep":
        from vmdriver.cli.sweep import sweep

        return sweep(loaded, dry_run=arguments.dry_run, as_json=arguments.json)
    from vmdriver.cli import show

    if arguments.command == "config":
        return show.config(loaded, as_json=arguments.json)
    return show.console(
        loaded,
        arguments.id,
        follow=arguments.follow,
        raw=arguments.raw,
        as_json=arguments.json,
    )


def _look(arguments: argparse.Namespace, loaded: Loaded) -> int:
    """What needs none of the driver's parts."""
    if arguments.command == "top":
        from vmdriver.cli.top import top

        return top(loaded, arguments.interval)
    if arguments.command == "net":
        from vmdriver.cli.net import net

        return net(loaded, arguments)
    from vmdriver.cli import inspect, ls

    as_json = arguments.json
    if arguments.command == "ls":
        return (ls.ls_watch if arguments.watch else ls.ls)(loaded, as_json=as_json)
    look = inspect.timing if arguments.timing else inspect.inspect
    return look(loaded, arguments.id, as_json=as_json)


def _reported(work: Any, failed: int = 2) -> int:
    """What the process ends with; `failed`: where that could not be done."""
    quiet_libraries()
    try:
        return int(work())
    except DriverError as error:
        print(f"vmdriver: {indented(error.text())}", file=sys.stderr)
        if error.detail:
            print(f"  {indented(error.detail)}", file=sys.stderr)
        return failed
    except BrokenPipeError:
        return 0
    except ImportError as error:
        way_out = way_to_module(error)
        print(f"vmdriver: it cannot be loaded: {error}: {way_out}", file=sys.stderr)
        _log.debug("where that was", exc_info=True)
        return failed
    except OSError as error:
        # A full or a read-only disk, a missing right: what and where, for whoever typed it.
        where = f"{error.filename}: " if error.filename else ""
        print(f"vmdriver: {where}{error.strerror or error}", file=sys.stderr)
        _log.debug("where that was", exc_info=True)
        return failed
    except KeyboardInterrupt:
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """The vmdriver command."""
    with shown_as_text():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.command == "compose":
        from vmdriver.cli.compose import compose

        return _reported(lambda: compose(arguments))
    if arguments.command == "config" and arguments.compose:
        from vmdriver.cli.compose import config

        return _reported(lambda: config(arguments.config, as_json=arguments.json))
    if arguments.command == "doctor" and arguments.compose:
        return _reported(lambda: doctor_command.run_compose(arguments))
    if arguments.command == "explain":
        from vmdriver.cli.explain import explain

        return _reported(lambda: explain(arguments.reason, as_json=arguments.json))
    if arguments.command == "demo":
        return _reported(lambda: demo.demo(arguments))
    if arguments.command == "extensions" and arguments.action == "new":
        from vmdriver.cli.new_extension import command

        return _reported(lambda: command(arguments.name, arguments.parent))
    failed = commands_arguments.FAILED if arguments.command == "exec" else 2
    return _reported(lambda: _dispatch(arguments, _load(arguments)), failed)


def main_gateway_launched(argv: Sequence[str] | None = None) -> int:
    """The openshell-driver-vm command: what a stock gateway spawns from its driver_dir."""
    parser = argparse.ArgumentParser(
        prog="openshell-driver-vm",
        parents=[_common()],
        allow_abbrev=False,
        description="vmdriver, launched by a gateway",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"openshell-driver-vm (vmdriver) {__version__}",
    )

    def work() -> int:
        with garbage.none_meanwhile():
            from vmdriver.cli.serve import serve

        return serve(_load(arguments), partial(_load, arguments))

    with shown_as_text():
        arguments = parser.parse_args(argv)
        return _reported(work)


if __name__ == "__main__":
    sys.exit(main())
