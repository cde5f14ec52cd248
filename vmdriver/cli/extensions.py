"""extensions, schema: what extensions can do on a running driver, and what they hold."""

from __future__ import annotations

import argparse
from typing import Any

from vmdriver.cli.terminal import print_json, print_table
from vmdriver.config import Loaded
from vmdriver.config.views import admin_socket
from vmdriver.errors import NotFound
from vmdriver.extensions.loader import load_extensions, participants
from vmdriver.lifecycle.control.checks import driver_config_schema
from vmdriver.lifecycle.extending.activation import parameter_schemas
from vmdriver.lifecycle.extending.participants import Registered
from vmdriver.service import admin_client


def extensions(loaded: Loaded, arguments: argparse.Namespace) -> int:
    """ls, describe, orphans."""
    found = admin_client.extension_capabilities(admin_socket(loaded.config))
    match arguments.action:
        case "ls":
            _list(found, as_json=arguments.json)
        case "describe":
            named = [e for e in found["extensions"] if e["name"] == arguments.name]
            if not named:
                raise NotFound(f"no extension {arguments.name!r} is loaded")
            print_json(named[0])
        case _:
            _orphans(found, as_json=arguments.json)
    return 0


def _list(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    base = found["base_driver_name"]
    print(f"driver {found['driver_name']}{f' in front of {base}' if base else ''}")
    print(f"phases: {', '.join(found['phases'])}")
    if found["hooks"]:
        print(f"hooks: {', '.join(found['hooks'])}")
    print()
    rows = [
        (
            extension["name"],
            extension["version"] or "-",
            extension["label_key"] or "every sandbox",
            str(len(extension["sandboxes"])),
            extension["kind"],
            ", ".join(extension["phases"]),
        )
        for extension in found["extensions"]
    ]
    columns = ("name", "version", "asked for by", "sandboxes", "kind", "called in")
    print_table(columns, rows)


def _orphans(found: dict[str, Any], *, as_json: bool) -> None:
    orphans = [held for held in found["held"] if held["orphan"]]
    if as_json:
        print_json(orphans)
        return
    rows = [
        (h["sandbox"], h["extension"], h["kind"], h["name"], h["problem"] or "-")
        for h in orphans
    ]
    print_table(("sandbox", "extension", "kind", "name", "problem"), rows)


def schema(loaded: Loaded, _arguments: argparse.Namespace) -> int:
    """JSON Schema of the VM driver's template.driver_config; no driver need run."""
    found: list[Registered] = load_extensions(
        loaded.config.extending.extensions, Registered
    )
    allowed = frozenset(loaded.config.extending.request_parameters)
    print_json(driver_config_schema(parameter_schemas(participants(found), allowed)))
    return 0
