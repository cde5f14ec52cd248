"""Memory that a machine maps and cannot change: how QEMU comes to open its file for reading only.

Since release 8.2 it can be told so. An earlier one asks for the right to write as well, which it
does not have; a library of ours, preloaded, has it ask for less (read_only_memory.c). Without
either, QEMU cannot open the file: nobody runs on memory that is not sealed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmdriver.errors import CommandError, StorageError
from vmdriver.host import process
from vmdriver.hypervisor.embedded import PLAIN_PATH
from vmdriver.hypervisor.wall import libraries
from vmdriver.model.passage import PLACE

_log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("read_only_memory.c")
_NATIVE = 8_002_000
"""libvirt's number of QEMU 8.2, whose memory-backend-file has `rom` (its qapi/qom.json)."""
_TRY_S = 10.0


@dataclass(frozen=True)
class ReadOnlyMapping:
    """How one QEMU is told: more of the memory object's options, and more of its environment."""

    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    """What else it reads."""


class Sealing:
    """For one connection. The library is made in `directory`, as QEMU names it, and stays."""

    def __init__(self, directory: Path, links: Path = PLACE) -> None:
        self._file = libraries.place_of(_SOURCE, directory)
        self.library = self._file
        """What QEMU is told. LD_PRELOAD is a list: what has a space or colon in its name is reached
        through a link.
        """
        if not PLAIN_PATH.fullmatch(str(self._file)):
            name = hashlib.sha256(os.fsencode(self._file)).hexdigest()[:12]
            self.library = links / f"{name}.so"
        self.problem = "it was not tried"
        """Why QEMU before 8.2 cannot map memory for reading only; "" where it can."""

    async def prepare(self) -> None:
        """Make the library where it is missing, and try it. StorageError."""
        try:
            if not self._file.exists():
                await libraries.make(_SOURCE, self._file, 0o755)  # every machine's
            await asyncio.to_thread(self._link)
            preload = f"LD_PRELOAD={self.library}"
            look = ["env", preload, "cat", "/proc/self/maps"]
            shown = await process.run(look, deadline_s=_TRY_S)
            loaded = self._file.name.encode() in shown.stdout
            self.problem = "" if loaded else f"{self.library} is not loaded"
        except CommandError as error:
            self.problem = error.text()
        except OSError as error:
            raise StorageError(
                f"{self._file.name} cannot be made: {error.strerror}",
                detail=str(error),
                resolution="free space in the state directory",
            ) from error
        if self.problem:
            _log.warning("QEMU before 8.2 cannot map sealed memory: %s", self.problem)

    def _link(self) -> None:
        link = self.library
        if link == self._file or (link.is_symlink() and link.readlink() == self._file):
            return
        link.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(self._file)

    def is_possible(self, version: int) -> bool:
        """With a QEMU of libvirt's number `version`."""
        return version >= _NATIVE or not self.problem

    def mapping(self, version: int, memory: str) -> ReadOnlyMapping:
        """For a QEMU of that version and that file."""
        if version >= _NATIVE:
            return ReadOnlyMapping(options=("readonly=on", "rom=off"))
        preload = {
            "LD_PRELOAD": str(self.library),
            "VMDRIVER_READ_ONLY_MEMORY": memory,
        }
        # Without it QEMU is not allowed to open the memory, and says so.
        files = (str(self.library),) if self.library.exists() else ()
        return ReadOnlyMapping(environment=preload, files=files)
