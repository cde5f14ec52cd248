"""What `vmdriver doctor` says of one thing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One check. level: ok, warn or fail; `advice` says what to do."""

    check: str
    level: str
    message: str
    advice: str = ""
