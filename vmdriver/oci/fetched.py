"""The OCI layout that one fetch fills. skopeo writes it, in a box: nothing in it is believed.

Layers that the cache has are in it as further names of the same files, which are root's: they can
be read there, not changed. Layers that are new become the cache's as soon as they are whole.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from vmdriver.errors import ImageError
from vmdriver.host.confined.user_namespace import give
from vmdriver.oci import files, manifest
from vmdriver.oci.cache import Cache
from vmdriver.oci.manifest import Manifest

_HEX = re.compile(r"[0-9a-f]{64}")
_PREFIX = len("sha256:")


class FetchedLayout:
    """Blocking. `path`: where it is, in a folder that root alone can reach."""

    def __init__(self, path: Path, cache: Cache) -> None:
        self.path, self._cache = path, cache
        self._blobs = path / "blobs" / "sha256"

    def make(self, wanted: Manifest, theirs: bool) -> None:
        """With the layers that are known. `theirs`: the image users' to write, else root's."""
        self._blobs.mkdir(parents=True)
        folders = (self.path, self._blobs.parent, self._blobs)
        for folder in folders:
            folder.chmod(0o755)
        if theirs:
            give(*folders)
        for layer in wanted.layers:
            known = self._cache.blob(layer.digest)
            with contextlib.suppress(OSError):  # then it is fetched
                files.take_over(known, 0o444, links=True)
                os.link(known, self._blobs / known.name)

    def keep(self) -> None:
        """Put whole layers into the cache, too. skopeo gives a blob its name when it is whole and
        is what its digest says; umoci looks again. What is no plain file is left here.
        """
        for path in self._blobs.iterdir():
            place = self._cache.blob(path.name)
            if not _HEX.fullmatch(path.name) or place.exists():
                continue
            with contextlib.suppress(OSError):
                files.take_over(path, 0o444)
                os.link(path, place, follow_symlinks=False)

    def under_way(self) -> int:
        """Bytes of layers that are not whole yet."""
        found = 0
        for path in self.path.glob("oci-put-blob*"):
            with contextlib.suppress(FileNotFoundError):
                found += path.lstat().st_size
        return found

    def layers(self, name: str) -> list[Path]:
        """As they are in the layout: skopeo may have written the manifest anew. ImageError for
        image `name` where it is not as it should be.
        """
        for file in (self.path / "index.json", self.path / "oci-layout"):
            with contextlib.suppress(OSError):
                files.take_over(file, 0o444)
        try:
            index = manifest.read(files.read_small(self.path / "index.json"), name)
            raw = files.read_small(
                self._blobs / manifest.last_of(index, name)[_PREFIX:]
            )
        except OSError as error:
            raise ImageError(
                f"image {name} was not fetched as it should be: {error}"
            ) from error
        found = manifest.parse(manifest.read(raw, name), raw, name)
        return [self._blobs / layer.digest[_PREFIX:] for layer in found.layers]
