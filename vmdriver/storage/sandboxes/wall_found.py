"""What the driver found, when it started, that it can give of machines' walls: for commands that
look while it runs.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from vmdriver.model.wall import Offer
from vmdriver.storage import files

_SHAPE = TypeAdapter(Offer)


def store(path: Path, offer: Offer) -> None:
    """In the place of what was found before. OSError."""
    files.replace(path, _SHAPE.dump_json(offer, indent=1) + b"\n")


def load(path: Path) -> Offer | None:
    """None: there is nothing that can be read."""
    try:
        return _SHAPE.validate_json(files.read(path))
    except (OSError, ValidationError):
        return None
