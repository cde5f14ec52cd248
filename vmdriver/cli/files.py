"""A sandbox's files, for commands that read them; no driver need run."""

from __future__ import annotations

import os
from pathlib import Path

from vmdriver.config import Loaded
from vmdriver.errors import NotFound, Refused, StorageError
from vmdriver.model.ids import is_sandbox_id
from vmdriver.storage.layout import Layout, SandboxFiles
from vmdriver.storage.sandboxes.records import is_sandbox, read_record, salvaged


def find(loaded: Loaded, sandbox: str) -> SandboxFiles:
    """Those of the sandbox with that id, else with that name, as a driver finds it. NotFound;
    Refused where more have that name, and for whoever may not look.
    """
    layout = Layout(loaded.config.driver.state_dir)
    _check_rights(layout.sandboxes)
    if is_sandbox_id(sandbox) and is_sandbox(layout.sandboxes / sandbox):
        return layout.sandbox(sandbox)
    folders = layout.sandboxes.glob("*")
    named = [d.name for d in folders if is_sandbox(d) and _name(d) == sandbox]
    if len(named) > 1:
        raise Refused(
            f"{len(named)} sandboxes are named {sandbox!r}",
            resolution=f"name one by its id: {', '.join(sorted(named))}",
        )
    if not named:
        raise _unknown(layout, sandbox)
    return layout.sandbox(named[0])


def _name(folder: Path) -> str:
    try:
        return read_record(folder).spec.name
    except StorageError:
        return salvaged(folder).name


def _unknown(layout: Layout, sandbox: str) -> NotFound:
    return NotFound(
        f"sandbox {sandbox} is not known in {layout.root}",
        resolution="see which there are: vmdriver ls; another driver's: --state-dir",
    )


def files_of(loaded: Loaded, sandbox_id: str) -> SandboxFiles:
    """Where those of that id are. NotFound; Refused for whoever may not look."""
    layout = Layout(loaded.config.driver.state_dir)
    files = layout.sandbox(sandbox_id)
    _check_rights(layout.sandboxes)
    if not is_sandbox(files.root):
        raise _unknown(layout, sandbox_id)
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
