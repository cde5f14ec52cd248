"""Layers in zstd, which umoci does not know everywhere, become plain archives before it begins.

They are given the names that the image's configuration says that they have when they are plain
(`diff_ids`): umoci finds out whether that is so.
"""

from __future__ import annotations

from pathlib import Path

from vmdriver.errors import ImageError, Refused
from vmdriver.host.confined.user_namespace import give
from vmdriver.host.threads import Threads
from vmdriver.oci.boxes import ImageBoxes
from vmdriver.oci.fetched import FetchedLayout, LayerFile
from vmdriver.oci.policy import ImagePolicy
from vmdriver.oci.reference import FIELD
from vmdriver.oci.tools import Tools

_SMALL, _MOST_EXPANSION = 2**30, 200
"""As the scan has them: an expansion beyond this is a bomb."""
_HEADERS = 1536
"""Bytes of an archive beside each file's content."""


class Unzstd:
    """Works in a folder that its caller removes."""

    def __init__(
        self, policy: ImagePolicy, threads: Threads, boxes: ImageBoxes, tools: Tools
    ) -> None:
        self._policy, self._threads = policy, threads
        self._boxes, self._tools = boxes, tools

    async def plain(
        self, fetched: FetchedLayout, layers: list[LayerFile], place: Path
    ) -> list[LayerFile]:
        """The same layers, none of them in zstd; the layout's manifest names them so. One after
        the other, for all of them together have to stay within the limit. Refused, naming the
        layer; ImageError. The caller watches the disk.
        """
        if not any(layer.zstd for layer in layers):
            return layers
        await self._threads.run(_make_place, place)
        left = self._policy.max_content + _HEADERS * self._policy.max_files
        found: dict[Path, LayerFile] = {}
        for number, layer in enumerate(layers, 1):
            if layer.path in found or not layer.zstd:
                found.setdefault(layer.path, layer)
                continue
            of = f"layer {number} of {len(layers)}"
            found[layer.path] = await self._one(fetched, layer, place, left, of)
            left -= found[layer.path].path.stat().st_size
        plain = [found[layer.path] for layer in layers]
        await self._threads.run(fetched.describe, plain)
        return plain

    async def _one(
        self, fetched: FetchedLayout, layer: LayerFile, place: Path, left: int, of: str
    ) -> LayerFile:
        part = place / "part"
        most = min(left, max(_SMALL, _MOST_EXPANSION * layer.packed))
        box = await self._boxes.decompressing(layer.path, place, most)
        # Zeros are written, too: those that are skipped would count for no limit.
        command = ["zstd", "-d", "-q", "--no-progress", "--no-sparse"]
        command += [str(layer.path), "-o", str(part)]
        try:
            await self._tools.run(command, box, lambda: part.unlink(missing_ok=True))
        except ImageError as error:
            if "ended with status" not in error.message:
                raise  # it says nothing about the layer
            raise Refused(
                f"{FIELD}: {of} is not fit: its {layer.packed} bytes are no zstd of at most "
                f"{most} bytes of archive",
                detail=error.detail,
                reason="ImageUnfit",
                resolution="push the image again; max_image_mib and max_image_files are the "
                "operator's limits",
            ) from error
        try:
            return await self._threads.run(fetched.put, layer, part)
        except OSError as error:
            raise ImageError(
                f"the image cannot be turned into a disk: zstd left what it should not: {error}"
            ) from error


def _make_place(place: Path) -> None:
    place.mkdir(mode=0o700)
    give(place)
