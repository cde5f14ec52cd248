"""What QEMUs say to libvirt in this process: libvirt 9.0, and the driver with it, is ended by an
event that has no data. A library of ours (monitor_filter.c) stands between the two.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from pathlib import Path

from vmdriver.errors import CommandError
from vmdriver.host import process
from vmdriver.hypervisor.wall import libraries

_log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("monitor_filter.c")
_TRY_S = 20.0
_TRY = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
library.vmdriver_begin.restype = ctypes.c_char_p
print(library.vmdriver_begin().decode())
"""


class MonitorFilter:
    """For one process, before it opens libvirt's embedded connection: what the QEMU driver calls is
    looked up when that is loaded. The library is made in `directory`, and stays.
    """

    def __init__(self, directory: Path, source: Path = _SOURCE) -> None:
        self._source = source
        self._file = libraries.place_of(source, directory)
        self.problem = "it was not tried"
        """Why a QEMU that was taken over can end this process; "" where it cannot."""

    async def prepare(self) -> None:
        """Make the library where it is missing, try it in a process of its own, and load it. Where
        one of these fails, libvirt reads as it does without it.
        """
        try:
            if not self._file.exists():
                await libraries.make(self._source, self._file, 0o600)
            self.problem = await self._try()
            if not self.problem:
                self.problem = self._load()
        except CommandError as error:
            self.problem = error.text()
        except (OSError, AttributeError) as error:
            self.problem = str(error)
        if self.problem:
            _log.warning("libvirt reads unfiltered what QEMUs say: %s", self.problem)

    async def _try(self) -> str:
        """What it says of this host's libvirt, to somebody who may be ended by it."""
        command = [sys.executable, "-I", "-S", "-c", _TRY, str(self._file)]
        tried = await process.run(command, deadline_s=_TRY_S, tries=2)
        return tried.stdout.decode(errors="replace").strip()

    def _load(self) -> str:
        library = ctypes.CDLL(str(self._file), mode=ctypes.RTLD_GLOBAL)
        library.vmdriver_begin.restype = ctypes.c_char_p
        said: bytes = library.vmdriver_begin()
        return said.decode(errors="replace")
