"""Every error that this project raises on purpose. No gRPC in here:
service/interceptor.py maps the classes.
"""

from __future__ import annotations


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


class NetworkError(HostError):
    """A tap, an address or a firewall table could not be made or removed."""

    reason = "NetworkFailed"


class StorageError(HostError):
    """A disk or a file of ours could not be made, read or removed."""

    reason = "StorageFailed"


class ImageError(HostError):
    """An image could not be fetched, unpacked or turned into a disk."""

    reason = "ImageFailed"


class CommandError(HostError):
    """A program that we ran ended with an error or ran past its deadline."""

    reason = "CommandFailed"


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
