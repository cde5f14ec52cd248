"""Which images may be used, and where they are looked for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmdriver.errors import InvalidRequest, NotFound, Refused
from vmdriver.oci.proxies import NONE, Proxies
from vmdriver.oci.reference import FIELD, Reference, parse

LOCAL_STORES = ("containers-storage", "docker-daemon")
"""Stores of container engines on this host, in skopeo's words."""


@dataclass(frozen=True)
class ImagePolicy:
    """What the operator allows. Sizes in bytes unless they say otherwise; defaults are written in
    vmdriver.config.
    """

    insecure_registries: tuple[str, ...]
    """host[:port] of registries that are spoken to without TLS."""
    allowed_directories: tuple[Path, ...]
    """Directories below which oci:PATH references may point."""
    allowed_images: tuple[str, ...]
    """host or host/path that images must be of or below; empty: every registry."""
    local_stores: tuple[str, ...]
    """Of LOCAL_STORES: looked into first for names without a registry."""
    auth_file: Path | None
    """Credentials per registry: containers-auth.json(5). None: root's own logins."""
    credential_registries: tuple[str, ...]
    """host[:port] of registries that are shown credentials; no other one is."""
    registries_conf: Path | None
    """Mirrors and blocked registries: containers-registries.conf(5)."""
    signature_policy: Path | None
    """Which signatures are needed: containers-policy.json(5). None: see `trust`."""
    certificates: Path | None
    """Directory with certificates per registry: containers-certs.d(5)."""
    refresh_s: float
    """A tag that was resolved within that time is not asked for again."""
    max_content: int
    """Of an image, unpacked."""
    max_files: int
    free_floor: int
    """Free space that is never used up."""
    kept_repositories: tuple[str, ...]
    """host/path whose tags stay what they were when they were used first."""
    proxies: Proxies = NONE
    """Between this host and registries."""
    fetch_deadline_s: float = 1800.0
    build_deadline_s: float = 1800.0


@dataclass(frozen=True)
class Source:
    """One place where an image may be, in skopeo's words."""

    name: str
    """transport:details"""
    registry: str = ""
    """host[:port]; "" for local ones."""
    repository: str = ""
    """The same without tag and digest, for naming another digest of it."""
    directory: Path | None = None
    """Of a local layout."""

    def at(self, digest: str) -> Source:
        """The same repository's image of that digest; local stores have only the one."""
        if not self.registry:
            return self
        return Source(f"{self.repository}@{digest}", self.registry, self.repository)


def sources(reference: str, policy: ImagePolicy) -> list[Source]:
    """Where to look, in this order. InvalidRequest, NotFound, Refused."""
    if reference.startswith("oci:"):
        return [_local_layout(reference, policy)]
    parsed = parse(reference)
    check_allowed(parsed, policy)
    repository = f"docker://{parsed.host}/{parsed.path}"
    found = Source(f"docker://{parsed}", parsed.host, repository)
    if parsed.host_given or parsed.digest:
        return [found]
    text = f"{parsed.host}/{parsed.path}:{parsed.tag}"
    local = [
        Source(f"{store}:{text}")
        for store in LOCAL_STORES
        if store in policy.local_stores
    ]
    return [*local, found]


def check_allowed(parsed: Reference, policy: ImagePolicy) -> None:
    """Refused for a registry or repository that is not on the operator's list."""
    name = f"{parsed.host}/{parsed.path}"
    for allowed in policy.allowed_images:
        prefix = allowed.rstrip("/")
        if name == prefix or name.startswith(f"{prefix}/"):
            return
    if policy.allowed_images:
        raise Refused(
            f"{FIELD}: {name} is not among the images that the operator allows",
            reason="ImageNotAllowed",
            resolution=f"use one of {', '.join(policy.allowed_images)}, or have it added to "
            "allowed_images",
        )


def _local_layout(reference: str, policy: ImagePolicy) -> Source:
    text, _, tag = reference.removeprefix("oci:").partition(":")
    path, is_absolute = Path(text).resolve(), Path(text).is_absolute()
    allowed = [directory.resolve() for directory in policy.allowed_directories]
    if not is_absolute or not any(
        path.is_relative_to(directory) for directory in allowed
    ):
        raise InvalidRequest(
            FIELD,
            f"{text[:200]!r} is not below a directory that the operator allows",
            resolution=(
                "list the directory in allowed_image_dirs, or use a registry reference"
            ),
        )
    if not (path / "index.json").is_file():
        raise NotFound(
            f"{FIELD}: {text[:200]!r} is not an OCI layout", reason="ImageNotFound"
        )
    return Source(f"oci:{path}" + (f":{tag}" if tag else ""), directory=path)
