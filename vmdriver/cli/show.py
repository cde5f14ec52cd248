"""Commands that show: config, ls, inspect, console, sweep. They read; only sweep
changes anything.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmdriver.app import Driver, open_driver
from vmdriver.cli.terminal import indented, write_raw
from vmdriver.cli.unread import as_document, print_unreadable, read_state
from vmdriver.cli.waterfall import shown
from vmdriver.config import Loaded
from vmdriver.errors import ConfigError, DriverError, NotFound, Refused
from vmdriver.host import console_file
from vmdriver.host.lock import StateLock
from vmdriver.host.visible import visible, visible_lines
from vmdriver.hypervisor import qemu_process
from vmdriver.lifecycle.launch.marked import remove
from vmdriver.lifecycle.ports.host import Found
from vmdriver.model.ids import domain_name
from vmdriver.model.set_aside import STATE_UNREADABLE
from vmdriver.storage.layout import Layout, SandboxFiles
from vmdriver.storage.sandboxes.guest_report import read_report
from vmdriver.storage.sandboxes.records import is_sandbox, read_record


def print_json(value: Any) -> None:
    """One document, for machines."""
    print(json.dumps(value, indent=2, default=str))


def print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Columns as wide as their longest cell, one line each."""
    rows = [tuple(visible(cell) for cell in row) for row in rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        line = "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        )
        print(line.rstrip())


def mib(count: int) -> str:
    """A number of bytes, for people."""
    return f"{count / 2**20:.0f} MiB"


def config(loaded: Loaded, *, as_json: bool) -> int:
    """Every setting, its value and where that came from; extensions' own tables apart."""
    table = loaded.table()
    if as_json:
        print_json(
            {key: {"value": value, "source": source} for key, value, source in table}
        )
        return 0
    rows = []
    for key, value, source in table:
        if key != "extension":
            rows.append(("driver", key, json.dumps(value), source))
            continue
        for name, settings in value.items():
            owner = f"extension {name}"
            rows += [(owner, k, json.dumps(v), source) for k, v in settings.items()]
    print_table(("owner", "setting", "value", "source"), rows)
    return 0


def ls(loaded: Loaded, *, as_json: bool) -> int:
    """What the running driver lists."""
    from vmdriver.service.client import list_sandboxes

    found = list_sandboxes(loaded.config.gateway.bind_socket)
    if as_json:
        found = [sandbox | {"wall": _wall(loaded, sandbox["id"])} for sandbox in found]
        print_json(found)
        return 0
    rows = [
        (
            sandbox["id"],
            sandbox["name"],
            sandbox["workspace"],
            f"{sandbox['type']}={sandbox['status']}",
            sandbox["reason"],
        )
        for sandbox in found
    ]
    print_table(("id", "name", "workspace", "condition", "reason"), rows)
    for sandbox in found:
        if sandbox["reason"] == STATE_UNREADABLE:
            print(f"note: {sandbox['id']}: {indented(sandbox['message'])}")
    return 0


def _wall(loaded: Loaded, sandbox_id: str) -> list[str] | None:
    """Parts of the wall around its last machine; None where its record cannot be read."""
    try:
        plan = read_record(_files(loaded, sandbox_id).root).plan
    except (DriverError, OSError):
        return None
    return list(plan.wall) if plan else []


def _files(loaded: Loaded, sandbox_id: str) -> SandboxFiles:
    layout = Layout(loaded.config.driver.state_dir)
    files = layout.sandbox(sandbox_id)
    _check_rights(layout.sandboxes)
    if not is_sandbox(files.root):
        raise NotFound(
            f"sandbox {sandbox_id} is not known in {loaded.config.driver.state_dir}"
        )
    return files


def _check_rights(sandboxes: Path) -> None:
    """Refused for whoever may not look: neither what is there nor what is not would be true."""
    try:
        os.scandir(sandboxes).close()
    except PermissionError as error:
        raise Refused(
            f"you may not look into {sandboxes}: {error.strerror}",
            reason="PermissionDenied",
            resolution="run this command as the driver's user (root)",
        ) from error
    except OSError:
        return


def _machine(loaded: Loaded, domain: str) -> dict[str, Any]:
    """Process of the machine, as the embedded libvirt noted it; needs no connection."""
    machines = Layout(loaded.config.driver.state_dir).libvirt / "run" / "qemu"
    pid = qemu_process.pid_of(machines, domain)
    if pid is None:
        return {"domain": domain, "running": False}
    return {"domain": domain, "running": True, "pid": pid}


def _inspection(loaded: Loaded, sandbox_id: str) -> dict[str, Any]:
    files = _files(loaded, sandbox_id)
    state = read_state(files)
    record, lease = state.record, state.salvage.lease
    domain = domain_name(loaded.config.driver.instance, sandbox_id)
    if record is not None:
        domain, lease = record.plan.domain if record.plan else "", record.lease
    return {
        "record": record.model_dump(mode="json") if record else None,
        "unreadable": as_document(state),
        "ledger": [vars(entry) for entry in state.held.values()],
        "guest": vars(read_report(str(files.status))),
        "machine": _machine(loaded, domain) if domain else {"running": False},
        "addresses": lease.model_dump() if lease else None,
        "console_tail": console_file.tail(files.console),
        "directory": str(files.root),
    }


def inspect(loaded: Loaded, sandbox_id: str, *, as_json: bool) -> int:
    """Everything on disk about one sandbox; the token is not among it."""
    found = _inspection(loaded, sandbox_id)
    if as_json:
        print_json(found)
        return 0
    if found["record"]:
        _print_record(sandbox_id, found["record"])
    if found["unreadable"]:
        print_unreadable(found["unreadable"])
    print(f"machine    {found['machine']}")
    print(f"addresses  {found['addresses']}")
    print(f"guest      {found['guest']}")
    if found["record"]:
        _print_memory(found["record"])
    print("ledger")
    for entry in found["ledger"]:
        print(
            f"  {entry['key']:20} {entry['scope']:10} "
            f"{'held' if entry['done'] else 'begun'}"
        )
    print("console (its end)")
    print("\n".join(f"  {line}" for line in found["console_tail"].splitlines()[-12:]))
    return 0


def timing(loaded: Loaded, sandbox_id: str, *, as_json: bool) -> int:
    """Where the time of its last start went. NotFound before the first one that came up."""
    found = read_record(_files(loaded, sandbox_id).root).last_start
    if found is None:
        raise NotFound(
            f"no start of sandbox {sandbox_id} was timed",
            resolution="see what it waits for: vmdriver inspect, without --timing",
        )
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print(shown(found))
    return 0


def _print_record(sandbox_id: str, record: dict[str, Any]) -> None:
    print(f"sandbox    {sandbox_id}  {record['spec']['name']!r}")
    print(f"image      {record['spec']['image']}")
    _print_image(record)
    print(
        f"intent     {record['intent']}    phase {record['phase']}    launches "
        f"{record['launches']}"
    )
    if record["plan"]:
        print(f"wall       {', '.join(record['plan']['wall']) or 'no part of it'}")
    if record["failure"]:
        print(
            f"failure    {record['failure']['reason']}: "
            f"{indented(record['failure']['message'])}"
        )


def _print_image(record: dict[str, Any]) -> None:
    """What it says of itself; it decides nothing but the environment."""
    says, words = record["image_config"], []
    for name, key in (("USER", "user"), ("WORKDIR", "working_directory")):
        words += [f"{name} {says[key]}"] if says[key] else []
    for name, key in (("ENTRYPOINT", "entrypoint"), ("CMD", "command")):
        words += [f"{name} {json.dumps(says[key])}"] if says[key] else []
    if record["image_digest"]:
        print(f"           {record['image_digest']}  {'  '.join(words)}".rstrip())


def _print_memory(record: dict[str, Any]) -> None:
    if record["memory"]:
        stored = record["memory"]["stored_bytes"] >> 20
        print(f"memory     {record['memory']['kind']}, {stored} MiB on disk")
    if record["last_restore"]:
        steps = record["last_restore"].items()
        text = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in steps)
        print(f"restored   {text}")
    for entry in record["snapshots"]:
        what = "memory and disk" if entry["memory"] else "disk only"
        print(f"snapshot   {entry['name']}  {entry['created_at']}  {what}")


def console(
    loaded: Loaded, sandbox_id: str, *, follow: bool, raw: bool, as_json: bool
) -> int:
    """The console file, once or as it grows. `raw`: the guest's own bytes, escapes and all."""
    path = _files(loaded, sandbox_id).console
    if as_json:
        print_json({"console": console_file.tail(path, console_file.ROOM)})
        return 0
    reader = console_file.Reader(path)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        try:
            data = reader.more()
        except FileNotFoundError:
            data = b""
        if raw:
            write_raw(data)
        else:
            print(visible_lines(decoder.decode(data)), end="", flush=True)
        if not follow:
            return 0
        time.sleep(0.2)


async def _sweep(
    loaded: Loaded, *, dry_run: bool
) -> tuple[list[Found], list[str], bool]:
    layout = Layout(loaded.config.driver.state_dir)
    lock = StateLock(layout.lock)
    alone = lock.try_open()
    if not alone and not layout.lock.is_file():
        raise ConfigError(
            f"state_dir: {layout.root} is not a driver's, and its lock cannot be made",
            resolution="name the driver's with --state-dir",
        )
    driver = await open_driver(loaded.config) if alone else Driver(loaded.config)
    known = {
        path.name for path in driver.layout.sandboxes.glob("*") if is_sandbox(path)
    }
    ports = driver.ports()
    problems: list[str] = []
    failed = False
    try:
        if not alone and driver.embedded:
            problems.append(
                "a driver is running: it sweeps its own machines when it starts"
            )
            found = await driver.network.marked()
        else:
            await driver.prepare_connection()
            found = [*await driver.machines.marked(), *await driver.network.marked()]
        orphans = [item for item in found if item.sandbox_id not in known]
        if not driver.records.all_there():
            problems.append(
                "the directory of sandboxes was in the way and is set aside: whose "
                "machines these are is not known until it is put back or removed"
            )
            orphans, failed = [], True
        for orphan in [] if dry_run else orphans:
            try:
                await remove(ports, orphan, loaded.config.driver.instance)
            except DriverError as error:
                failed = True
                problems.append(f"{orphan.kind} {orphan.name}: {error.text()}")
    finally:
        driver.release_threads()
        lock.release()
    return orphans, problems, failed


def sweep(loaded: Loaded, *, dry_run: bool, as_json: bool) -> int:
    """0 when nothing is left over (or was removed), 1 when something could not be."""
    orphans, problems, failed = asyncio.run(_sweep(loaded, dry_run=dry_run))
    if as_json:
        print_json(
            {
                "removed": not dry_run,
                "orphans": [vars(o) for o in orphans],
                "problems": problems,
            }
        )
    else:
        for orphan in orphans:
            verb = "would remove" if dry_run else "removed"
            print(f"{verb} {orphan.kind} {orphan.name} of sandbox {orphan.sandbox_id}")
        if not orphans:
            print("nothing is left over")
        for problem in problems:
            print(f"note: {problem}", file=sys.stderr)
    return 1 if failed else 0
