"""What QEMUs say on their standard error: libvirt in this process hands each of them a file to
whose end it writes, and neither bounds nor removes it (where there is a daemon, virtlogd does).
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from vmdriver.host import console_file

_log = logging.getLogger(__name__)
_KEPT_S = 24 * 3600.0
"""For people, of machines that are not defined any more."""


def bound(uri: str, now: float | None = None) -> None:
    """Keep them short; those of machines that are gone go a day later. Blocking. What cannot be
    done is said in the log.
    """
    _, found, root = uri.partition("root=")
    if not found:
        return
    definitions = Path(root) / "etc" / "qemu"
    for path in (Path(root) / "log" / "qemu").glob("*.log"):
        try:
            age_s = (time.time() if now is None else now) - path.lstat().st_mtime
            if age_s > _KEPT_S and not (definitions / f"{path.stem}.xml").exists():
                path.unlink()
            else:
                console_file.cut(path)
        except OSError as error:
            _log.warning("libvirt's log %s is not bounded: %s", path.name, error)
