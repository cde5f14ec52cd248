"""Memory that a machine maps and cannot change: how QEMU comes to open its file for reading only.

Since release 8.2 it can be told so. An earlier one asks for the right to write as well, which it
does not have; a library of ours, preloaded, has it ask for less (read_only_memory.c). Without
either, QEMU cannot open the file: nobody runs on memory that is not sealed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmdriver.errors import CommandError, StorageError
from vmdriver.host import process

_log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("read_only_memory.c")
_NATIVE = 8_002_000
"""libvirt's number of QEMU 8.2, whose memory-backend-file has `rom` (its qapi/qom.json)."""
_COMPILE_S = 60.0
_FLAGS = ("-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-z,relro,-z,now")


@dataclass(frozen=True)
class ReadOnlyMapping:
    """How one QEMU is told: more of the memory object's options, and more of its environment."""

    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class Sealing:
    """For one connection. The library is made in `directory`, which QEMU can pass, and stays."""

    def __init__(self, directory: Path) -> None:
        digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]
        self.library = directory / f"read-only-memory-{digest}.so"
        self.problem = ""
        """Why there is no library."""

    async def prepare(self) -> None:
        """Make the library where it is missing; without a compiler there is none. StorageError."""
        if self.library.exists():
            return
        part = self.library.with_suffix(".part")
        try:
            self.library.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            part.unlink(missing_ok=True)
            command = ["gcc", *_FLAGS, "-o", str(part), str(_SOURCE)]
            await process.run(command, deadline_s=_COMPILE_S)
            part.chmod(0o755)
            part.replace(self.library)
        except CommandError as error:
            self.problem = error.message
            _log.warning("QEMU before 8.2 cannot map sealed memory: %s", error.text())
        except OSError as error:
            raise StorageError(
                f"{self.library.name} cannot be made: {error.strerror}",
                detail=str(error),
                resolution="free space in the state directory",
            ) from error

    def is_possible(self, version: int) -> bool:
        """With a QEMU of libvirt's number `version`."""
        return version >= _NATIVE or self.library.exists()

    def mapping(self, version: int, memory: str) -> ReadOnlyMapping:
        """For a QEMU of that version and that file."""
        if version >= _NATIVE:
            return ReadOnlyMapping(options=("readonly=on", "rom=off"))
        preload = {
            "LD_PRELOAD": str(self.library),
            "VMDRIVER_READ_ONLY_MEMORY": memory,
        }
        return ReadOnlyMapping(environment=preload)
