"""What the core needs of images. What ports/host.py says of errors and cancellation holds here
too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vmdriver.model.image import ImageConfig


@dataclass(frozen=True)
class BaseDisk:
    """An image as a disk: raw ext4, shared and never written."""

    path: str
    digest: str
    """Digest of the image's manifest for this architecture, sha256:..."""
    config: ImageConfig = field(default_factory=ImageConfig)


@dataclass(frozen=True)
class ImageProgress:
    """How far the preparation of an image is."""

    reason: str
    """A step's CamelCase name, such as PullingLayer (contract §2.14)."""
    detail: str
    """One line."""
    done_bytes: int = 0
    total_bytes: int = 0
    """0: it is not known."""


ProgressSink = Callable[[ImageProgress], None]


@dataclass(frozen=True)
class CacheLimits:
    """Of the whole image cache; 0: none."""

    most_bytes: int = 0
    most_age_s: float = 0.0
    free_floor: int = 0
    """Bytes of the file system that are to stay free."""


@dataclass(frozen=True)
class CachedFile:
    """A base disk or a layer."""

    path: str
    stored_bytes: int
    used: float
    """When it was asked for last, seconds since 1970."""
    in_use: bool
    """A sandbox, a template, or work under way needs it."""
    known: bool = True
    """False: nobody can be given it any more."""


@dataclass(frozen=True)
class KnownImage:
    """A base disk that new sandboxes can be given."""

    disk: BaseDisk
    references: tuple[str, ...]
    """Its names that hold a digest."""
    stored_bytes: int
    virtual_bytes: int
    created: float
    used: float


class Images(Protocol):
    """OCI images as base disks."""

    def check(self, reference: str) -> None:
        """Whether a request may name it at all: nobody is asked. InvalidRequest, Refused."""

    async def prepare(
        self,
        reference: str,
        owner: str,
        progress: ProgressSink,
        *,
        again: bool = False,
    ) -> BaseDisk:
        """Have the image as a disk. NotFound, Refused (not allowed, not fit, of another
        architecture), Exhausted (no room), ImageError. It is kept for `owner` until `release`.
        `again`: a name that is kept to a digest is resolved anew.
        """

    def kept_name(self, beginning: str) -> str:
        """Of the names that are kept to a digest the last one that begins so; "": there is none."""

    async def tree(
        self, reference: str, owner: str, progress: ProgressSink
    ) -> tuple[Path, str]:
        """Have the image as a directory, and its digest. The same errors. Where the registry
        cannot be asked, what it was last is taken. Kept for `owner` until `release`.
        """

    def release(self, owner: str) -> None:
        """What was prepared for it need not be kept on its account. Idempotent."""

    async def known(self) -> Sequence[KnownImage]:
        """What is prepared, in no order."""

    async def collect(
        self, in_use: set[str], limits: CacheLimits, *, dry_run: bool = False
    ) -> Sequence[CachedFile]:
        """Remove what the limits leave no room for, least recently used first; never what
        somebody needs. `in_use`: paths of base disks that sandboxes and templates stand on.
        """
