"""What skopeo says when it fails, in our words. It has one exit status for everything, so its text
decides.
"""

from __future__ import annotations

import re

from vmdriver.errors import CommandError, DriverError, ImageError, NotFound, Refused
from vmdriver.oci.reference import FIELD

_HEX = re.compile(r"[0-9a-f]{12,}")
_MISSING = re.compile(r"manifest unknown|name unknown|not found|no such file|\b404\b")
_DENIED = re.compile(r"unauthorized|authentication required|denied")
_PASSING = re.compile(
    r"timeout|connection refused|connection reset|\beof\b|\b50[234]\b"
)


def _words(error: CommandError) -> str:
    """Without digests: among their digits any status code is found some day."""
    return _HEX.sub("", f"{error} {error.detail}".lower())


def is_passing(error: CommandError) -> bool:
    """Whether trying again is right: the network, not the registry's answer."""
    return _PASSING.search(_words(error)) is not None


def translated(source: str, error: CommandError) -> DriverError:
    """Refused where the registry says no, NotFound, else ImageError."""
    text, name = _words(error), source.removeprefix("docker://")
    if "proxy authentication required" in text:
        return ImageError(
            f"image {name} cannot be fetched: the proxy wants a login",
            detail=error.detail,
            resolution="put it into http_proxy and https_proxy of the driver's environment",
        )
    if _DENIED.search(text):
        return Refused(
            f"{FIELD}: the registry does not give out {name}",
            detail=error.detail,
            reason="ImageDenied",
            resolution=(
                "check the name; credentials (image_auth_file, or root's logins) are shown to "
                "the registries in credential_registries alone"
            ),
        )
    if _MISSING.search(text):
        return NotFound(
            f"{FIELD}: there is no image {name}",
            detail=error.detail,
            reason="ImageNotFound",
        )
    return ImageError(f"image {name} cannot be fetched: {error}", detail=error.detail)
