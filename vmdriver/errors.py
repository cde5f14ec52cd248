"""Every error that this project raises on purpose. No gRPC in here:
service/interceptor.py maps the classes.
"""

from __future__ import annotations

import errno
from pathlib import PurePath


class DriverError(Exception):
    """An expected failure.

    message: one line, fit for the gateway and its users; it never holds a secret.
    detail: for the log; may be long, may name host paths.
    reason: CamelCase, stable; usable as a condition's or an event's reason.
    resolution: what the operator or caller can do about it.
    """

    reason = "DriverError"

    def __init__(
        self,
        message: str,
        *,
        detail: str = "",
        reason: str | None = None,
        resolution: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.reason = reason or type(self).reason
        self.resolution = resolution

    def text(self) -> str:
        """Message and way out, as one line for whoever asked."""
        return f"{self.message}: {self.resolution}" if self.resolution else self.message


class InvalidRequest(DriverError):
    """The request itself is wrong, whatever the state of the host. `field` names where."""

    reason = "InvalidRequest"

    def __init__(self, field: str, problem: str, *, resolution: str = "") -> None:
        super().__init__(f"{field}: {problem}", resolution=resolution)
        self.field = field


class NotFound(DriverError):
    """The sandbox, image or file that was named does not exist."""

    reason = "NotFound"


class AlreadyExists(DriverError):
    """A sandbox of that id is known already."""

    reason = "AlreadyExists"


class Refused(DriverError):
    """The request is well-formed, but this driver does not do it (in this state)."""

    reason = "Refused"


class NotRestorable(Refused):
    """Kept memory differs from what is here, or is damaged: trying again is of no use."""

    reason = "NotRestorable"


class Exhausted(DriverError):
    """A limit that the operator set, or a host resource, is used up."""

    reason = "Exhausted"


class Unavailable(DriverError):
    """Something that should come back is not there now; trying again is right."""

    reason = "Unavailable"


class TimedOut(DriverError):
    """A deadline passed."""

    reason = "TimedOut"


class HostError(DriverError):
    """Something on this host failed; the subclasses say what."""

    reason = "HostError"


class HypervisorError(HostError):
    """libvirt or QEMU refused."""

    reason = "HypervisorFailed"


class LoadRefused(HypervisorError):
    """QEMU itself does not take a kept memory; not one that was killed or could not be started."""


class GuestRefused(HypervisorError):
    """The agent in a guest says no."""


class NetworkError(HostError):
    """A tap, an address or a firewall table could not be made or removed."""

    reason = "NetworkFailed"


class NotOursError(NetworkError):
    """What bears the name of something of ours is marked as somebody else's, and left alone."""

    reason = "NotOurs"


class StorageError(HostError):
    """A disk or a file of ours could not be made, read or removed."""

    reason = "StorageFailed"


class ImageError(HostError):
    """An image could not be fetched, unpacked or turned into a disk."""

    reason = "ImageFailed"


class CommandError(HostError):
    """A program that we ran ended with an error or ran past its deadline."""

    reason = "CommandFailed"


class Late(CommandError):
    """A program that we ran was ended by us: it ran past its deadline."""


class Killed(CommandError):
    """A program that we ran was ended from outside, before it had done its work: by somebody, or by
    a kernel without memory. It says nothing about what it worked on.
    """

    reason = "ProgramKilled"


class CleanupError(HostError):
    """Something could not be undone; it stays in the ledger and is tried again."""

    reason = "CleanupFailed"


class ConfigError(DriverError):
    """The configuration is wrong; nothing was started."""

    reason = "ConfigurationInvalid"


_WAYS_OUT = {
    errno.ENOSPC: ("DiskFull", "free some space on the disk of state_dir"),
    errno.EDQUOT: ("DiskFull", "free some space, or raise the quota of state_dir"),
    errno.EROFS: (
        "DiskReadOnly",
        "mount it so that it can be written; a disk that fails is often mounted read-only",
    ),
    errno.EIO: ("DiskFailed", "look at the kernel's log: the disk does not answer"),
    errno.EMFILE: (
        "TooManyFiles",
        "raise how many files the driver may have open (LimitNOFILE= of its unit)",
    ),
    errno.ENFILE: (
        "TooManyFiles",
        "raise how many files may be open on this host (fs.file-max)",
    ),
    errno.EACCES: ("NotPermitted", "let the driver's user use it"),
    errno.EPERM: ("NotPermitted", "let the driver's user use it"),
    errno.ENOMEM: ("MemoryShort", "free memory on this host"),
}


def unexpected(error: BaseException) -> DriverError:
    """What nobody has made an error of ours, for whoever waits. What the host refused is said;
    of a bug nothing but its kind, since its text may hold anything.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return HostError(f"internal error: {type(error).__name__}")
    reason, way_out = _WAYS_OUT.get(error.errno, (None, "look at the driver's log"))
    named = isinstance(error.filename, str | bytes | PurePath) and error.filename
    where = f"{_last(error.filename)}: " if named else ""
    text = f"{where}{error.strerror or type(error).__name__}"
    return HostError(text, detail=str(error), reason=reason, resolution=way_out)


def _last(path: str | bytes | PurePath) -> str:
    """A path's last name: a message names no path of the host."""
    text = path.decode(errors="replace") if isinstance(path, bytes) else str(path)
    return PurePath(text).name
