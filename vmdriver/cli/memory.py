"""suspend, resume, snapshot, template: what an operator does with kept memory."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from vmdriver.cli.show import mib, print_json, print_table
from vmdriver.cli.terminal import indented
from vmdriver.config import Loaded
from vmdriver.config.views import admin_socket
from vmdriver.errors import NotFound
from vmdriver.service import admin_client


def _teller(as_json: bool) -> admin_client.Tell:
    def tell(reason: str, message: str, warning: bool) -> None:
        if as_json:
            event = {"reason": reason, "message": message, "warning": warning}
            print(json.dumps(event), flush=True)
        else:
            mark = "! " if warning else ""
            print(f"{mark}{reason}: {indented(message)}", file=sys.stderr, flush=True)

    return tell


def _show_snapshots(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [
        (
            entry["name"],
            entry["created"],
            mib(entry["memory_bytes"]) if entry["memory"] else "-",
            mib(entry["disk_bytes"]),
            str(len(entry["layers"])),
        )
        for entry in found
    ]
    print_table(("name", "created", "memory", "disk", "layers"), rows)


def snapshot(loaded: Loaded, arguments: argparse.Namespace) -> int:
    """create, ls, show, rm, restore."""
    path, sandbox = admin_socket(loaded.config), arguments.id
    tell, as_json = _teller(arguments.json), arguments.json
    match arguments.action:
        case "create":
            disk_only = arguments.disk_only
            admin_client.create_snapshot(path, sandbox, arguments.name, disk_only, tell)
        case "restore":
            admin_client.restore_snapshot(path, sandbox, arguments.name, tell)
        case "rm":
            admin_client.delete_snapshot(path, sandbox, arguments.name)
        case "ls":
            _show_snapshots(admin_client.list_snapshots(path, sandbox), as_json)
        case _:
            found = admin_client.list_snapshots(path, sandbox)
            named = [entry for entry in found if entry["name"] == arguments.name]
            if not named:
                raise NotFound(f"sandbox {sandbox} has no snapshot {arguments.name!r}")
            print_json(named[0])
    return 0


def template(loaded: Loaded, arguments: argparse.Namespace) -> int:
    """ls, rm."""
    path = admin_socket(loaded.config)
    if arguments.action == "rm":
        admin_client.delete_template(path, arguments.key)
        return 0
    found = admin_client.list_templates(path)
    if arguments.json:
        print_json(found)
        return 0
    rows = [
        (
            entry["key"],
            entry["image_digest"][:19],
            f"{entry['vcpus']} x {entry['memory_mib']} MiB",
            mib(entry["stored_bytes"]),
            str(entry["waiting"]),
            entry["workspace"] or "all",
        )
        for entry in found
    ]
    print_table(("key", "image", "shape", "stored", "waiting", "workspace"), rows)
    return 0


def suspend(loaded: Loaded, arguments: argparse.Namespace) -> int:
    """Returns when the sandbox is suspended."""
    path = admin_socket(loaded.config)
    admin_client.suspend(path, arguments.id, _teller(arguments.json))
    return 0


def resume(loaded: Loaded, arguments: argparse.Namespace) -> int:
    """Returns when the sandbox runs."""
    path = admin_socket(loaded.config)
    admin_client.resume(path, arguments.id, arguments.cold, _teller(arguments.json))
    return 0
