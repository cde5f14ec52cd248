"""A sandbox's files, for commands that read them; no driver need run."""

from __future__ import annotations

import os
from pathlib import Path

from vmdriver.config import Loaded
from vmdriver.errors import NotFound, Refused
from vmdriver.storage.layout import Layout, SandboxFiles
from vmdriver.storage.sandboxes.records import is_sandbox


def files_of(loaded: Loaded, sandbox_id: str) -> SandboxFiles:
    """Where they are. NotFound; Refused for whoever may not look."""
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
