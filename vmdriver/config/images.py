"""The settings about images."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from vmdriver.model.spec import Frozen

PUBLISHED_IMAGE = "ghcr.io/nvidia/openshell-community/sandboxes/base:latest"
"""Upstream's own default (contract-0.0.md section 7)."""


class ImageSettings(Frozen):
    """Where images come from, what they may be, and how long they are kept."""

    default_image: str = Field(
        PUBLISHED_IMAGE,
        description="image for requests that name none; the default's digest is kept from its "
        "first use on (`vmdriver images prefetch` takes what its name means now)",
    )
    overlay_disk_mib: int = Field(
        4096, ge=256, description="size of a sandbox's root disk, MiB"
    )
    max_disk_mib: int = Field(
        65536, ge=256, description="largest disk_mib that a request may ask for"
    )
    insecure_registries: list[str] = Field(
        [], description="host[:port] of registries spoken to without TLS"
    )
    allowed_image_dirs: list[Path] = Field(
        [], description="directories below which oci:PATH images may be"
    )
    allowed_images: list[str] = Field(
        [],
        description="registries (host) and repositories (host/path) that images may be "
        "of or below; empty: all",
    )
    local_image_stores: list[str] = Field(
        [],
        description="containers-storage, docker-daemon: looked into first for names "
        "without a registry",
    )
    image_auth_file: Path | None = Field(
        None,
        description="credentials per registry, containers-auth.json(5); unset: root's own logins",
    )
    credential_registries: list[str] = Field(
        [],
        description="registries (host[:port]) that are shown the credentials there are for them; "
        "every other one is asked without",
    )
    image_registries_conf: Path | None = Field(
        None, description="mirrors, containers-registries.conf(5)"
    )
    image_signature_policy: Path | None = Field(
        None,
        description="which signatures are needed, containers-policy.json(5); unset: the host's "
        "/etc/containers/policy.json, or if it has none, any image of any registry",
    )
    image_certs_dir: Path | None = Field(
        None, description="certificates per registry, containers-certs.d(5)"
    )
    image_refresh_s: float = Field(
        60.0, ge=0, description="how long a resolved tag is not asked for again"
    )
    max_image_mib: int = Field(
        16384, ge=1, description="largest content of an image, unpacked, MiB"
    )
    max_image_files: int = Field(
        1_000_000, ge=1, description="most files in an image's layers"
    )
    image_cache_mib: int = Field(
        0,
        ge=0,
        description="most that the image cache may take, MiB (what is in use stays); 0: no limit",
    )
    image_cache_days: float = Field(
        30.0, ge=0, description="images unused for that long are removed; 0: never"
    )
    image_free_floor_mib: int = Field(
        1024, ge=0, description="disk space that images never use up, MiB"
    )
    prefetch_default_image: bool = Field(
        True,
        description="prepare default_image when the driver starts, unless it is not set",
    )
