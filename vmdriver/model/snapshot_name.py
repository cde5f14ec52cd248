"""Names of snapshots."""

from __future__ import annotations

import re

from vmdriver.errors import InvalidRequest

_SNAPSHOT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def split_snapshot(text: str, field: str) -> tuple[str, str]:
    """`SANDBOX/NAME` as sandbox (id or name) and snapshot. InvalidRequest."""
    sandbox, slash, name = text.partition("/")
    if not sandbox or not slash:
        raise InvalidRequest(field, "must be SANDBOX/NAME: a sandbox and its snapshot")
    return sandbox, check_snapshot_name(name, field)


def check_snapshot_name(name: str, field: str) -> str:
    """InvalidRequest unless it may be a snapshot's name, which is a directory's too."""
    if not _SNAPSHOT_NAME.fullmatch(name):
        raise InvalidRequest(
            field,
            f"{name[:80]!r} is not a snapshot's name: letters, digits, . _ -, at most 63, "
            "a letter or digit first",
        )
    return name
