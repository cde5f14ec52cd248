"""What every launch needs, and an operator brings: looked at when the driver starts, so that it is
not the first sandbox that says so.
"""

from __future__ import annotations

from pathlib import Path

from vmdriver.errors import DriverError
from vmdriver.storage.programs import boot


def missing_supervisor(program: Path | None, image: str) -> str:
    """What is wrong with supervisor_path and supervisor_image, "": nothing is seen to be."""
    if program is not None:
        return "" if program.is_file() else f"{program} is not there"
    return "" if image else "none is configured"


def missing(boot_directory: Path, program: Path | None, image: str) -> list[str]:
    """A line for each thing without which no sandbox starts, with the way out."""
    found = []
    try:
        boot.load(boot_directory)
    except DriverError as error:
        found.append(error.text())
    if why := missing_supervisor(program, image):
        found.append(f"supervisor: {why}: {SUPERVISOR_WAY_OUT}")
    return found


SUPERVISOR_WAY_OUT = (
    "set supervisor_path to the openshell-sandbox program, or supervisor_image"
)
