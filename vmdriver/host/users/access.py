"""What another user of this host may do with files, asked as that user.

The mode bits alone do not say it: there are access lists, and every folder on the way counts.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from typing import Literal

from vmdriver.host import process

_TESTS = {
    "pass": 'test -d "$p" && test -x "$p"',
    "read": 'test -r "$p"',
    "use": 'test -r "$p" && test -w "$p"',
}


async def denied(
    paths: Sequence[str], wanted: Literal["pass", "read", "use"], uid: int, gid: int
) -> list[str]:
    """Those of the paths that the user may not pass (folders), read, or read and write.

    With the user's own groups, as libvirt starts QEMU. CommandError when nobody can be asked,
    such as without root.
    """
    script = f"for p; do {{ {_TESTS[wanted]}; }} || printf '%s\\0' \"$p\"; done"
    done = await process.run(
        [
            *("setpriv", f"--reuid={uid}", f"--regid={gid}"),
            f"--groups={','.join(map(str, _groups(uid, gid)))}",
            *("sh", "-c", script, "sh", *paths),
        ],
        deadline_s=10,
        tries=3,
    )
    return [os.fsdecode(path) for path in done.stdout.split(b"\0") if path]


def _groups(uid: int, gid: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        return [gid]
