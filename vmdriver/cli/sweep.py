"""vmdriver sweep: what bears our mark on the host, and belongs to no sandbox."""

from __future__ import annotations

import asyncio

from vmdriver.app import Driver, open_driver
from vmdriver.cli.terminal import print_json, say
from vmdriver.config import Loaded
from vmdriver.errors import ConfigError, DriverError
from vmdriver.host.lock import StateLock
from vmdriver.lifecycle.launch.marked import marked, remove
from vmdriver.lifecycle.ports.host import Found
from vmdriver.storage.layout import Layout
from vmdriver.storage.sandboxes.records import is_sandbox


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
    if alone:
        layout.make()  # a driver that was ended at its start has made some of it
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
            found = await marked(ports)
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
            say(f"note: {problem}", error=True)
    return 1 if failed else 0
