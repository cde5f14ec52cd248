"""What `vmdriver doctor` says of one thing."""

from __future__ import annotations

from dataclasses import dataclass

from vmdriver.errors import DriverError


@dataclass(frozen=True)
class Finding:
    """One check. level: ok, warn or fail; `advice` says what to do. `machines_start`: although it
    fails.
    """

    check: str
    level: str
    message: str
    advice: str = ""
    machines_start: bool = False

    @property
    def blocks(self) -> bool:
        """No machine can be started, or no driver can, until it is mended."""
        return self.level == "fail" and not self.machines_start


def failed(check: str, error: DriverError | OSError) -> Finding:
    """A check that came to no result."""
    if isinstance(error, DriverError):
        return Finding(check, "fail", error.message, error.resolution)
    where = f"{error.filename}: " if error.filename else ""
    return Finding(check, "fail", f"{where}{error.strerror or error}")
