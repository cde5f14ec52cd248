"""What an OCI image says of itself, as far as a sandbox has to do with it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from vmdriver.model.spec import Frozen


class ImageConfig(Frozen):
    """From the image's configuration (OCI image-spec, config.md)."""

    environment: Mapping[str, str] = Field(default_factory=dict)
    """ENV; below everything that a request says."""
    user: str = ""
    """USER, as it was written."""
    working_directory: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
