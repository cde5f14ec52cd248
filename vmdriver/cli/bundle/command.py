"""vmdriver doctor --bundle: collects, shows the list, writes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vmdriver.cli.bundle import archive, host, logs
from vmdriver.cli.bundle.archive import MOST, Member, listing
from vmdriver.cli.bundle.contents import Wanted, as_json, of_state
from vmdriver.cli.bundle.disclosure import plain
from vmdriver.cli.bundle.secrets import Secrets
from vmdriver.cli.doctor.answering import silent_findings
from vmdriver.cli.doctor.showing import as_document, not_loaded
from vmdriver.cli.new_file import check_free
from vmdriver.cli.progress import Step, Tell, shown_progress
from vmdriver.cli.terminal import print_json
from vmdriver.cli.unread import known_sandboxes
from vmdriver.config import Config, Loaded, process_environment
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
    _check_place(path)
    _check_answer(loaded.config)
    known = known_sandboxes(layout)
    if wanted.sandbox and wanted.sandbox not in known:
        raise NotFound(f"sandbox {wanted.sandbox} is not known in {layout.root}")
    with shown_progress("the report is made") as tell:
        tell(Step("looking", "for what is secret on this host"))
        pid = logs.running_driver(admin_socket(loaded.config))
        own = process_environment()
        secrets = Secrets(loaded.config, layout, (own, logs.environment_of(pid)))
        about = _About(loaded, layout, wanted, known, log, pid)
        members, no_room = _within(MOST, _collected(about, tell), secrets)
    made = time.time()
    listed = listing(members, made, no_room)
    if shown_as_json:
        document = {
            "path": str(path),
            "inside": [
                {"name": m.name, "bytes": len(m.data), "what": m.what} for m in members
            ],
            "not_inside": list(archive.LEFT_OUT),
            "no_room": no_room,
        }
        print_json(document)
    else:
        print(listed, flush=True)
    archive.write(path, members, listed, made)
    if not shown_as_json:
        print(f"written: {path}")
    return 0


def _scrubbed(member: Member, secrets: Secrets) -> Member:
    text = member.data.decode(errors="replace")
    return replace(member, data=secrets.scrubbed(text).encode())


def _within(
    most: int, members: Iterable[Member], secrets: Secrets
) -> tuple[list[Member], list[str]]:
    """Those that there is room for, without secrets, and names of the others."""
    taken, no_room, size = list[Member](), list[str](), 0
    for member in members:
        if size + len(member.data) > most:
            no_room.append(member.name)
            continue
        size += len(member.data)
        taken.append(_scrubbed(member, secrets))
    return taken, no_room


@dataclass(frozen=True)
class _About:
    """Whose report it is. `pid`: of the driver that runs."""

    loaded: Loaded
    layout: Layout
    wanted: Wanted
    known: list[str]
    log: Path | None
    pid: int | None


def _collected(about: _About, tell: Tell) -> Iterator[Member]:
    loaded, wanted, pid = about.loaded, about.wanted, about.pid
    config = loaded.config
    tell(Step("looking", "at versions, settings and figures"))
    yield as_json("versions.json", host.versions(), "of all that the driver stands on")
    text = "the effective settings, and where each is from"
    yield as_json("configuration.json", host.configuration(loaded), text)
    yield as_json("host.json", host.figures(config), "what the host has, and uses")
    tell(Step("asking", "vmdriver doctor, which may take a minute"))
    yield as_json("doctor.json", _findings(loaded), "what `vmdriver doctor` says")
    sandbox = wanted.sandbox
    if pid is not None:
        told = host.listed(config)
        if sandbox and isinstance(told, list):
            told = [entry for entry in told if entry["id"] == sandbox]
        text = "sandboxes as the driver tells them now"
        yield as_json("told.json", plain(told), text)
    tell(Step("reading", "the driver's log"))
    found, where = logs.driver_log(about.log, pid)
    if sandbox:
        own = (sandbox, domain_name(config.driver.instance, sandbox))
        others = [name for name in about.known if name != sandbox]
        found = logs.of_one(found, own, others)
    text = f"the driver's log, with the events that it told: {where}"
    yield Member("driver.log", found.encode(), text)
    tell(Step("reading", f"{about.layout.root}"))
    yield from of_state(config, about.layout, wanted)


def _findings(loaded: Loaded) -> object:
    try:
        from vmdriver.cli.doctor import examination
    except ImportError as error:
        return as_document(not_loaded(error))
    try:
        return plain(as_document(asyncio.run(examination.examine(loaded))))
    except (DriverError, OSError) as error:
        return {"could not be asked": str(error)}


def _check_place(path: Path) -> None:
    """Before a minute's work is done for nothing."""
    check_free(path)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise Refused(
            f"{path.parent} is no folder that can be written to",
            resolution="name a file in one",
        )


def _check_answer(config: Config) -> None:
    """What is secret is looked for in all files that settings name."""
    for found in asyncio.run(silent_findings(config)):
        raise Refused(f"{found.check}: {found.message}", resolution=found.advice)


def _check_rights(layout: Layout) -> None:
    if os.geteuid() != 0:
        raise Refused(
            f"a report needs what is in {layout.root}, which is closed to others",
            reason="PermissionDenied",
            resolution="run this command as the driver's user (root)",
        )
