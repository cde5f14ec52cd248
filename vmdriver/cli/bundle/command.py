"""vmdriver doctor --bundle: collects, shows the list, writes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vmdriver.cli.bundle import archive, host, logs
from vmdriver.cli.bundle.archive import Member, listing
from vmdriver.cli.bundle.contents import Wanted, as_json, of_state
from vmdriver.cli.bundle.disclosure import plain
from vmdriver.cli.bundle.secrets import Secrets
from vmdriver.cli.doctor.examination import as_document, examine
from vmdriver.cli.new_file import check_free
from vmdriver.cli.terminal import print_json
from vmdriver.cli.unread import known_sandboxes
from vmdriver.config import Loaded
from vmdriver.config.views import admin_socket
from vmdriver.errors import DriverError, NotFound, Refused
from vmdriver.model.ids import domain_name
from vmdriver.storage.layout import Layout


def bundle(
    loaded: Loaded, path: Path, wanted: Wanted, log: Path | None, *, shown_as_json: bool
) -> int:
    """Write a report to `path`, after its list was printed; with a driver or without, whatever of
    the state can be read. `log`: the driver's, where it is not found by itself. Refused,
    StorageError: then there is no report.
    """
    layout = Layout(loaded.config.driver.state_dir)
    _check_rights(layout)
    check_free(path)
    known = known_sandboxes(layout)
    if wanted.sandbox and wanted.sandbox not in known:
        raise NotFound(f"sandbox {wanted.sandbox} is not known in {layout.root}")
    secrets = Secrets(loaded.config, layout)
    members = [
        _scrubbed(member, secrets)
        for member in _collected(loaded, layout, wanted, log, known)
    ]
    made = time.time()
    if shown_as_json:
        document = {
            "path": str(path),
            "inside": [
                {"name": m.name, "bytes": len(m.data), "what": m.what} for m in members
            ],
            "not_inside": list(archive.LEFT_OUT),
        }
        print_json(document)
    else:
        print(listing(members, made), flush=True)
    archive.write(path, members, made)
    if not shown_as_json:
        print(f"written: {path}")
    return 0


def _scrubbed(member: Member, secrets: Secrets) -> Member:
    text = member.data.decode(errors="replace")
    return replace(member, data=secrets.scrubbed(text).encode())


def _collected(
    loaded: Loaded, layout: Layout, wanted: Wanted, log: Path | None, known: list[str]
) -> Iterator[Member]:
    config = loaded.config
    pid = logs.running_driver(admin_socket(config))
    yield as_json("versions.json", host.versions(), "of all that the driver stands on")
    text = "the effective settings, and where each is from"
    yield as_json("configuration.json", host.configuration(loaded), text)
    yield as_json("host.json", host.figures(config), "what the host has, and uses")
    yield as_json("doctor.json", _findings(loaded), "what `vmdriver doctor` says")
    sandbox = wanted.sandbox
    if pid is not None:
        told = host.listed(config)
        if sandbox and isinstance(told, list):
            told = [entry for entry in told if entry["id"] == sandbox]
        text = "sandboxes as the driver tells them now"
        yield as_json("told.json", plain(told), text)
    found, where = logs.driver_log(log, pid)
    if sandbox:
        own = (sandbox, domain_name(config.driver.instance, sandbox))
        found = logs.of_one(found, own, [name for name in known if name != sandbox])
    text = f"the driver's log, with the events that it told: {where}"
    yield Member("driver.log", found.encode(), text)
    yield from of_state(config, layout, wanted)


def _findings(loaded: Loaded) -> object:
    try:
        return plain(as_document(asyncio.run(examine(loaded))))
    except (DriverError, OSError) as error:
        return {"could not be asked": str(error)}


def _check_rights(layout: Layout) -> None:
    if os.geteuid() != 0:
        raise Refused(
            f"a report needs what is in {layout.root}, which is closed to others",
            reason="PermissionDenied",
            resolution="run this command as the driver's user (root)",
        )
