"""The supervisor that new launches get: found out once in a driver's life, so that one driver never
runs two. Sandboxes that run keep the disk that they started with.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from vmdriver.errors import HostError, NotFound, Refused, Unavailable
from vmdriver.lifecycle.ports.gateway import Gateway
from vmdriver.lifecycle.ports.host import SupervisorDisks
from vmdriver.lifecycle.ports.images import ImageProgress, Images
from vmdriver.lifecycle.ports.settings import Settings

_log = logging.getLogger(__name__)
_OWNER = "supervisor"
GATEWAY_VERSION = "{gateway_version}"
"""In supervisor_image: the tag of the gateway's own release."""
_UNRELEASED = "0.0.0"
_WAY_OUT = (
    "without its registry, set supervisor_path to the openshell-sandbox program of the "
    "gateway's release, or supervisor_image to where this host can fetch it"
)
PLACES = (
    "openshell-sandbox",
    "opt/openshell/bin/openshell-sandbox",
    "usr/local/bin/openshell-sandbox",
    "usr/bin/openshell-sandbox",
)
"""Where an image may have it; the second is the guest's own (contract §4.4)."""


class Supervisor:
    """From supervisor_path or supervisor_image."""

    def __init__(
        self,
        settings: Settings,
        images: Images,
        disks: SupervisorDisks,
        gateway: Gateway,
    ) -> None:
        self._settings, self._images, self._disks = settings, images, disks
        self._gateway = gateway
        self._lock = asyncio.Lock()
        self._tree: Path | None = None

    async def disk(self) -> str:
        """Path of a disk with it. Refused where there is none; what images raise."""
        program = self._settings.supervisor
        if program is not None:
            return str(await self._disks.disk(program))
        if not self._settings.supervisor_image:
            raise Refused(
                "there is no supervisor to run in the sandbox",
                reason="SupervisorMissing",
                resolution="set supervisor_path to the openshell-sandbox program, or "
                "supervisor_image to an image that has it",
            )
        if (tree := self._tree) is not None:
            return str(await self._disks.disk(program_in(tree), tree))
        async with self._lock:
            tree = self._tree or await self._unpacked()
            disk = await self._disks.disk(program_in(tree), tree)
            self._tree = tree
        return str(disk)

    async def _unpacked(self) -> Path:
        reference = await self._reference()
        try:
            tree, digest = await self._images.tree(reference, _OWNER, _note)
        except (HostError, NotFound) as error:
            error.resolution = error.resolution or _WAY_OUT
            raise
        _log.info("the supervisor is %s of %s", digest, reference)
        return tree

    async def _reference(self) -> str:
        """With the gateway's version in its place; while it does not say it, as it was last.
        Unavailable.
        """
        template = self._settings.supervisor_image
        if GATEWAY_VERSION not in template:
            return template
        try:
            version = await self._gateway.version()
        except Unavailable as error:
            last = self._images.kept_name(template.partition(GATEWAY_VERSION)[0])
            if not last:
                raise
            _log.warning("the supervisor is taken as it was last (%s): %s", last, error)
            return last
        return template.replace(GATEWAY_VERSION, tag_of(version))


def tag_of(version: str) -> str:
    """The tag by which upstream publishes what belongs to a gateway of that version.

    >>> tag_of("v0.0.111"), tag_of("0.0.37-dev.156+g1d3b741ee"), tag_of("0.0.0")
    ('0.0.111', '0.0.37-dev.156-g1d3b741ee', 'dev')
    """
    number = version.strip().removeprefix("v")
    return number.replace("+", "-") if number not in {"", _UNRELEASED} else "dev"


def program_in(tree: Path) -> Path:
    """The supervisor in an unpacked image. Refused."""
    for place in PLACES:
        path = (tree / place).resolve()
        # Links of the image are not this host's: one that leads outside leads nowhere.
        if path.is_relative_to(tree.resolve()) and path.is_file():
            return path
    raise Refused(
        "supervisor_image has no openshell-sandbox",
        detail=f"looked for {', '.join(PLACES)}",
        reason="SupervisorMissing",
        resolution="name an image that has it, or set supervisor_path",
    )


def _note(progress: ImageProgress) -> None:
    _log.debug("supervisor image: %s: %s", progress.reason, progress.detail)
