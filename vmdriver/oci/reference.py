"""Image references as people write them, made unambiguous. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmdriver.errors import InvalidRequest

_HOST = (
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
)
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:(?P<host>{_HOST})/)?(?P<path>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
FIELD = "template.image"
DOCKER_HUB = "docker.io"


@dataclass(frozen=True)
class Reference:
    """A registry reference. `digest`, where there is one, wins over the tag."""

    host: str
    path: str
    tag: str
    digest: str
    host_given: bool = True
    """False: a short name, which may be of an image that was built on this host."""

    def __str__(self) -> str:
        # Tools take a tag or a digest, not both.
        return f"{self.host}/{self.path}" + (
            f"@{self.digest}" if self.digest else f":{self.tag}"
        )


def parse(text: str) -> Reference:
    """Parse host/name:tag@digest by the rules of Docker Hub's short names.
    InvalidRequest.

    >>> str(parse("alpine")), str(parse("ghcr.io/some/agent:2"))
    ('docker.io/library/alpine:latest', 'ghcr.io/some/agent:2')
    """
    if len(text) > 512:
        raise InvalidRequest(FIELD, "is longer than 512 characters")
    first = text.partition("/")[0]
    # Only a first part that looks like a host is one: "library/x" is a path on Docker
    # Hub.
    has_host = "/" in text and (
        "." in first or ":" in first or first == "localhost" or first != first.lower()
    )
    match = _REFERENCE.fullmatch(text if has_host else f"{DOCKER_HUB}/{text}")
    if match is None:
        raise InvalidRequest(
            FIELD,
            f"{text[:128]!r} is not an image reference",
            resolution=(
                "write host/name:tag, host/name@sha256:..., or a lower-case short name"
            ),
        )
    host, path = match["host"], match["path"]
    if host in {"index.docker.io", "registry-1.docker.io"}:
        host = DOCKER_HUB
    if host == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    tag = match["tag"] or ("" if match["digest"] else "latest")
    return Reference(host, path, tag, match["digest"] or "", has_host)
