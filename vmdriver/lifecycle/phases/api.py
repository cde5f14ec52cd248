"""Moved to vmdriver.extension; works for one release more."""

from __future__ import annotations

from typing import Any

from vmdriver.lifecycle.extending.moved import moved


def __getattr__(name: str) -> Any:
    return moved(__name__, name)
