"""What `vmdriver doctor` says of folders of the host that sandboxes may have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from vmdriver.cli.doctor.answering import folder_finding, silent
from vmdriver.cli.doctor.finding import Finding
from vmdriver.errors import DriverError
from vmdriver.folders.host_folders import VirtiofsFolders
from vmdriver.lifecycle.launch.host_mounts import HostMounts
from vmdriver.model.host_mount import SETTING, AllowedFolder

_CHECK = "host folders"


async def folder_findings(
    folders: VirtiofsFolders, mounts: HostMounts
) -> AsyncIterator[Finding]:
    """Whether what reads them works here, and of each whether it can be had, and as whom."""
    allowed = mounts.settings.host_mounts
    if not allowed:
        yield Finding(_CHECK, "ok", "none may be given to sandboxes")
        return
    try:
        program = await folders.try_one()
    except DriverError as error:
        text = f"no sandbox gets any of {SETTING}: {error.message}"
        advice = error.resolution
        yield Finding(_CHECK, "fail", text, advice, machines_start=True)
    else:
        yield Finding(_CHECK, "ok", f"{program} answers in its box")
    hanging = await silent([Path(folder.path) for folder in allowed])
    for folder in allowed:
        if Path(folder.path) in hanging:
            yield folder_finding(folder.path)
        else:
            yield await _of(folder, folders, mounts)


async def _of(
    folder: AllowedFolder, folders: VirtiofsFolders, mounts: HostMounts
) -> Finding:
    check = f"host folder {folder.path}"
    try:
        await folders.look_at(folder.path, folder.path)
        if folder.user:
            mounts.whose(folder.user)
    except DriverError as error:
        return Finding(
            check, "fail", error.message, error.resolution, machines_start=True
        )
    whose = folder.user or "each machine's own user"
    how = "read" if folder.read_only else "read and written"
    return Finding(check, "ok", f"may be {how} as {whose}")
