"""What `vmdriver doctor` says of folders of the host that sandboxes may have."""

from __future__ import annotations

from collections.abc import AsyncIterator

from vmdriver.app import Driver
from vmdriver.cli.doctor.finding import Finding
from vmdriver.errors import DriverError
from vmdriver.host import facts
from vmdriver.model.host_mount import SETTING, AllowedFolder

_CHECK = "host folders"


async def folder_findings(driver: Driver) -> AsyncIterator[Finding]:
    """Whether what reads them works here, and of each whether it can be had, and as whom."""
    allowed = driver.config.machines.host_mounts
    if not allowed:
        yield Finding(_CHECK, "ok", "none may be given to sandboxes")
        return
    try:
        program = await driver.folders.try_one()
    except DriverError as error:
        text = f"no sandbox gets any of {SETTING}: {error.message}"
        advice = error.resolution
        yield Finding(_CHECK, "fail", text, advice, machines_start=True)
    else:
        yield Finding(_CHECK, "ok", f"{program} answers in its box")
    for folder in allowed:
        yield await _of(driver, folder)


async def _of(driver: Driver, folder: AllowedFolder) -> Finding:
    check = f"host folder {folder.path}"
    try:
        await driver.folders.look_at(folder.path, folder.path)
    except DriverError as error:
        return Finding(
            check, "fail", error.message, error.resolution, machines_start=True
        )
    ids = facts.user_ids(folder.user) if folder.user else None
    if folder.user and (ids is None or ids[0] == 0):
        advice = f"name a user of this host that is not root in {SETTING}"
        text = f"{folder.user!r} is not one who may read and write it"
        return Finding(check, "fail", text, advice, machines_start=True)
    whose = folder.user or "each machine's own user"
    how = "read" if folder.read_only else "read and written"
    return Finding(check, "ok", f"may be {how} as {whose}")
