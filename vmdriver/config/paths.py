"""Paths as settings name them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
"""From where the driver is started, if it begins nowhere."""
