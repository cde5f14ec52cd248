"""suspend, resume, snapshot, template: what an operator does with kept memory."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from vmdriver.cli.page import Section, rendered
from vmdriver.cli.progress import Step, shown_progress
from vmdriver.cli.terminal import print_json, print_table, show
from vmdriver.cli.wording import ago, moment, size
from vmdriver.config import Loaded
from vmdriver.config.views import admin_socket
from vmdriver.errors import NotFound
from vmdriver.model.record import utc_now
from vmdriver.service import admin_client


@contextmanager
def _told(what: str, as_json: bool) -> Iterator[admin_client.Tell]:
    """While `what` is under way: takes its events."""
    if as_json:
        yield _tell_json
        return
    with shown_progress(what) as tell:
        yield lambda *event: tell(Step(*event))


def _tell_json(reason: str, message: str, warning: bool) -> None:
    event = {"reason": reason, "message": message, "warning": warning}
    print(json.dumps(event), flush=True)


def _show_snapshots(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [
        (
            entry["name"],
            ago(datetime.fromisoformat(entry["created"]), utc_now()),
            size(entry["memory_bytes"]) if entry["memory"] else "-",
            size(entry["disk_bytes"]),
            size(stored) if (stored := _volume_bytes(entry)) is not None else "-",
            str(len(entry["layers"])),
        )
        for entry in found
    ]
    print_table(("name", "created", "memory", "disk", "volumes", "layers"), rows)


def _volume_bytes(entry: dict[str, Any]) -> int | None:
    """None: it has no volumes."""
    found = [int(volume["stored_bytes"]) for volume in entry["volumes"]]
    return sum(found) if found else None


def _show_snapshot(entry: dict[str, Any]) -> None:
    when = moment(datetime.fromisoformat(entry["created"]), utc_now())
    memory = size(entry["memory_bytes"]) if entry["memory"] else "none: disk only"
    rows = [("created", when), ("memory", memory), ("disk", size(entry["disk_bytes"]))]
    rows += [
        (
            "volume",
            f"{v['name']}, {v['size_mib']} MiB, {size(v['stored_bytes'])} stored",
        )
        for v in entry["volumes"]
    ]
    rows += [("layer", path) for path in entry["layers"]]
    show(rendered([Section(entry["name"], rows)]))


def snapshot(loaded: Loaded, arguments: argparse.Namespace) -> int:
    """create, ls, show, rm, restore."""
    path, sandbox = admin_socket(loaded.config), arguments.id
    as_json = arguments.json
    match arguments.action:
        case "create":
            name, only, too = arguments.name, arguments.disk_only, arguments.volumes
            with _told(f"taking snapshot {name} of {sandbox}", as_json) as tell:
                create = admin_client.create_snapshot
                create(path, sandbox, name, only, tell, volumes=too)
        case "restore":
            name = arguments.name
            with _told(f"returning {sandbox} to snapshot {name}", as_json) as tell:
                restore, too = admin_client.restore_snapshot, arguments.volumes
                restore(path, sandbox, name, tell, volumes=too)
        case "rm":
            admin_client.delete_snapshot(path, sandbox, arguments.name)
        case "ls":
            _show_snapshots(admin_client.list_snapshots(path, sandbox), as_json)
        case _:
            found = admin_client.list_snapshots(path, sandbox)
            named = [entry for entry in found if entry["name"] == arguments.name]
            if not named:
                raise NotFound(f"sandbox {sandbox} has no snapshot {arguments.name!r}")
            if as_json:
                print_json(named[0])
            else:
                _show_snapshot(named[0])
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
            size(entry["stored_bytes"]),
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
    with _told(f"suspending {arguments.id}", arguments.json) as tell:
        admin_client.suspend(path, arguments.id, tell)
    return 0


def resume(loaded: Loaded, arguments: argparse.Namespace) -> int:
    """Returns when the sandbox runs."""
    path = admin_socket(loaded.config)
    with _told(f"resuming {arguments.id}", arguments.json) as tell:
        admin_client.resume(path, arguments.id, arguments.cold, tell)
    return 0
