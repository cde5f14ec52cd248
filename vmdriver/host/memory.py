"""What a process has of this host's memory, as the kernel says."""

from __future__ import annotations

import re
from pathlib import Path

_PSS = re.compile(r"^Pss:\s+([0-9]+) kB$", re.MULTILINE)


def share_of(pid: int) -> int:
    """Bytes; of what several processes have, its share (the kernel's "PSS"). 0: it has ended.
    Blocking: its memory is added up page by page.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = _PSS.search(text)
    return int(found[1]) * 1024 if found else 0
