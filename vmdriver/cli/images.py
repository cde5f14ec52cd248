"""images: what is prepared, preparing, clearing up."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from vmdriver.cli.progress import Step, shown_progress
from vmdriver.cli.terminal import print_json, print_table
from vmdriver.cli.wording import ago, size
from vmdriver.config import Loaded
from vmdriver.config.views import admin_socket
from vmdriver.model.record import utc_now
from vmdriver.service import admin_client


def images(loaded: Loaded, arguments: argparse.Namespace) -> int:
    """ls, prefetch, gc."""
    path, as_json = admin_socket(loaded.config), arguments.json
    match arguments.action:
        case "prefetch":
            _prefetch(path, arguments.reference, as_json=as_json)
        case "gc":
            found = admin_client.collect_images(path, dry_run=arguments.dry_run)
            _show_removed(found, dry_run=arguments.dry_run, as_json=as_json)
        case _:
            _show(admin_client.list_images(path), as_json=as_json)
    return 0


def _prefetch(path: Path, reference: str, *, as_json: bool) -> None:
    if as_json:
        admin_client.prefetch_image(path, reference, _json_lines)
        return
    with shown_progress(f"preparing {reference}") as tell:

        def told(event: Any) -> None:
            sizes = {"done": event.done_bytes, "total": event.total_bytes}
            tell(Step(event.reason, event.message, **sizes))

        admin_client.prefetch_image(path, reference, told)


def _show(found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [
        (
            image["digest"][:19],
            size(image["stored_bytes"]),
            ago(datetime.fromisoformat(image["used"]), utc_now()),
            "yes" if image["in_use"] else "no",
            next(iter(image["names"]), "-").removeprefix("docker://").partition("@")[0],
        )
        for image in found
    ]
    print_table(("digest", "stored", "asked for", "in use", "name"), rows)


def _show_removed(found: list[dict[str, Any]], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    for file in found:
        print(f"{file['path']}  {size(file['stored_bytes'])}")
    total = size(sum(file["stored_bytes"] for file in found))
    print(f"{total} {'would be' if dry_run else 'were'} freed", file=sys.stderr)


def _json_lines(event: Any) -> None:
    line = {
        "reason": event.reason,
        "message": event.message,
        "done_bytes": event.done_bytes,
        "total_bytes": event.total_bytes,
    }
    print(json.dumps(line), flush=True)
