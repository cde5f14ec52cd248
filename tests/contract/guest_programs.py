"""Programs of the guest's, compiled to be run on the host."""

from __future__ import annotations

import subprocess
from pathlib import Path

GUEST = Path(__file__).parents[2] / "images" / "guest"


def compiled(path: Path, *sources: str | Path, options: tuple[str, ...] = ()) -> Path:
    """At `path`, of files of `images/guest` or others; a warning is an error."""
    warnings = ("-Wall", "-Wextra", "-Werror")
    files = [GUEST / source for source in sources]
    command = ["gcc", *options, *warnings, "-o", path, *files]
    subprocess.run(command, check=True)
    return path
