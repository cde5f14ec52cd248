"""The boot files that images/build-boot-files made: which kernel and initramfs a new
launch uses.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vmdriver.errors import Refused


@dataclass(frozen=True)
class BootFiles:
    """One build. `digest` names its inputs; old builds stay, so that a plan keeps its
    kernel.
    """

    kernel: Path
    initramfs: Path
    digest: str
    architecture: str
    kernel_release: str


def load(boot_directory: Path) -> BootFiles:
    """The current build, or Refused with what to do."""
    try:
        directory = (boot_directory / "current").resolve(strict=True)
        manifest = json.loads((directory / "manifest.json").read_text())
        return BootFiles(
            kernel=directory / "kernel",
            initramfs=directory / "initramfs",
            digest=manifest["digest"],
            architecture=manifest["architecture"],
            kernel_release=manifest["kernel_release"],
        )
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        # RuntimeError: a loop of links (pathlib before Python 3.13).
        raise Refused(
            "there are no guest boot files",
            detail=f"{boot_directory}: {error}",
            reason="BootFilesMissing",
            resolution=f"run images/build-boot-files {boot_directory}",
        ) from error
