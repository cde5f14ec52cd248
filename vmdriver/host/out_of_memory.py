"""Who the kernel ends first when the host has no memory left (proc(5), oom_score_adj): machines,
then the driver, which adopts what is left when it is started again, then whoever launched it.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

_log = logging.getLogger(__name__)
MACHINES = 600
_ABOVE_LAUNCHER = 200
_MOST = 500


def yield_to_launcher() -> None:
    """Have this process ended before the one that launched it, unless somebody has decided that for
    it: then its number is not the inherited one.
    """
    own = Path("/proc/self/oom_score_adj")
    try:
        inherited = int(own.read_text())
        if inherited != int(Path(f"/proc/{os.getppid()}/oom_score_adj").read_text()):
            return
        wanted = min(inherited + _ABOVE_LAUNCHER, _MOST)
        if wanted > inherited:
            own.write_text(str(wanted))
    except (OSError, ValueError) as error:
        _log.warning("oom_score_adj stays as it is: %s", error)
