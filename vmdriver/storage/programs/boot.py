"""The boot files that images/build-boot-files made: which kernel and initramfs a new
launch uses.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmdriver.errors import Refused
from vmdriver.storage import files


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
    knows: tuple[str, ...] = ()
    """What init can do that earlier ones could not."""


_FILES = ("kernel", "initramfs")


def _is_sound(path: Path, manifest: dict[str, Any]) -> bool:
    said = manifest.get(f"{path.name}_sha256")
    found = path.stat()
    identity = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return said is None or said == _digest(path, identity)


@functools.lru_cache(maxsize=16)
def _digest(path: Path, _identity: tuple[int, ...]) -> str:
    """Some 0.1 s of a core for a kernel, once for each state of the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(build: Path) -> bool:
    """Whether the files of a build are there, and as its manifest says."""
    try:
        manifest = json.loads(files.read(build / "manifest.json"))
        return all(_is_sound(build / name, manifest) for name in _FILES)
    except (OSError, ValueError, AttributeError):
        return False


def _damaged(boot_directory: Path, build: Path, changed: list[str]) -> Refused:
    return Refused(
        f"the guest's {' and '.join(changed)} is not what its manifest says",
        detail=str(build),
        reason="BootFilesDamaged",
        resolution=f"remove {build} and restart the driver, which has those of its package, or "
        f"in a checkout: images/build-boot-files {boot_directory}",
    )


def load(boot_directory: Path) -> BootFiles:
    """The current build, or Refused with what to do: where there is none, and where a file is not
    what its manifest says. Files that were looked at are read again when they have changed.
    """
    try:
        directory = (boot_directory / "current").resolve(strict=True)
        manifest = json.loads(files.read(directory / "manifest.json"))
        changed = [name for name in _FILES if not _is_sound(directory / name, manifest)]
        if changed:
            raise _damaged(boot_directory, directory, changed)
        return BootFiles(
            kernel=directory / "kernel",
            initramfs=directory / "initramfs",
            digest=manifest["digest"],
            architecture=manifest["architecture"],
            kernel_release=manifest["kernel_release"],
            knows=tuple(map(str, manifest.get("knows", ()))),
        )
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        # RuntimeError: a loop of links (pathlib before Python 3.13).
        raise Refused(
            "there are no guest boot files",
            detail=f"{boot_directory}: {error}",
            reason="BootFilesMissing",
            resolution="install vmdriver's package again, or in a checkout: "
            f"images/build-boot-files {boot_directory}",
        ) from error
