"""images: what is prepared, preparing, clearing up."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from vmdriver.cli.show import mib, print_json, print_table
from vmdriver.config import Loaded
from vmdriver.config.views import admin_socket
from vmdriver.service import admin_client

_BAR_WIDTH = 30


def images(loaded: Loaded, arguments: argparse.Namespace) -> int:
    """ls, prefetch, gc."""
    path, as_json = admin_socket(loaded.config), arguments.json
    match arguments.action:
        case "prefetch":
            tell = _json_lines if as_json else _bar(sys.stderr.isatty())
            admin_client.prefetch_image(path, arguments.reference, tell)
        case "gc":
            found = admin_client.collect_images(path, dry_run=arguments.dry_run)
            _show_removed(found, dry_run=arguments.dry_run, as_json=as_json)
        case _:
            _show(admin_client.list_images(path), as_json=as_json)
    return 0


def _show(found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [
        (
            image["digest"][:19],
            mib(image["stored_bytes"]),
            image["used"],
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
        print(f"{file['path']}  {mib(file['stored_bytes'])}")
    total = mib(sum(file["stored_bytes"] for file in found))
    print(f"{total} {'would be' if dry_run else 'were'} freed", file=sys.stderr)


def _json_lines(event: Any) -> None:
    line = {
        "reason": event.reason,
        "message": event.message,
        "done_bytes": event.done_bytes,
        "total_bytes": event.total_bytes,
    }
    print(json.dumps(line), flush=True)


def bar(done: int, total: int) -> str:
    """A progress bar of fixed width."""
    filled = min(_BAR_WIDTH, _BAR_WIDTH * done // total) if total else 0
    share = f"{min(100, 100 * done // total):3d} %" if total else "     "
    return f"[{'#' * filled}{' ' * (_BAR_WIDTH - filled)}] {share}"


def _bar(terminal: bool) -> Callable[[Any], None]:
    """One line that is written again, or, where nobody sees that, a line for each step."""
    told = ""

    def tell(event: Any) -> None:
        nonlocal told
        if event.total_bytes and terminal:
            drawn = bar(event.done_bytes, event.total_bytes)
            print(f"\r\033[K{drawn} {event.message}", end="", file=sys.stderr)
        elif event.reason != told:
            start = "\r\033[K" if terminal else ""
            print(f"{start}{event.reason}: {event.message}", file=sys.stderr)
        sys.stderr.flush()
        told = event.reason

    return tell
