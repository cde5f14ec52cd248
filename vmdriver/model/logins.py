"""Users and passwords that people write into addresses. Pure."""

from __future__ import annotations

import re
from urllib.parse import unquote

HIDDEN = "***"
_LOGIN = re.compile(r"(?<=://)[^\s/?#]+@|^[^\s/:@]+:[^\s/@]+@(?!sha256:)", re.MULTILINE)
"""Of a URL; and without a scheme, where it begins with one. An image's digest is none."""


def without_logins(text: str) -> str:
    """The same, with something else in their place.

    >>> without_logins("qemu+ssh://me:pass@host/system")
    'qemu+ssh://***@host/system'
    >>> without_logins("name:tag@sha256:0123")
    'name:tag@sha256:0123'
    """
    return _LOGIN.sub(f"{HIDDEN}@", text)


def logins_in(text: str) -> set[str]:
    """Each, and its password alone; as written, and as meant where something is escaped."""
    found = {login[:-1] for login in _LOGIN.findall(text)}
    found |= {password for login in found if (password := login.partition(":")[2])}
    return found | {unquote(secret) for secret in found}
