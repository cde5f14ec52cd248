"""Arguments of both commands. Each command's work is in a module of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmdriver import __version__
from vmdriver.config import Loaded, load, quiet_libraries
from vmdriver.config_model import Config
from vmdriver.errors import DriverError

_SWITCHES = {
    name for name, field in Config.model_fields.items() if field.annotation is bool
}


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for every setting, named as the gateway names them."""
    for name, field in Config.model_fields.items():
        if name == "extension":
            continue  # tables belong into the file
        flag = "--" + name.replace("_", "-")
        if name in _SWITCHES:
            parser.add_argument(
                flag,
                dest=f"set_{name}",
                nargs="?",
                const="true",
                metavar="BOOL",
                help=field.description,
            )
        else:
            parser.add_argument(
                flag, dest=f"set_{name}", metavar="VALUE", help=field.description
            )


def _load(arguments: argparse.Namespace) -> Loaded:
    prefix = "set_"
    flags = {
        k.removeprefix(prefix): v
        for k, v in vars(arguments).items()
        if k.startswith(prefix) and v is not None
    }
    return load(file=arguments.config, flags=flags)


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config",
        type=Path,
        help="TOML file; default /etc/vmdriver/config.toml if it is there",
    )
    _add_settings(common)
    return common


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vmdriver",
        description="OpenShell compute driver: every sandbox is a virtual machine.",
    )
    parser.add_argument(
        "--version", action="version", version=f"vmdriver {__version__}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = _common()

    def command(name: str, text: str, *, json: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, parents=[common], allow_abbrev=False
        )
        if json:
            sub.add_argument(
                "--json", action="store_true", help="print JSON for machines"
            )
        return sub

    command("serve", "run the driver on its socket", json=False)
    command("config", "print the effective settings and where each comes from")
    command("doctor", "check this host and say what to do about what is wrong")
    command("ls", "list the sandboxes of the running driver")
    inspect = command(
        "inspect",
        "show all that is known of one sandbox; works without a running driver",
    )
    inspect.add_argument("id", help="sandbox id")
    console = command("console", "print a sandbox's console")
    console.add_argument("id", help="sandbox id")
    console.add_argument(
        "--follow", "-f", action="store_true", help="go on printing what comes"
    )
    plan = command(
        "plan",
        "print the launch plan of a request (JSON file, - for standard input); "
        "does nothing",
    )
    plan.add_argument("request", help="a DriverSandbox message as JSON")
    sweep = command(
        "sweep", "remove host objects that carry our mark and belong to no sandbox"
    )
    sweep.add_argument("--dry-run", action="store_true", help="only list them")
    return parser


def _dispatch(arguments: argparse.Namespace, loaded: Loaded) -> int:
    if arguments.command == "serve":
        from vmdriver.cli.serve import serve

        return serve(loaded)
    if arguments.command == "doctor":
        from vmdriver.cli.doctor import doctor

        return doctor(loaded, as_json=arguments.json)
    if arguments.command == "plan":
        from vmdriver.cli.plan import plan

        return plan(loaded, arguments.request)
    from vmdriver.cli import show

    commands: dict[str, Any] = {
        "config": lambda: show.config(loaded, as_json=arguments.json),
        "ls": lambda: show.ls(loaded, as_json=arguments.json),
        "inspect": lambda: show.inspect(loaded, arguments.id, as_json=arguments.json),
        "console": lambda: show.console(
            loaded, arguments.id, follow=arguments.follow, as_json=arguments.json
        ),
        "sweep": lambda: show.sweep(
            loaded, dry_run=arguments.dry_run, as_json=arguments.json
        ),
    }
    return int(commands[arguments.command]())


def _reported(work: Any) -> int:
    quiet_libraries()
    try:
        return int(work())
    except DriverError as error:
        print(f"vmdriver: {error.text()}", file=sys.stderr)
        if error.detail:
            print(f"  {error.detail}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """The vmdriver command."""
    arguments = _parser().parse_args(argv)
    return _reported(lambda: _dispatch(arguments, _load(arguments)))


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
    arguments = parser.parse_args(argv)

    def work() -> int:
        from vmdriver.cli.serve import serve

        return serve(_load(arguments))

    return _reported(work)


if __name__ == "__main__":
    sys.exit(main())
