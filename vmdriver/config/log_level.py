"""How much is logged: a setting of every driver."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from vmdriver.host.log import parse_level


def _check(name: str) -> str:
    parse_level(name)
    return name


LogLevel = Annotated[str, AfterValidator(_check)]
"""What `parse_level` reads."""
